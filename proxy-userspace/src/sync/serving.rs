//! The backends that UDP flows may lead to, as the sweep of flows gets them (V14).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_common::net::Protocol;

use super::Sync;
use crate::model::State;
use crate::serving::Serving;

impl Sync {
    /// Allows old and new backends until the writes are done. Returns the new ones.
    pub(super) fn announce_serving(&self) -> BTreeMap<Arc<str>, BTreeSet<SocketAddr>> {
        let serving = serving_endpoints(&self.snapshot.state);
        let either = self.serving_by_id(&serving);
        self.outputs.serving.send_if_modified(|now| {
            let Some(before) = now else { return false };
            let both = either.or(before);
            let changed = both != **before;
            *now = Some(Arc::new(both));
            changed
        });
        serving
    }

    /// Allows the new backends only.
    pub(super) fn settle_serving(&self, serving: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>) {
        let now = self.serving_by_id(&serving);
        self.outputs.serving.send_if_modified(|old| {
            let changed = old.as_deref() != Some(&now);
            *old = Some(Arc::new(now));
            changed
        });
    }

    fn serving_by_id(&self, serving: &BTreeMap<Arc<str>, BTreeSet<SocketAddr>>) -> Serving {
        let by_id = |(name, endpoints): (&Arc<str>, &BTreeSet<SocketAddr>)| {
            Some((self.actual.id_of(name)?, endpoints.clone()))
        };
        Serving {
            endpoints: serving.iter().filter_map(by_id).collect(),
            unknown_from: self.actual.next_id(),
        }
    }
}

/// Returns the endpoints that serve each UDP service port, by its name in the kernel (V14).
pub fn serving_endpoints(state: &State) -> BTreeMap<Arc<str>, BTreeSet<SocketAddr>> {
    let udp = state.services.iter().filter(|(_, service)| {
        service
            .ports
            .iter()
            .any(|port| port.protocol == Protocol::UDP)
    });
    let names: BTreeSet<_> = udp.clone().map(|(name, _)| name).collect();
    let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in state
        .slices
        .values()
        .filter(|slice| names.contains(&slice.service))
    {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut serving = BTreeMap::new();
    for (name, service) in udp {
        let slices = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        for port in service
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::UDP)
        {
            let endpoints = crate::compile::serving_endpoints(service, port, slices);
            serving.insert(crate::compile::service_port_name(name, port), endpoints);
        }
    }
    serving
}
