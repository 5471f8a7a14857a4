//! Named ports that no destination pod declares.

use std::collections::BTreeSet;

use super::super::Finding;
use super::super::check::Check;
use super::super::services::{count, listed};
use super::Examined;
use crate::explain::{Side, port_words};
use crate::model::policy::{Peer, PolicyPort, PortMatch, Rule};
use crate::model::{ObjectName, Pod};

impl<'a> Examined<'a> {
    /// Finds port names that no destination pod declares (P15).
    pub(super) fn port_names(&self, side: Side, rule: &Rule, path: &str) -> Vec<Finding> {
        let destinations: Vec<_> = match side {
            Side::Ingress => self.selected.clone(),
            Side::Egress => self.destinations(rule),
        };
        let mut findings = Vec::new();
        for (i, port) in rule.ports.iter().enumerate() {
            let PortMatch::Named(name) = &port.port else {
                continue;
            };
            let has = |pod: &Pod| {
                pod.ports
                    .iter()
                    .any(|p| p.name.as_deref() == Some(name) && p.protocol == port.protocol)
            };
            if !destinations.is_empty() && !destinations.iter().any(|(_, pod)| has(pod)) {
                findings.push(self.unknown_name(
                    port,
                    name,
                    &destinations,
                    &format!("{path}[{i}].port"),
                ));
            }
        }
        findings
    }

    fn destinations(&self, rule: &Rule) -> Vec<(&'a ObjectName, &'a Pod)> {
        let of = |peer: &Peer| match peer {
            Peer::Pods { namespaces, pods } => self.matching(namespaces, pods).collect(),
            Peer::Block { .. } => Vec::new(),
        };
        match rule.peers.as_slice() {
            [] => self
                .state
                .pods
                .iter()
                .filter(|(_, pod)| !pod.finished() && !pod.host_network)
                .collect(),
            peers => peers.iter().flat_map(of).collect(),
        }
    }

    fn unknown_name(
        &self,
        port: &PolicyPort,
        name: &str,
        pods: &[(&ObjectName, &Pod)],
        path: &str,
    ) -> Finding {
        let all = || pods.iter().flat_map(|(_, pod)| &pod.ports);
        let names: BTreeSet<_> = all()
            .filter(|p| p.protocol == port.protocol)
            .filter_map(|p| p.name.as_deref())
            .collect();
        let words = port_words(port);
        let problem = match all().find(|p| p.name.as_deref() == Some(name)) {
            Some(other) => format!(
                "{words} allows nothing: the pods' port `{name}` is {}",
                other.protocol.name()
            ),
            None if names.is_empty() => {
                format!(
                    "{words} allows nothing: the {} that it is about name no such ports",
                    count(pods.len(), "pod")
                )
            }
            None => format!(
                "{words} allows nothing: the {} that it is about call theirs {}",
                count(pods.len(), "pod"),
                listed(names.iter())
            ),
        };
        self.finding(
            Check::UnknownPortName,
            path,
            problem,
            "use the name and protocol that the containers declare, or the number",
        )
    }
}
