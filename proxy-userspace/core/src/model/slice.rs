//! EndpointSlices: the fields that are read, and no others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use proxy_common::net::Protocol;

use super::ObjectName;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns its name as Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// An EndpointSlice of a Service. Slices without a Service and of type FQDN are not in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service.
    pub service: ObjectName,
    /// Ports that have a name (it may be empty) and a number (V2).
    pub ports: Vec<SlicePort>,
    /// The address family of all its endpoints.
    pub family: Family,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Time of the change that made its controller write it (V24).
    pub triggered: Option<Timestamp>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port of the endpoints.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its first address (V2).
    pub addr: IpAddr,
    /// True if it takes new connections.
    pub ready: bool,
    /// True if it answers, terminating or not.
    pub serving: bool,
    /// True if it is being shut down.
    pub terminating: bool,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Zones that should use it (V6).
    pub zone_hints: BTreeSet<Arc<str>>,
    /// Nodes that should use it (V6).
    pub node_hints: BTreeSet<Arc<str>>,
}

impl SliceEndpoint {
    /// Returns true if it runs on this node (V2).
    pub fn is_on(&self, node: &str) -> bool {
        self.node.as_deref() == Some(node)
    }
}
