//! The cluster and the host in our words: `source` and `links` fill it, `compile` reads it.
//!
//! Kubernetes' own types stop before it, in the agent's `model::k8s`.

mod cluster;
mod kinds;
mod name;
mod options;
mod pod;
pub mod policy;
mod service;
mod settings;
mod slice;
mod state;
mod word;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_common::net::{Device, IfIndex};

pub use cluster::*;
pub use kinds::{Kind, Object};
pub use name::{Invalid, ObjectName, ObjectRef};
pub use options::*;
pub use pod::*;
pub use policy::NetworkPolicy;
pub use service::*;
pub use settings::*;
pub use slice::*;
pub use state::{Changed, Connection, State, Update};
pub use word::Word;

/// All inputs of `compile`. Equal snapshots give equal contents.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The operator's settings.
    pub settings: Settings,
    /// The cluster's objects.
    pub state: State,
    /// The network configuration of this host.
    pub links: Links,
}

/// The host's network configuration, found by the agent's `links`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Address of a local pod -> host side of its veth pair, once found.
    pub pods: BTreeMap<IpAddr, IfIndex>,
    /// Node devices, tunnels and the gate.
    pub devices: BTreeMap<IfIndex, Device>,
    /// The gate, one of [`Self::devices`]: packets of processes without socket hooks arrive there
    /// (V21). `None` while there is no gate.
    pub gate: Option<IfIndex>,
    /// Every address of this host, except those of loopback, kube-ipvs0 and kube-dummy-if (V20).
    pub host_addresses: BTreeMap<IpAddr, IfIndex>,
}
