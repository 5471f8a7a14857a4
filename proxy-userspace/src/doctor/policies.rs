//! NetworkPolicies that do something else than was meant: selectors that match nothing, unknown
//! port names, no way to DNS.

use std::collections::BTreeSet;

use proxy_common::net::Protocol;

use super::Finding;
use super::check::Check;
use super::services::{Hint, count, listed, nearly};
use crate::explain::{Party, Port, Side, Who, dns, judge, peer_words, port_words, selector_words};
use crate::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{
    Annotation, Forwarding, Kind, Labels, NetworkPolicy, ObjectName, ObjectRef, Pod, PortRange,
    Proxied, Service, ServiceOptions, Snapshot, State, TrafficPolicy, Word as _,
};

/// The most letters that a misspelling differs in. Labels that differ in more belong to other pods,
/// which may still come.
const MISSPELT: usize = 2;
/// The port that pods send DNS queries to.
const DNS: Port = Port {
    number: 53,
    protocol: Protocol::UDP,
};

pub(super) fn examine(
    Snapshot {
        state, settings, ..
    }: &Snapshot,
) -> Vec<Finding> {
    let all = state
        .policies
        .iter()
        .map(|(name, policy)| Examined::new(state, settings.service_options, name, policy));
    all.flat_map(|examined| examined.findings()).collect()
}

/// A policy, with the pods that it selects.
struct Examined<'a> {
    state: &'a State,
    options: ServiceOptions,
    object: ObjectRef,
    policy: &'a NetworkPolicy,
    selected: Vec<(&'a ObjectName, &'a Pod)>,
}

impl<'a> Examined<'a> {
    fn new(
        state: &'a State,
        options: ServiceOptions,
        name: &ObjectName,
        policy: &'a NetworkPolicy,
    ) -> Self {
        let own = state
            .pods
            .iter()
            .filter(|(pod, _)| pod.namespace == name.namespace);
        let selected = own
            .filter(|(_, pod)| !pod.finished() && policy.pods.selects(&pod.labels))
            .collect();
        Self {
            state,
            options,
            object: ObjectRef {
                kind: Kind::NetworkPolicy,
                name: name.clone(),
            },
            policy,
            selected,
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.selects_nothing());
        findings.extend(self.host_network());
        for (side, rules, path) in self.directions() {
            for (i, rule) in rules.iter().enumerate() {
                findings.extend(self.peers(rule, &format!("{path}[{i}].{}", peers_field(side))));
                findings.extend(self.port_names(side, rule, &format!("{path}[{i}].ports")));
            }
        }
        findings.extend(self.without_dns());
        findings.extend(self.hidden_clients());
        findings
    }

    fn directions(&self) -> impl Iterator<Item = (Side, &'a [Rule], &'static str)> {
        let NetworkPolicy {
            ingress, egress, ..
        } = self.policy;
        let both = [
            (Side::Ingress, ingress, "spec.ingress"),
            (Side::Egress, egress, "spec.egress"),
        ];
        both.into_iter()
            .filter_map(|(side, rules, path)| Some((side, rules.as_deref()?, path)))
    }

    fn namespace(&self) -> &str {
        &self.object.name.namespace
    }

    fn finding(
        &self,
        check: Check,
        field: impl Into<String>,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding::new(check, &self.object, field, problem, advice)
    }

    /// P3, P5: finds a policy that isolates nobody. An empty selector is meant for pods to come,
    /// and so is one that a Deployment's pods match.
    fn selects_nothing(&self) -> Option<Finding> {
        let selector = &self.policy.pods;
        let own = |name: &ObjectName| *name.namespace == *self.namespace();
        let mut made = self
            .state
            .workloads
            .iter()
            .filter(|(name, _)| own(&name.name));
        if !self.selected.is_empty()
            || selector.requirements.is_empty()
            || made.any(|(_, w)| selector.selects(&w.labels))
        {
            return None;
        }
        let (hint, advice) = self
            .elsewhere()
            .or_else(|| nearly(self.namespace(), &pairs(selector), MISSPELT, self.state))
            .unwrap_or_else(|| {
                (
                    "it isolates nobody".to_owned(),
                    "correct the selector, or create the pods".to_owned(),
                )
            });
        let problem = format!(
            "the selector {} matches no pod of namespace {}; {hint}",
            selector_words(selector),
            self.namespace()
        );
        Some(self.finding(
            Check::PolicySelectsNothing,
            "spec.podSelector",
            problem,
            advice,
        ))
    }

    fn elsewhere(&self) -> Hint {
        let (other, _) = self
            .state
            .pods
            .iter()
            .find(|(_, pod)| self.policy.pods.selects(&pod.labels))?;
        let hint = format!(
            "pod {other} has these labels, but a policy only selects pods of its own namespace"
        );
        Some((
            hint,
            format!(
                "if that pod is meant, move the policy to namespace {}",
                other.namespace
            ),
        ))
    }

