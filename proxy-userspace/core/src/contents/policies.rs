//! The contents of the policy tables in symbols: pods' rows as sets of rules, classes of addresses
//! as sets of peers, without ids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, Protocol};

use super::unlike;
use crate::model::{ObjectName, PortRange};

/// The contents of the policy tables on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// True if there is a NetworkPolicy in the cluster: a pod with a policy that is not known yet
    /// is denied (P31).
    pub exist: bool,
    /// Every pod of this node with a network of its own, isolated or not.
    pub pods: BTreeMap<ObjectName, PodPolicy>,
    /// The classes of addresses. The longest prefix counts; an address without one has
    /// [`Class::default`]. Addresses of pods are prefixes of full length.
    pub classes: BTreeMap<IpNet, Arc<Class>>,
}

/// The keys of the elements that differ between two [`Policies`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDelta {
    /// Of `pods`.
    pub pods: BTreeSet<ObjectName>,
    /// Of `classes`.
    pub classes: BTreeSet<IpNet>,
    /// True if `exist` differs.
    pub exist: bool,
}

impl PolicyDelta {
    /// Returns the difference.
    pub fn between(before: &Policies, after: &Policies) -> Self {
        Self {
            pods: unlike(&before.pods, &after.pods),
            classes: unlike(&before.classes, &after.classes),
            exist: before.exist != after.exist,
        }
    }

    /// Returns true if nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPolicy {
    /// The addresses that it owns (P22).
    pub addresses: BTreeSet<IpAddr>,
    /// The host side of its veth; [`IfIndex::NONE`] while that is not found.
    pub device: IfIndex,
    /// True if it may send with addresses that are not its own (P33), by an annotation.
    pub any_source: bool,
    /// Connections to it.
    pub ingress: Isolation,
    /// Connections from it.
    pub egress: Isolation,
}

/// The isolation of a pod in one direction (P3).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// No policy selects it for this direction.
    #[default]
    None,
    /// These rules allow connections; without rules, nothing is allowed.
    Rules(Arc<Row>),
}

/// The rules of a pod in one direction, joined by peers. Equal rows are one row in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row {
    /// The ports allowed to or from the peers of a rule. The pod's own named ports are numbers
    /// already (ingress, P15).
    pub rules: BTreeMap<Peers, Ports>,
}

/// The peers of one rule, as a keyed hash of their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peers(pub u128);

impl Peers {
    /// The peers of a rule without any: everybody (P6). Not an element of any [`Class`], since
    /// every address has it.
    pub const EVERYBODY: Self = Self(0);
}

/// The class of an address: the rules' peers that it belongs to, and its named ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// The rules' peers that it belongs to.
    pub peers: BTreeSet<Peers>,
    /// Its numbers for the named ports of egress rules (P15), with their protocol.
    pub named: BTreeMap<(Arc<str>, Protocol), BTreeSet<u16>>,
}

/// Ports of some protocols, as rules list them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// True for every protocol, including those without ports (P6, P26).
    pub everything: bool,
    /// Protocols with every port (P13).
    pub whole: BTreeSet<Protocol>,
    /// Ranges: sorted, and no two of a protocol touch.
    pub ranges: Vec<(Protocol, PortRange)>,
    /// Names that the destination resolves (egress).
    pub named: BTreeSet<(Arc<str>, Protocol)>,
}

/// The verdict of policies on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// True if the destination's policies allow it.
    pub ingress: bool,
    /// True if the source's policies allow it.
    pub egress: bool,
}

impl Verdict {
    /// Returns true if both allow it (P1).
    pub fn allows(self) -> bool {
        self.ingress && self.egress
    }
}

/// Returns the verdict of this node's pods' policies on a connection to a port of a protocol (port
/// 0 if the protocol has none). Ingress is judged at the destination and egress at the source; an
/// end that is not a pod of this node allows it (P1). Exceptions that do not depend on policies are
/// not included: the own node and the pod itself (P18, P19), neighbour discovery (P26).
pub fn verdict(
    policies: &Policies,
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
) -> Verdict {
    let allows = |isolation: Option<&Isolation>, peer| {
        isolation.is_none_or(|i| i.allows(policies.class_of(peer), protocol, port))
    };
    Verdict {
        ingress: allows(policies.pod_at(to).map(|(_, pod)| &pod.ingress), from),
        egress: allows(policies.pod_at(from).map(|(_, pod)| &pod.egress), to),
    }
}

/// Returns the value of the longest prefix that covers `prefix` or equals it.
pub fn longest<T>(all: &BTreeMap<IpNet, T>, prefix: IpNet) -> Option<&T> {
    let around = (0..=prefix.prefix_len())
        .rev()
        .filter_map(|length| IpNet::new(prefix.addr(), length).ok());
    around
        .into_iter()
        .find_map(|around| all.get(&around.trunc()))
}

impl Policies {
    /// Returns the class of an address, as the kernel finds it: that of the longest prefix.
    pub fn class_of(&self, addr: IpAddr) -> Option<&Arc<Class>> {
        self.class_of_prefix(IpNet::from(addr))
    }

    /// Returns the class of the longest prefix that covers `prefix` or equals it.
    pub fn class_of_prefix(&self, prefix: IpNet) -> Option<&Arc<Class>> {
        longest(&self.classes, prefix)
    }

