//! ipBlocks for clients that arrive with a node's address (P29).

use super::super::Finding;
use super::super::check::Check;
use super::Examined;
use crate::model::policy::Peer;
use crate::model::{
    Annotation, Forwarding, ObjectName, Proxied, Service, TrafficPolicy, Word as _,
};

impl<'a> Examined<'a> {
    /// Finds ipBlocks for clients from outside: those that arrive by another node have its address
    /// here (P29).
    pub(super) fn hidden_clients(&self) -> Vec<Finding> {
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

    /// Returns a Service that forwards clients from outside to the selected pods through any node.
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
