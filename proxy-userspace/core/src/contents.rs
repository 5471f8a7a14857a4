//! The contents of the maps in symbols: without ids, generations and slots.
//!
//! `compile` makes them, `place` turns them into writes, and `dataplane` reads the kernel back into
//! them. Equality is defined here.

mod delta;
mod diff;
mod dump;
pub mod policies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, Protocol, RangeKind};
use proxy_common::service::{Config, ServiceFlags};

use crate::model::{Algorithm, Forwarding};

pub use delta::{Delta, set, unlike};

/// The contents of the Service maps on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Frontends and their targets.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Clients that may use load balancer IPs, by service port. A port without an entry serves all
    /// (V3).
    pub sources: BTreeSet<(Arc<str>, IpNet)>,
    /// Kinds of addresses by prefix. The longest prefix counts.
    pub ranges: BTreeMap<IpNet, RangeKind>,
    /// Flags of single addresses.
    pub addresses: BTreeMap<IpAddr, AddressFlags>,
    /// Pods of this node by address, with the host side of their veth; [`IfIndex::NONE`] while that
    /// is not found.
    pub pods: BTreeMap<IpAddr, IfIndex>,
    /// Devices that packets enter and leave by.
    pub devices: BTreeMap<IfIndex, Device>,
    /// The packet path's settings.
    pub config: Config,
}

impl Contents {
    /// Returns the service ports that have a frontend of these kinds (bits of `ServiceFlags`) with
    /// policy Local and only backends on other nodes.
    pub fn without_local_backend(&self, kinds: u32) -> BTreeSet<&Arc<str>> {
        self.frontends
            .values()
            .filter(|target| target.flags & kinds != 0)
            .filter(|target| target.misses_local_backend())
            .map(|target| &target.service)
            .collect()
    }
}

/// A frontend: one address (unspecified for nodePorts, of either family), port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Cluster, external or load balancer IP; `0.0.0.0` or `::` for a nodePort.
    pub addr: IpAddr,
    /// The port that clients use.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// The target of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `namespace/name:port` of the service port. Equal texts have equal ids in the kernel.
    pub service: Arc<str>,
    /// Bits of `ServiceFlags`.
    pub flags: u32,
    /// Seconds of ClientIP affinity, 0 for none (V13).
    pub affinity: u32,
    /// The service port's backends of the frontend's family. Equal lists of one service port share
    /// a generation.
    pub backends: Arc<Backends>,
}

impl Target {
    /// Returns true if its policy is Local and only other nodes have backends.
    pub fn misses_local_backend(&self) -> bool {
        let Backends {
            local_only,
            both,
            cluster_only,
            algorithm: _,
        } = &*self.backends;
        self.flags & ServiceFlags::LOCAL != 0
            && local_only.is_empty()
            && both.is_empty()
            && !cluster_only.is_empty()
    }

    /// Returns how replies return to clients outside, from backends of other nodes.
    pub fn forwarding(&self) -> Forwarding {
        if self.flags & ServiceFlags::DSR == 0 {
            Forwarding::Masquerade
        } else {
            Forwarding::Dsr
        }
    }
}

/// The backends of one service port and family. Each list is sorted and without duplicates (V5,
/// V7).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backends {
    /// Only for policy Local.
    pub local_only: Vec<Endpoint>,
    /// For both policies.
    pub both: Vec<Endpoint>,
    /// Only for policy Cluster.
    pub cluster_only: Vec<Endpoint>,
    /// How one of them is chosen.
    pub algorithm: Algorithm,
}

/// One backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address and port.
    pub addr: SocketAddr,
    /// Bits of `BackendFlags`.
    pub flags: u16,
}
