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
    /// Rules for connections to them; any of these allows. `None` if the policy does not cover this
    /// direction (P2), empty if nothing is allowed (P7).
    pub ingress: Option<Vec<Rule>>,
    /// Rules for connections from them, likewise.
    pub egress: Option<Vec<Rule>>,
}

/// A rule: ports and peers (P6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Any of these; empty means everybody, in or out of the cluster.
    pub peers: Vec<Peer>,
    /// Any of these; empty means every port of every protocol.
    pub ports: Vec<PolicyPort>,
}

/// The peers of a rule (P8).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods on the pod network (P10), by namespace and labels.
    Pods {
        /// Their namespaces.
        namespaces: Namespaces,
        /// Their labels. Without a podSelector it selects all pods.
        pods: Selector,
    },
    /// Addresses, of pods or not (P11).
    Block {
        /// The block, without host bits.
        cidr: IpNet,
        /// Exceptions from this block only, without host bits, of its family.
        except: BTreeSet<IpNet>,
    },
}

/// The namespaces of a peer's pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The policy's own: there is no namespaceSelector.
    Own,
    /// Those with these labels.
    Matching(Selector),
}

/// Ports of one protocol in a rule (P13-P16).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The ports.
    pub port: PortMatch,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// All.
    All,
    /// These numbers.
    Range(PortRange),
    /// The destination's container ports of this name (P15).
    Named(Arc<str>),
}

/// A label selector: all of its requirements. Without any it selects everything (P5, P9).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted. `matchLabels` are requirements of one value.
    pub requirements: BTreeSet<Requirement>,
}

/// A requirement on one label (P9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key exists with one of these values.
    In(String, BTreeSet<String>),
    /// The key does not exist, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The key exists.
    Exists(String),
    /// The key does not exist.
    DoesNotExist(String),
}

impl NetworkPolicy {
    /// Returns the CIDRs of all ipBlocks.
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
    /// Returns true if these labels are selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// Returns true if these labels meet the requirement.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}