    /// P17.
    fn host_network(&self) -> Option<Finding> {
        let (name, _) = self.selected.iter().find(|(_, pod)| pod.host_network)?;
        if self.policy.pods.requirements.is_empty() {
            return None;
        }
        let problem = format!("pod {name} has its node's network, where no policy is enforced");
        let advice = "take hostNetwork from the pod, or guard the node itself";
        Some(self.finding(
            Check::PolicyOnHostNetwork,
            "spec.podSelector",
            problem,
            advice,
        ))
    }

    /// P8-P10: entries that no pod matches.
    fn peers(&self, rule: &Rule, path: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (i, peer) in rule.peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else {
                continue;
            };
            if self.matching(namespaces, pods).next().is_none() && !self.made(namespaces, pods) {
                findings.push(self.peer_without_pods(namespaces, pods, &format!("{path}[{i}]")));
            }
        }
        findings
    }

    fn peer_without_pods(&self, namespaces: &Namespaces, pods: &Selector, path: &str) -> Finding {
        let (hint, advice) = self.peer_hint(namespaces, pods).unwrap_or_else(|| {
            (
                "it lets nobody through".to_owned(),
                "correct the selectors, or create the pods".to_owned(),
            )
        });
        let problem = format!(
            "there is not {}; {hint}",
            peer_words(self.namespace(), namespaces, pods)
        );
        self.finding(Check::PeerMatchesNothing, path, problem, advice)
    }

    fn peer_hint(&self, namespaces: &Namespaces, pods: &Selector) -> Hint {
        match namespaces {
            Namespaces::Own => {
                let elsewhere = self
                    .state
                    .pods
                    .iter()
                    .find(|(_, pod)| pods.selects(&pod.labels) && !pod.host_network);
                let hint = elsewhere.map(|(pod, _)| {
                    let hint = format!("pod {pod} has these labels, but a podSelector alone means the policy's own namespace");
                    let label = format!("kubernetes.io/metadata.name: {}", pod.namespace);
                    (hint, format!("to mean that pod, add to the same entry a namespaceSelector with matchLabels {label}"))
                });
                hint.or_else(|| nearly(self.namespace(), &pairs(pods), MISSPELT, self.state))
            }
            Namespaces::Matching(selector) => {
                let any = self
                    .state
                    .namespaces
                    .values()
                    .any(|namespace| selector.selects(&namespace.labels));
                let all: Vec<_> = self
                    .state
                    .namespaces
                    .keys()
                    .map(|name| &*name.name)
                    .take(8)
                    .collect();
                (!any).then(|| {
                    let hint = format!("no namespace has {}", selector_words(selector));
                    let advice = format!(
                        "label the namespace, or choose it by kubernetes.io/metadata.name: {}",
                        all.join(", ")
                    );
                    (hint, advice)
                })
            }
        }
    }

    /// The pods that a peer means (P10, P17, P20).
    fn matching(
        &self,
        namespaces: &Namespaces,
        pods: &Selector,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
        let state = self.state;
        let counted = state
            .pods
            .iter()
            .filter(|(_, pod)| !pod.finished() && !pod.host_network && pods.selects(&pod.labels));
        counted.filter(|(name, _)| self.means(namespaces, name))
    }

    /// Returns true if a workload makes such pods, though none exists.
    fn made(&self, namespaces: &Namespaces, pods: &Selector) -> bool {
        let all = self.state.workloads.iter();
        all.into_iter().any(|(name, workload)| {
            pods.selects(&workload.labels) && self.means(namespaces, &name.name)
        })
    }

    fn means(&self, namespaces: &Namespaces, name: &ObjectName) -> bool {
        match namespaces {
            Namespaces::Own => *name.namespace == *self.namespace(),
            Namespaces::Matching(selector) => {
                let namespace = self
                    .state
                    .namespaces
                    .get(&ObjectName::cluster(&name.namespace));
                namespace.is_some_and(|namespace| selector.selects(&namespace.labels))
            }
        }
    }

    /// P15: names that no destination pod has.
    fn port_names(&self, side: Side, rule: &Rule, path: &str) -> Vec<Finding> {
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
        let said = port_words(port);
        let problem = match all().find(|p| p.name.as_deref() == Some(name)) {
            Some(other) => format!(
                "{said} allows nothing: the pods' port `{name}` is {}",
                other.protocol.name()
            ),
            None if names.is_empty() => {
                format!(
                    "{said} allows nothing: the {} that it is about name no such ports",
                    count(pods.len(), "pod")
                )
            }
            None => format!(
                "{said} allows nothing: the {} that it is about call theirs {}",
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

    /// Its pods may go somewhere, but cannot ask for names. Where nothing at all is allowed that is
    /// meant.
    fn without_dns(&self) -> Option<Finding> {
        if self.policy.egress.as_ref().is_none_or(Vec::is_empty) {
            return None;
        }
        let servers = dns(self.state);
        let (name, _) = self
            .selected
            .iter()
            .find(|(name, pod)| !pod.host_network && !self.resolves(name, pod, &servers))?;
        let problem = format!(
            "pod {name} may go where this policy says, but cannot resolve names: nothing lets it reach port 53/UDP of the cluster's DNS"
        );
        let advice =
            "add an egress rule with ports 53/UDP and 53/TCP, to the DNS pods or without peers";
        Some(self.finding(Check::EgressBlocksDns, "spec.egress", problem, advice))
    }

    fn resolves(&self, name: &ObjectName, pod: &Pod, servers: &[(Party<'_>, Port)]) -> bool {
        let own = self
            .state
            .policies
            .iter()
            .filter(|(policy, _)| policy.namespace == name.namespace);
        let applicable = own.filter(|(_, policy)| policy.pods.selects(&pod.labels));
        let mut rules = applicable.flat_map(|(_, policy)| policy.egress.iter().flatten());
        // Which addresses a block is for, and where DNS is if its Service is not known, cannot be
        // told: it may be meant for DNS.
        let perhaps = |rule: &Rule| {
            servers.is_empty()
                || rule.peers.is_empty()
                || rule.peers.iter().any(|p| matches!(p, Peer::Block { .. }))
        };
        let admits = |rule: &Rule| rule.ports.is_empty() || rule.ports.iter().any(admits_dns);
        let reaches = |(server, port): &(Party<'_>, Port)| {
            let from = Party {
                addr: pod
                    .addresses
                    .iter()
                    .copied()
                    .find(|a| server.addr.is_some_and(|s| s.is_ipv4() == a.is_ipv4())),
                who: Who::Pod(name, pod),
            };
            judge(self.state, Side::Egress, &from, server, port).allows()
        };
        rules.any(|rule| perhaps(rule) && admits(rule)) || servers.iter().any(reaches)
    }

    /// P29: clients from outside that come in by another node have that node's address here.
    fn hidden_clients(&self) -> Vec<Finding> {
        let Some(service) = self.served_everywhere() else {
            return Vec::new();
        };
        let mut findings = Vec::new();
        for (i, rule) in self.policy.ingress.iter().flatten().enumerate() {
            for (j, peer) in rule.peers.iter().enumerate() {
                if !self.chooses_clients(peer) {
                    continue;
                }
                let problem = format!(
                    "clients of Service {service} that come in by another node than the pod's are seen here with that node's address, \
                     not their own (externalTrafficPolicy: Cluster)"
                );
                let advice = format!(
                    "set externalTrafficPolicy: Local on Service {service}, or annotate it with {}: {}, or allow the nodes' \
                     addresses too",
                    Annotation::FORWARDING.key,
                    Forwarding::Dsr.word()
                );
                findings.push(self.finding(
                    Check::ClientAddressesHidden,
                    format!("spec.ingress[{i}].from[{j}].ipBlock"),
                    problem,
                    advice,
                ));
            }
        }
        findings
    }

    /// A Service that leads clients from outside to its pods by whatever node they ask.
    fn served_everywhere(&self) -> Option<&'a ObjectName> {
        let outside = |s: &Service| {
            let reachable = s.ports.iter().any(|p| p.node_port.is_some())
                || !s.load_balancer_ips.is_empty()
                || !s.external_ips.is_empty();
            let hidden = s.external_policy == TrafficPolicy::Cluster
                && s.annotations.over(self.options).forwarding == Forwarding::Masquerade;
            s.proxied == Proxied::Yes && hidden && reachable
        };
        let picks = |name: &ObjectName, s: &Service| {
            self.state
                .pods_of(name, s)
                .any(|(pod, _)| self.selected.iter().any(|(n, _)| *n == pod))
        };
        self.state
            .services
            .iter()
            .find(|(name, service)| outside(service) && picks(name, service))
            .map(|(name, _)| name)
    }

    /// Returns true if a block distinguishes clients outside: it is neither everything nor part of
    /// the pod network.
    fn chooses_clients(&self, peer: &Peer) -> bool {
        let Peer::Block { cidr, except } = peer else {
            return false;
        };
        let pods = self
            .state
            .nodes
            .values()
            .flat_map(|node| &node.pod_cidrs)
            .any(|pods| pods.contains(cidr) || cidr == pods);
        !pods && (cidr.prefix_len() > 0 || !except.is_empty())
    }
}

fn peers_field(side: Side) -> &'static str {
    match side {
        Side::Ingress => "from",
        Side::Egress => "to",
    }
}

fn admits_dns(port: &PolicyPort) -> bool {
    port.protocol == DNS.protocol
        && match &port.port {
            PortMatch::All | PortMatch::Named(_) => true,
            PortMatch::Range(range) => PortRange::contains(*range, DNS.number),
        }
}

/// The pairs that a selector asks for, as labels are compared.
fn pairs(selector: &Selector) -> Labels {
    let pair = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) if values.len() == 1 => {
            Some((key.clone(), values.first()?.clone()))
        }
        Requirement::In(..)
        | Requirement::NotIn(..)
        | Requirement::Exists(_)
        | Requirement::DoesNotExist(_) => None,
    };
    selector.requirements.iter().filter_map(pair).collect()
}
