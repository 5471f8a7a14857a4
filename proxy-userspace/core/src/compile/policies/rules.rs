//! Rules of policies to rows of pods: ports in normal form, rules joined by peers, the pod's own
//! port names as numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::net::Protocol;

use crate::contents::policies::{Isolation, Peers, Ports, Row};
use crate::model::policy::{PolicyPort, PortMatch};

/// The numbers of a pod's named ports (P15).
pub(super) type Named = BTreeMap<(Arc<str>, Protocol), BTreeSet<u16>>;

/// A policy's rules, with the hashes of their peers; `None` for a direction that it does not
/// isolate (P2).
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
}

/// One rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) peers: Peers,
    pub(super) ports: Ports,
}

/// A direction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// The rows of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) ingress: Isolation,
    pub(super) egress: Isolation,
}

impl Rules {
    /// Returns the rules of both directions.
    pub(super) fn all(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flatten()
    }

    /// Returns the port names in egress rules, which the destination resolves (P15), with the peers
    /// of the rule.
    pub(super) fn asked(&self) -> impl Iterator<Item = (&(Arc<str>, Protocol), Peers)> {
        self.egress
            .iter()
            .flatten()
            .flat_map(|rule| rule.ports.named.iter().map(|name| (name, rule.peers)))
    }

    fn towards(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Returns the ports of a rule (P6, P13-P15).
pub(super) fn ports(listed: &[PolicyPort]) -> Ports {
    let mut ports = Ports {
        everything: listed.is_empty(),
        ..Ports::default()
    };
    for PolicyPort { protocol, port } in listed {
        match port {
            PortMatch::All => _ = ports.whole.insert(*protocol),
            PortMatch::Range(range) => ports.ranges.push((*protocol, *range)),
            PortMatch::Named(name) => _ = ports.named.insert((name.clone(), *protocol)),
        }
    }
    ports.normalise();
    ports
}

/// Returns the row of a pod that these policies select; `None` if none of them isolates it (P3,
/// P4). Rules without ports are left out.
pub(super) fn row<'a>(
    policies: impl Iterator<Item = &'a Rules>,
    direction: Direction,
    own: &Named,
) -> Option<Row> {
    let mut policies = policies
        .filter_map(|rules| rules.towards(direction))
        .peekable();
    policies.peek()?;
    let mut rules: BTreeMap<Peers, Ports> = BTreeMap::new();
    for rule in policies.flatten() {
        let ports = match direction {
            Direction::Ingress => rule
                .ports
                .clone()
                .resolve(|name| own.get(name).into_iter().flatten().copied().collect()),
            Direction::Egress => rule.ports.clone(),
        };
        if ports != Ports::default() {
            rules.entry(rule.peers).or_default().add(&ports);
        }
    }
    Some(Row { rules })
}
