//! Whose an address is: pods of this node, pods at all, or neither (P20-P22).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::net::{LocalPod, RangeKind};

use crate::model::{ObjectName, Phase, Pod, Snapshot};

/// The pod network, as far as the cluster's objects tell.
pub(super) struct PodNetwork<'a> {
    owners: BTreeMap<IpAddr, &'a Pod>,
    node_addresses: BTreeSet<IpAddr>,
    prefixes: Vec<IpNet>,
}

impl<'a> PodNetwork<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let state = &snapshot.state;
        let in_host_network = state.pods.values().filter(|pod| pod.host_network).flat_map(|pod| &pod.addresses);
        let nodes = state.nodes.values().flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
        let of_nodes = nodes.chain(in_host_network).chain(snapshot.links.host_addresses.keys());
        let pod_cidrs = state.nodes.values().flat_map(|node| &node.pod_cidrs);
        Self {
            owners: owners(&state.pods),
            node_addresses: of_nodes.copied().collect(),
            prefixes: snapshot.settings.cluster_cidrs.iter().chain(pod_cidrs).copied().collect(),
        }
    }

    /// Whether the address is a pod's on the pod network: a known pod's, or within its prefixes and no node's.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.owners.contains_key(&addr)
            || (!self.node_addresses.contains(&addr) && self.prefixes.iter().any(|prefix| prefix.contains(&addr)))
    }

    /// V11: by which prefixes an address is known as a pod's: those of the pod network but for nodes' addresses, and other nodes' pods
    /// whose addresses are in none.
    pub(super) fn ranges(&self, snapshot: &Snapshot) -> BTreeMap<IpNet, RangeKind> {
        let inside = |addr: &IpAddr| self.prefixes.iter().any(|prefix| prefix.contains(addr));
        let nodes = self.node_addresses.iter().filter(|addr| inside(addr)).map(|addr| (*addr, RangeKind::NONE));
        let elsewhere = |pod: &Pod| pod.node.as_deref() != Some(&*snapshot.settings.node_name);
        let others = self.owners.iter().filter(|(addr, pod)| elsewhere(pod) && !inside(addr));
        let others = others.map(|(addr, _)| (*addr, RangeKind::PODS));
        let prefixes = self.prefixes.iter().map(|prefix| (prefix.trunc(), RangeKind::PODS));
        prefixes.chain(nodes.chain(others).map(|(addr, kind)| (IpNet::from(addr), kind))).collect()
    }

    /// The addresses of this node's pods, with their devices as far as they are found.
    pub(super) fn local(&self, snapshot: &Snapshot) -> BTreeMap<IpAddr, LocalPod> {
        let here = |pod: &Pod| pod.node.as_deref() == Some(&*snapshot.settings.node_name);
        let device = |addr: &IpAddr| snapshot.links.pods.get(addr).copied().unwrap_or_default();
        let local = self.owners.iter().filter(|(_, pod)| here(pod));
        local.map(|(addr, _)| (*addr, LocalPod { device: device(addr) })).collect()
    }
}

/// P20, P22: finished pods own nothing; of several, a running one, then the newest.
fn owners(pods: &BTreeMap<ObjectName, Pod>) -> BTreeMap<IpAddr, &Pod> {
    let mut candidates: Vec<_> = pods.iter().filter(|(_, pod)| !pod.finished() && !pod.host_network).collect();
    candidates.sort_by_key(|(name, pod)| (pod.phase == Phase::Running, pod.created, Reverse(*name)));
    candidates.into_iter().flat_map(|(_, pod)| pod.addresses.iter().map(move |addr| (*addr, pod))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;

    fn pod(addr: &str, phase: Phase, created: i64, node: &str) -> Pod {
        Pod {
            addresses: vec![addr.parse().expect("an address")],
            node: Some(node.into()),
            host_network: false,
            phase,
            terminating: false,
            ready: true,
            unready_because: None,
            labels: Labels::new(),
            ports: Vec::new(),
            created: Some(created),
        }
    }

    fn local(pods: Vec<Pod>) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = "here".into();
        for (i, pod) in pods.into_iter().enumerate() {
            snapshot.state.pods.insert(ObjectName::new("shop", &i.to_string()), pod);
        }
        PodNetwork::new(&snapshot).local(&snapshot).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn p20_finished_pods_hold_no_address() {
        assert!(
            local(vec![pod("10.244.1.2", Phase::Succeeded, 1, "here"), pod("10.244.1.3", Phase::Failed, 1, "here")]).is_empty()
        );
        assert_eq!(local(vec![pod("10.244.1.2", Phase::Running, 1, "here")]), ["10.244.1.2"]);
    }

    #[test]
    fn p22_an_address_is_the_running_pods_then_the_newest() {
        let newer_elsewhere = vec![pod("10.244.1.2", Phase::Running, 1, "here"), pod("10.244.1.2", Phase::Running, 2, "there")];
        assert!(local(newer_elsewhere).is_empty());
        let running_here = vec![pod("10.244.1.2", Phase::Running, 1, "here"), pod("10.244.1.2", Phase::Pending, 2, "there")];
        assert_eq!(local(running_here), ["10.244.1.2"]);
    }

    #[test]
    fn host_network_pods_are_the_node() {
        let mut snapshot = Snapshot::default();
        snapshot.settings.cluster_cidrs = vec!["192.0.2.0/24".parse().expect("a prefix")];
        let host = Pod { host_network: true, ..pod("192.0.2.1", Phase::Running, 1, "here") };
        snapshot.state.pods.insert(ObjectName::new("shop", "host"), host);
        let network = PodNetwork::new(&snapshot);
        assert!(!network.contains("192.0.2.1".parse().expect("an address")));
        assert!(network.contains("192.0.2.2".parse().expect("an address")));
    }
}
