//! What the maps ought to hold, in symbols: no ids, no generations, no slots.
//!
//! `compile` makes it, `place` turns it into writes, `dataplane` reads the kernel back into it; equality is judged here.

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

/// Everything that the maps ought to hold on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Where clients knock, and what it leads to.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Who is served at load balancer IPs, by service port; everybody where there is no entry (V3).
    pub sources: BTreeSet<(Arc<str>, IpNet)>,
    /// What the addresses of prefixes are; the longest prefix counts.
    pub ranges: BTreeMap<IpNet, RangeKind>,
    /// What addresses are to this node.
    pub addresses: BTreeMap<IpAddr, AddressFlags>,
    /// Pods of this node by address, with the host side of their veth; [`IfIndex::NONE`] while that is not found.
    pub pods: BTreeMap<IpAddr, IfIndex>,
    /// Devices that packets come in and go out by.
    pub devices: BTreeMap<IfIndex, Device>,
    /// The packet path's settings.
    pub config: Config,
}

impl Contents {
    /// The service ports that have a frontend of these kinds (bits of `ServiceFlags`) whose policy Local finds no backend on this
    /// node, while there are some elsewhere.
    pub fn without_local_backend(&self, kinds: u32) -> BTreeSet<&Arc<str>> {
        let local =
            |target: &&Target| target.flags & kinds != 0 && target.flags & ServiceFlags::LOCAL != 0;
        let elsewhere = |target: &&Target| {
            let Backends {
                local_only,
                both,
                cluster_only,
                ..
            } = &*target.backends;
            local_only.is_empty() && both.is_empty() && !cluster_only.is_empty()
        };
        self.frontends
            .values()
            .filter(local)
            .filter(elsewhere)
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

/// What a frontend leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `namespace/name:port` of the service port; the same text means the same id in the kernel.
    pub service: Arc<str>,
    /// Bits of `ServiceFlags`.
    pub flags: u32,
    /// Seconds of ClientIP affinity, 0 for none (V13).
    pub affinity: u32,
    /// The service port's backends of the frontend's family; equal lists of one service port share a generation.
    pub backends: Arc<Backends>,
}

impl Target {
    /// Returns how clients outside are answered by backends of other nodes.
    pub fn forwarding(&self) -> Forwarding {
        if self.flags & ServiceFlags::DSR == 0 {
            Forwarding::Masquerade
        } else {
            Forwarding::Dsr
        }
    }
}

/// The backends of one service port and family, each list sorted and free of duplicates (V5, V7).
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
    /// Where it listens.
    pub addr: SocketAddr,
    /// Bits of `BackendFlags`.
    pub flags: u16,
}
