//! What the policy tables ought to hold, in symbols: rows of pods as rule sets, classes of addresses as sets of peers, no ids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, Protocol};

use super::unlike;
use crate::model::{ObjectName, PortRange};

/// Everything about NetworkPolicy that the maps ought to hold on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// There is a NetworkPolicy somewhere in the cluster, so that a pod whose policy is not known yet is denied (P31).
    pub exist: bool,
    /// Every pod of this node that has a network of its own, isolated or not.
    pub pods: BTreeMap<ObjectName, PodPolicy>,
    /// The classes of addresses; the longest prefix counts, and what none covers has no class ([`Class::default`]). Pods stand here with
    /// all bits of their addresses.
    pub classes: BTreeMap<IpNet, Arc<Class>>,
}

/// The keys of the elements of [`Policies`] that two of them differ in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDelta {
    /// Of `pods`.
    pub pods: BTreeSet<ObjectName>,
    /// Of `classes`.
    pub classes: BTreeSet<IpNet>,
    /// `exist` differs.
    pub exist: bool,
}

impl PolicyDelta {
    /// What differs.
    pub fn between(before: &Policies, after: &Policies) -> Self {
        Self {
            pods: unlike(&before.pods, &after.pods),
            classes: unlike(&before.classes, &after.classes),
            exist: before.exist != after.exist,
        }
    }

    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPolicy {
    /// Its addresses that it owns (P22).
    pub addresses: BTreeSet<IpAddr>,
    /// The host side of its veth; [`IfIndex::NONE`] while that is not found.
    pub device: IfIndex,
    /// It may send with addresses that are not its own (P33: an annotation says so).
    pub any_source: bool,
    /// What may reach it.
    pub ingress: Isolation,
    /// What it may reach.
    pub egress: Isolation,
}

/// Whether a pod is isolated in a direction (P3).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// No policy selects it for this direction.
    #[default]
    None,
    /// Only what one of these rules allows; nothing where there are none.
    Rules(Arc<Row>),
}

/// The rules that apply to a pod in one direction, joined by peers. Equal rows are one row in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row {
    /// The ports allowed to or from the peers of a rule; the pod's own named ports are numbers already (ingress, P15).
    pub rules: BTreeMap<Peers, Ports>,
}

/// The peers of one rule, by a keyed hash of what the rule says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peers(pub u128);

impl Peers {
    /// Those of a rule that names none: everybody (P6). Not a member of any [`Class`], for every address has it.
    pub const EVERYBODY: Self = Self(0);
}

/// What is known of an address: which rules' peers it is, and what it calls its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// The rules' peers that it belongs to.
    pub peers: BTreeSet<Peers>,
    /// Its numbers of the named ports that egress rules ask for (P15), with their protocol.
    pub named: BTreeMap<(Arc<str>, Protocol), BTreeSet<u16>>,
}

/// Some ports of some protocols, as rules say them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// Every protocol, also those without ports (P6, P26).
    pub everything: bool,
    /// Every port of these protocols (P13).
    pub whole: BTreeSet<Protocol>,
    /// Ranges: sorted, and no two of a protocol touch.
    pub ranges: Vec<(Protocol, PortRange)>,
    /// Names that the other end is to resolve (egress).
    pub named: BTreeSet<(Arc<str>, Protocol)>,
}

/// What policies say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The destination may be reached by the source.
    pub ingress: bool,
    /// The source may reach the destination.
    pub egress: bool,
}

impl Verdict {
    /// A connection needs both (P1).
    pub fn allows(self) -> bool {
        self.ingress && self.egress
    }
}

/// Whether the policies of this node's pods allow a connection to a port of a protocol, port 0 where the protocol has none: ingress judged at
/// the destination, egress at the source, and nothing at an end that is no pod of this node (P1). Not judged here is what does not
/// depend on policies: the own node and the pod itself (P18, P19), neighbour discovery (P26).
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

/// What is said of the longest prefix that covers another, or is it.
pub fn longest<T>(all: &BTreeMap<IpNet, T>, prefix: IpNet) -> Option<&T> {
    let around = (0..=prefix.prefix_len())
        .rev()
        .filter_map(|length| IpNet::new(prefix.addr(), length).ok());
    around
        .into_iter()
        .find_map(|around| all.get(&around.trunc()))
}

impl Policies {
    /// The class of an address, as the kernel finds it: that of the longest prefix; `None` where none has it.
    pub fn class_of(&self, addr: IpAddr) -> Option<&Arc<Class>> {
        self.class_of_prefix(IpNet::from(addr))
    }

    /// The class of the longest prefix that covers another, or is it.
    pub fn class_of_prefix(&self, prefix: IpNet) -> Option<&Arc<Class>> {
        longest(&self.classes, prefix)
    }

    /// The pod of this node that owns an address (P22).
    pub fn pod_at(&self, addr: IpAddr) -> Option<(&ObjectName, &PodPolicy)> {
        self.pods
            .iter()
            .find(|(_, pod)| pod.addresses.contains(&addr))
    }
}

impl PodPolicy {
    /// Ingress, then egress.
    pub fn directions(&self) -> [&Isolation; 2] {
        [&self.ingress, &self.egress]
    }
}

impl Isolation {
    /// Whether a port of a protocol is allowed towards an address of this class (P3, P4).
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

impl Row {
    /// What the row allows towards addresses of a class: a union (P4), with all names resolved.
    pub fn towards(&self, class: &Class) -> Ports {
        let applies = |peers: &Peers| *peers == Peers::EVERYBODY || class.peers.contains(peers);
        let mut all = Ports::default();
        for (_, ports) in self.rules.iter().filter(|(peers, _)| applies(peers)) {
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
    /// Also what `more` has.
    pub fn add(&mut self, more: &Self) {
        self.everything |= more.everything;
        self.whole.extend(&more.whole);
        self.named.extend(more.named.iter().cloned());
        self.ranges.extend(&more.ranges);
        self.normalise();
    }

    /// The same with numbers for names; a name without a number is nothing.
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

    /// Whether a port of a protocol is one of them; a protocol without ports asks for port 0.
    pub fn have(&self, protocol: Protocol, port: u16) -> bool {
        let within = |(of, range): &(Protocol, PortRange)| *of == protocol && range.contains(port);
        self.everything || self.whole.contains(&protocol) || self.ranges.iter().any(within)
    }

    /// Brings the ranges into their one form: what is contained elsewhere goes, what touches becomes one.
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
