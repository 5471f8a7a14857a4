//! Isolated pods that cannot reach the cluster's DNS.

use proxy_common::net::Protocol;

use super::super::Finding;
use super::super::check::Check;
use super::Examined;
use crate::explain::{Party, Port, Side, Who, dns, judge};
use crate::model::policy::{Peer, PolicyPort, PortMatch, Rule};
use crate::model::{ObjectName, Pod, PortRange};

/// The port that pods send DNS queries to.
const DNS: Port = Port {
    number: 53,
    protocol: Protocol::UDP,
};

impl Examined<'_> {
    /// Finds pods that may send to somewhere, but not to DNS. Where nothing at all is allowed, that
    /// is intended.
    pub(super) fn without_dns(&self) -> Option<Finding> {
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
        // An ipBlock may be meant for DNS, and without the Service the addresses of DNS are
        // unknown.
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
}

fn admits_dns(port: &PolicyPort) -> bool {
    port.protocol == DNS.protocol
        && match &port.port {
            PortMatch::All | PortMatch::Named(_) => true,
            PortMatch::Range(range) => PortRange::contains(*range, DNS.number),
        }
}
