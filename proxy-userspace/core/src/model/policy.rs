//! NetworkPolicies: the fields that `compile` reads, defaulted and normalised (P2, P12, P13).

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::Protocol;

use super::{Labels, PortRange};

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// The pods of its namespace that it selects (P5).
    pub pods: Selector,
    /// What may reach them: any of these; `None` if it says nothing of this direction (P2), empty if nothing may (P7).
    pub ingress: Option<Vec<Rule>>,
    /// What they may reach, likewise.
    pub egress: Option<Vec<Rule>>,
}

/// A rule: ports and peers (P6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Any of these; empty is everybody, in or out of the cluster.
    pub peers: Vec<Peer>,
    /// Any of these; empty is every port of every protocol.
    pub ports: Vec<PolicyPort>,
}

/// Who is meant (P8).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods on the pod network (P10): of these namespaces, and with these labels.
    Pods {
        /// Their namespaces.
        namespaces: Namespaces,
        /// Their labels; all pods where no podSelector was given.
        pods: Selector,
    },
    /// Addresses, whoever has them (P11).
    Block {
        /// Without host bits.
        cidr: IpNet,
        /// What is taken out of this one block; without host bits, and of its family.
        except: BTreeSet<IpNet>,
    },
}

/// Which namespaces a peer's pods may be of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The policy's own: no namespaceSelector was given.
    Own,
    /// Those with these labels.
    Matching(Selector),
}

/// Which ports are meant (P13-P16).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Which of its ports.
    pub port: PortMatch,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// All.
    All,
    /// These numbers.
    Range(PortRange),
    /// What the destination's containers call so (P15).
    Named(Arc<str>),
}

/// A label selector: all of its requirements; without any it selects everything (P5, P9).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted; `matchLabels` are requirements of one value.
    pub requirements: BTreeSet<Requirement>,
}

/// What a selector asks of one label (P9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is there with one of these values.
    In(String, BTreeSet<String>),
    /// The key is not there, or with none of these values.
    NotIn(String, BTreeSet<String>),
    /// The key is there.
    Exists(String),
    /// The key is not there.
    DoesNotExist(String),
}

impl NetworkPolicy {
    /// The cidrs of all ipBlocks.
    pub fn blocks(&self) -> impl Iterator<Item = &IpNet> {
        let rules = self.ingress.iter().chain(&self.egress).flatten();
        rules
            .flat_map(|rule| &rule.peers)
            .filter_map(|peer| match peer {
                Peer::Block { cidr, .. } => Some(cidr),
                Peer::Pods { .. } => None,
            })
    }
}

impl Selector {
    /// Whether these labels are selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// Whether these labels are as required.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}
