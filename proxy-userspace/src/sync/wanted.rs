//! The inputs of `links`: the addresses, prefixes and pods to look for on this host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Sync;
use crate::health::NodeVitals;
use crate::links::Wanted;
use crate::model::{Kind, Node, Object, ObjectName, Pod, Snapshot, State, Update};

impl Sync {
    /// Sends the current pods and addresses to `links`, and the state of our Node to health.
    pub(super) fn ask_links(&mut self) {
        let Snapshot {
            settings, state, ..
        } = &self.snapshot;
        let before = self.outputs.vitals.borrow().node;
        let vitals = NodeVitals::of(state, &settings.node_name, before);
        self.outputs
            .vitals
            .send_if_modified(|all| std::mem::replace(&mut all.node, vitals) != vitals);
        let now = wanted(&self.snapshot, self.outputs.wanted.borrow().devices.clone());
        self.outputs.wanted.send_if_modified(|wanted| {
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
    }
}

/// Returns true if an update may change the inputs of `links`.
pub(super) fn concerns_links(update: &Update, snapshot: &Snapshot) -> bool {
    match update {
        Update::Apply(Object::Pod(name, pod)) => {
            let ours = Some(&snapshot.settings.node_name);
            pod.node.as_ref() == ours
                || snapshot
                    .state
                    .pods
                    .get(name)
                    .is_some_and(|old| old.node.as_ref() == ours)
        }
        Update::Apply(object) => object.reference().kind == Kind::Node,
        Update::Synced => true,
        other @ (Update::Flawed(..)
        | Update::Delete(_)
        | Update::Invalid(_)
        | Update::Connection(_)) => other
            .object()
            .is_some_and(|object| matches!(object.kind, Kind::Pod | Kind::Node)),
    }
}

/// Returns the inputs of `links`.
fn wanted(snapshot: &Snapshot, devices: Vec<String>) -> Wanted {
    let Snapshot {
        settings, state, ..
    } = snapshot;
    let own = ObjectName::cluster(&settings.node_name);
    let addresses = |node: &Node| {
        if node.internal_ips.is_empty() {
            node.external_ips.clone()
        } else {
            node.internal_ips.clone()
        }
    };
    let others = state
        .nodes
        .iter()
        .filter(|(name, _)| **name != own)
        .flat_map(|(_, node)| &node.pod_cidrs);
    Wanted {
        devices,
        node_addresses: state.nodes.get(&own).map(addresses).unwrap_or_default(),
        pod_cidrs: settings
            .cluster_cidrs
            .iter()
            .chain(others)
            .copied()
            .collect(),
        own_pod_cidrs: state
            .nodes
            .get(&own)
            .map(|node| node.pod_cidrs.clone())
            .unwrap_or_default(),
        pods: local_pods(state, &settings.node_name),
    }
}

/// Returns the addresses of this node's pods, without hostNetwork pods.
fn local_pods(state: &State, node: &Arc<str>) -> BTreeSet<IpAddr> {
    let ours = |pod: &&Pod| pod.node.as_ref() == Some(node) && !pod.host_network && !pod.finished();
    state
        .pods
        .values()
        .filter(ours)
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect()
}