    /// Returns the pod of this node that owns an address (P22).
    pub fn pod_at(&self, addr: IpAddr) -> Option<(&ObjectName, &PodPolicy)> {
        self.pods
            .iter()
            .find(|(_, pod)| pod.addresses.contains(&addr))
    }
}

impl PodPolicy {
    /// Returns ingress, then egress.
    pub fn directions(&self) -> [&Isolation; 2] {
        [&self.ingress, &self.egress]
    }
}

impl Isolation {
    /// Returns true if a port of a protocol is allowed for an address of this class (P3, P4).
    pub fn allows(&self, class: Option<&Arc<Class>>, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::None => true,
            Self::Rules(row) => {
                let ports = class.map_or_else(
                    || row.towards(&Class::default()),
                    |class| row.towards(class),
                );
                ports.have(protocol, port)
            }
        }
    }
}

impl Class {
    /// Returns true if addresses of this class belong to these peers.
    pub fn is_among(&self, peers: &Peers) -> bool {
        *peers == Peers::EVERYBODY || self.peers.contains(peers)
    }
}

impl Row {
    /// Returns the ports allowed for addresses of a class: a union (P4), with all names resolved.
    pub fn towards(&self, class: &Class) -> Ports {
        let mut all = Ports::default();
        for (_, ports) in self.rules.iter().filter(|(peers, _)| class.is_among(peers)) {
            all.add(ports);
        }
        all.resolve(|name| {
            class
                .named
                .get(name)
                .into_iter()
                .flatten()
                .copied()
                .collect()
        })
    }
}

impl Ports {
    /// Adds the ports of `more`.
    pub fn add(&mut self, more: &Self) {
        self.everything |= more.everything;
        self.whole.extend(&more.whole);
        self.named.extend(more.named.iter().cloned());
        self.ranges.extend(&more.ranges);
        self.normalise();
    }

    /// Replaces names by numbers. A name without a number is removed.
    pub fn resolve(mut self, numbers: impl Fn(&(Arc<str>, Protocol)) -> Vec<u16>) -> Self {
        for name in std::mem::take(&mut self.named) {
            let ranges = numbers(&name).into_iter().map(|port| {
                (
                    name.1,
                    PortRange {
                        first: port,
                        last: port,
                    },
                )
            });
            self.ranges.extend(ranges);
        }
        self.normalise();
        self
    }

    /// Returns true if a port of a protocol is among them. A protocol without ports has port 0.
    pub fn have(&self, protocol: Protocol, port: u16) -> bool {
        self.everything
            || self.whole.contains(&protocol)
            || self
                .ranges
                .iter()
                .any(|(of, range)| *of == protocol && range.contains(port))
    }

    /// Brings the ranges into their normal form: contained ranges are removed, touching ones
    /// joined.
    pub fn normalise(&mut self) {
        if self.everything {
            *self = Self {
                everything: true,
                ..Self::default()
            };
            return;
        }
        let whole = &self.whole;
        self.named.retain(|(_, protocol)| !whole.contains(protocol));
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.retain(|(protocol, _)| !whole.contains(protocol));
        ranges.sort_by_key(|(protocol, range)| (*protocol, range.first, range.last));
        for (protocol, range) in ranges {
            match self.ranges.last_mut() {
                Some((before, last))
                    if *before == protocol
                        && u32::from(range.first) <= u32::from(last.last) + 1 =>
                {
                    last.last = last.last.max(range.last);
                }
                _ => self.ranges.push((protocol, range)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> (Protocol, PortRange) {
        (Protocol::TCP, PortRange { first, last })
    }

    #[test]
    fn p14_ranges_that_touch_become_one_and_ends_count() {
        let mut ports = Ports {
            ranges: vec![
                range(80, 90),
                range(91, 95),
                range(65535, 65535),
                range(85, 86),
            ],
            ..Ports::default()
        };
        ports.normalise();
        assert_eq!(ports.ranges, [range(80, 95), range(65535, 65535)]);
        assert!(
            ports.have(Protocol::TCP, 80)
                && ports.have(Protocol::TCP, 95)
                && ports.have(Protocol::TCP, 65535)
        );
        assert!(!ports.have(Protocol::TCP, 96) && !ports.have(Protocol::UDP, 80));
    }

    #[test]
    fn p4_p15_a_row_is_a_union_and_names_are_resolved_by_the_class() {
        let http: Arc<str> = "http".into();
        let named = Ports {
            named: BTreeSet::from([(http.clone(), Protocol::TCP)]),
            ..Ports::default()
        };
        let dns = Ports {
            ranges: vec![(
                Protocol::UDP,
                PortRange {
                    first: 53,
                    last: 53,
                },
            )],
            ..Ports::default()
        };
        let row = Row {
            rules: BTreeMap::from([(Peers::EVERYBODY, dns), (Peers(7), named)]),
        };
        let class = Class {
            peers: BTreeSet::from([Peers(7)]),
            named: BTreeMap::from([((http, Protocol::TCP), [80, 8080].into())]),
        };
        let ports = row.towards(&class);
        assert!(
            ports.have(Protocol::TCP, 80)
                && ports.have(Protocol::TCP, 8080)
                && ports.have(Protocol::UDP, 53)
        );
        let stranger = row.towards(&Class {
            peers: BTreeSet::new(),
            ..class
        });
        assert!(!stranger.have(Protocol::TCP, 80) && stranger.have(Protocol::UDP, 53));
    }
}
