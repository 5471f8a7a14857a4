//! The owner of an address: a pod, a node, or an address outside.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use proxy_common::net::Protocol;

use crate::model::{ObjectName, Phase, Pod, State};

/// A destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Number of the port at the pod (P14).
    pub number: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.name())
    }
}

/// An end as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// The address; `None` while it has none, so that no ipBlock matches it.
    pub addr: Option<IpAddr>,
    /// The owner of the address.
    pub who: Who<'a>,
}

/// The owner of an address.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// A pod on the pod network.
    Pod(&'a ObjectName, &'a Pod),
    /// A hostNetwork pod, which policies treat as its node (P17).
    HostPod(&'a ObjectName, &'a Pod),
    /// A node.
    Node(&'a str),
    /// A pod that has ended; policies ignore it (P20).
    Ended(&'a ObjectName),
    /// Any other address, in or out of the cluster.
    Outside,
}

impl<'a> Party<'a> {
    /// Returns the owner of an address (P17, P20, P22).
    pub fn at(state: &'a State, addr: IpAddr) -> Self {
        let of_node = |node: &crate::model::Node| {
            node.internal_ips.contains(&addr) || node.external_ips.contains(&addr)
        };
        let pods = || {
            state
                .pods
                .iter()
                .filter(|(_, pod)| pod.addresses.contains(&addr) && !pod.finished())
        };
        let owner = pods().filter(|(_, pod)| !pod.host_network);
        let who = if let Some((name, _)) = state.nodes.iter().find(|(_, node)| of_node(node)) {
            Who::Node(&name.name)
        } else if let Some((name, pod)) = owner
            .max_by_key(|(name, pod)| (pod.phase == Phase::Running, pod.created, Reverse(*name)))
        {
            Who::Pod(name, pod)
        } else if let Some((name, pod)) = pods().next() {
            Who::HostPod(name, pod)
        } else {
            Who::Outside
        };
        Self {
            addr: Some(addr),
            who,
        }
    }

    /// Returns the pod, if it is one of the pod network.
    pub fn pod(&self) -> Option<(&'a ObjectName, &'a Pod)> {
        match self.who {
            Who::Pod(name, pod) => Some((name, pod)),
            Who::HostPod(..) | Who::Node(_) | Who::Ended(_) | Who::Outside => None,
        }
    }

    /// Returns the node, if it is one or a hostNetwork pod of it.
    pub fn node(&self) -> Option<&'a str> {
        match self.who {
            Who::Node(node) => Some(node),
            Who::HostPod(_, pod) => pod.node.as_deref(),
            Who::Pod(..) | Who::Ended(_) | Who::Outside => None,
        }
    }

    /// Describes the end if it is not a pod of the pod network.
    pub(super) fn kind(&self) -> String {
        match self.who {
            Who::Pod(name, _) => format!("{name} is a pod"),
            Who::HostPod(name, _) => format!("{name} is in the network of its node"),
            Who::Node(node) => format!("{node} is a node"),
            Who::Ended(name) => format!("{name} has ended"),
            Who::Outside => format!("{self} is no pod"),
        }
    }
}

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.who, self.addr) {
            (Who::Pod(name, _) | Who::HostPod(name, _) | Who::Ended(name), _) => {
                write!(f, "{name}")
            }
            (Who::Node(node), _) => write!(f, "node {node}"),
            (Who::Outside, Some(IpAddr::V6(addr))) => write!(f, "[{addr}]"),
            (Who::Outside, Some(addr)) => write!(f, "{addr}"),
            (Who::Outside, None) => write!(f, "nobody"),
        }
    }
}
