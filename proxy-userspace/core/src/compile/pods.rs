//! Owners of addresses: pods of this node, other pods, or neither (P20-P22).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, RangeKind};

use crate::model::{ObjectName, Phase, Pod, Snapshot};

/// The pod network by address, as far as the cluster's objects define it.
#[derive(Debug, Default)]
pub(super) struct PodNetwork {
    /// The addresses of each pod.
    addresses: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// The pods that have or had an address, including finished ones and those in the host's
    /// network.
    at: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    /// Addresses of nodes and of this host.
    nodes: BTreeSet<IpAddr>,
    /// The addresses among them that Node objects name.
    announced: BTreeSet<IpAddr>,
    prefixes: BTreeSet<IpNet>,
    /// The lengths of the prefixes: an address is found by one lookup for each length, not by a
    /// search of all nodes' prefixes.
    lengths: BTreeSet<u8>,
}

impl PodNetwork {
    /// Makes the network from nodes and settings, without pods.
    pub(super) fn without_pods(snapshot: &Snapshot) -> Self {
        let nodes = &snapshot.state.nodes;
        let of_nodes = nodes
            .values()
            .flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
        let announced: BTreeSet<IpAddr> = of_nodes.copied().collect();
        let pod_cidrs = nodes.values().flat_map(|node| &node.pod_cidrs);
        let prefixes: BTreeSet<IpNet> = snapshot
            .settings
            .cluster_cidrs
            .iter()
            .chain(pod_cidrs)
            .map(IpNet::trunc)
            .collect();
        Self {
            lengths: prefixes.iter().map(IpNet::prefix_len).collect(),
            prefixes,
            nodes: announced
                .iter()
                .chain(snapshot.links.host_addresses.keys())
                .copied()
                .collect(),
            announced,
            ..Self::default()
        }
    }

    /// Indexes a pod as it is in the snapshot. Returns the addresses that it had and has.
    pub(super) fn update(&mut self, name: &ObjectName, snapshot: &Snapshot) -> Vec<IpAddr> {
        let mut concerned = self.addresses.remove(name).unwrap_or_default();
        for addr in &concerned {
            if let Some(pods) = self.at.get_mut(addr) {
                pods.remove(name);
                if pods.is_empty() {
                    self.at.remove(addr);
                }
            }
        }
        if let Some(pod) = snapshot.state.pods.get(name) {
            pod.addresses
                .iter()
                .for_each(|addr| _ = self.at.entry(*addr).or_default().insert(name.clone()));
            self.addresses.insert(name.clone(), pod.addresses.clone());
            concerned.extend(&pod.addresses);
        }
        concerned
    }

    /// Returns true if a Node object names the address.
    pub(super) fn is_announced(&self, addr: IpAddr) -> bool {
        self.announced.contains(&addr)
    }

    /// Returns the addresses of nodes and of this host.
    pub(super) fn nodes(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.nodes.iter().copied()
    }

