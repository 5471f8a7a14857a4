//! How many backends a Service has on this node, as load balancers ask (V22).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{ObjectName, State};

/// The addresses of the ready endpoints on `node`, by Service; one that has several ports or slices counts once. Terminating ones
/// never count: load balancers have to look elsewhere before the last of them is gone.
pub fn local_ready_endpoints(state: &State, node: &str) -> BTreeMap<ObjectName, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<ObjectName, BTreeSet<IpAddr>> = BTreeMap::new();
    for slice in state.slices.values().filter(|slice| !slice.ports.is_empty()) {
        for endpoint in slice.endpoints.iter().filter(|e| e.ready && e.is_on(node)) {
            found.entry(slice.service.clone()).or_default().insert(endpoint.addr);
        }
    }
    found
}