    /// Returns the prefixes of the pod network.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.iter().copied()
    }

    /// Returns true if the address is on the pod network: a pod owns it, or it lies in a prefix and
    /// is not a node's.
    pub(super) fn contains(&self, snapshot: &Snapshot, addr: IpAddr) -> bool {
        self.owner(snapshot, addr).is_some()
            || (!self.is_node(snapshot, addr) && self.is_inside(addr))
    }

    /// V11: returns the kind of a single address that differs from its prefixes: a node's inside of
    /// them, or another node's pod's outside.
    pub(super) fn range(&self, snapshot: &Snapshot, addr: IpAddr) -> Option<RangeKind> {
        let inside = self.is_inside(addr);
        if inside && self.is_node(snapshot, addr) {
            Some(RangeKind::NONE)
        } else if !inside
            && self
                .owner(snapshot, addr)
                .is_some_and(|(_, pod)| pod.node.as_deref() != Some(&*snapshot.settings.node_name))
        {
            Some(RangeKind::PODS)
        } else {
            None
        }
    }

    /// Returns the device of this node's pod at an address, [`IfIndex::NONE`] while that is not
    /// found; `None` if there is no such pod.
    pub(super) fn local(&self, snapshot: &Snapshot, addr: IpAddr) -> Option<IfIndex> {
        let (_, owner) = self.owner(snapshot, addr)?;
        let here = owner.node.as_deref() == Some(&*snapshot.settings.node_name);
        here.then(|| snapshot.links.pods.get(&addr).copied().unwrap_or_default())
    }

    /// P20, P22: finished pods own nothing. Of several pods, a running one is the owner, then the
    /// newest.
    pub(super) fn owner<'a>(
        &self,
        snapshot: &'a Snapshot,
        addr: IpAddr,
    ) -> Option<(&'a ObjectName, &'a Pod)> {
        let pods = self
            .pods_at(snapshot, addr)
            .filter(|(_, pod)| pod.on_pod_network());
        pods.max_by_key(|(name, pod)| (pod.phase == Phase::Running, pod.created, Reverse(*name)))
    }

    fn is_node(&self, snapshot: &Snapshot, addr: IpAddr) -> bool {
        self.nodes.contains(&addr)
            || self
                .pods_at(snapshot, addr)
                .any(|(_, pod)| pod.host_network)
    }

    fn is_inside(&self, addr: IpAddr) -> bool {
        self.lengths
            .iter()
            .filter_map(|length| IpNet::new(addr, *length).ok())
            .any(|prefix| self.prefixes.contains(&prefix.trunc()))
    }

    /// Returns the pods with this address in their status.
    pub(super) fn pods_at<'a>(
        &self,
        snapshot: &'a Snapshot,
        addr: IpAddr,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
        self.at
            .get(&addr)
            .into_iter()
            .flatten()
            .filter_map(|name| snapshot.state.pods.get_key_value(name))
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn pod(addr: &str, phase: Phase, created: i64, node: &str) -> Pod {
        Pod {
            addresses: vec![addr.parse().expect("an address")],
            node: Some(node.into()),
            phase,
            ready: true,
            created: Some(created),
            ..Pod::default()
        }
    }

    /// A network with all pods, and their addresses.
    fn network(snapshot: &Snapshot) -> (PodNetwork, BTreeSet<IpAddr>) {
        let mut network = PodNetwork::without_pods(snapshot);
        let addresses = snapshot
            .state
            .pods
            .keys()
            .flat_map(|name| network.update(name, snapshot))
            .collect();
        (network, addresses)
    }

    fn local(pods: Vec<Pod>) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = "here".into();
        for (i, pod) in pods.into_iter().enumerate() {
            snapshot
                .state
                .pods
                .insert(ObjectName::new("shop", &i.to_string()), pod);
        }
        let (network, addresses) = network(&snapshot);
        let local = addresses
            .into_iter()
            .filter(|addr| network.local(&snapshot, *addr).is_some());
        local.map(|addr| addr.to_string()).collect()
    }

    #[test]
    fn p20_finished_pods_hold_no_address() {
        assert!(
            local(vec![
                pod("10.244.1.2", Phase::Succeeded, 1, "here"),
                pod("10.244.1.3", Phase::Failed, 1, "here")
            ])
            .is_empty()
        );
        assert_eq!(
            local(vec![pod("10.244.1.2", Phase::Running, 1, "here")]),
            ["10.244.1.2"]
        );
    }

    #[test]
    fn p22_an_address_is_the_running_pods_then_the_newest() {
        let newer_elsewhere = vec![
            pod("10.244.1.2", Phase::Running, 1, "here"),
            pod("10.244.1.2", Phase::Running, 2, "there"),
        ];
        assert!(local(newer_elsewhere).is_empty());
        let running_here = vec![
            pod("10.244.1.2", Phase::Running, 1, "here"),
            pod("10.244.1.2", Phase::Pending, 2, "there"),
        ];
        assert_eq!(local(running_here), ["10.244.1.2"]);
    }

    #[test]
    fn host_network_pods_are_the_node() {
        let mut snapshot = Snapshot::default();
        snapshot.settings.cluster_cidrs = vec!["192.0.2.0/24".parse().expect("a prefix")];
        let host = Pod {
            host_network: true,
            ..pod("192.0.2.1", Phase::Running, 1, "here")
        };
        snapshot
            .state
            .pods
            .insert(ObjectName::new("shop", "host"), host);
        let (network, _) = network(&snapshot);
        assert!(!network.contains(&snapshot, "192.0.2.1".parse().expect("an address")));
        assert!(network.contains(&snapshot, "192.0.2.2".parse().expect("an address")));
    }
}
