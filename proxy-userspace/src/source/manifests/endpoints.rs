//! Plays the EndpointSlice controller: resolves Services' selectors to slices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{
    EndpointSlice, Family, ObjectName, Pod, Proxied, Service, SliceEndpoint, SlicePort, State,
};

/// Returns slices for the Services with a selector, except for those that have written slices.
pub(super) fn resolve(state: &State) -> Vec<(ObjectName, EndpointSlice)> {
    let written = state.slices_by_service();
    let ours = |name: &ObjectName, s: &Service| {
        s.proxied == Proxied::Yes && !s.selector.is_empty() && !written.contains_key(name)
    };
    let selecting = state
        .services
        .iter()
        .filter(|(name, service)| ours(name, service));
    selecting
        .flat_map(|(name, service)| slices(name, service, state))
        .collect()
}

/// Returns one slice for each family and each set of port numbers that the pods resolve to.
fn slices(name: &ObjectName, service: &Service, state: &State) -> Vec<(ObjectName, EndpointSlice)> {
    let mut groups: BTreeMap<(Family, Vec<Option<u16>>), Vec<SliceEndpoint>> = BTreeMap::new();
    for (_, pod) in state
        .pods_of(name, service)
        .filter(|(_, pod)| !pod.finished())
    {
        let numbers: Vec<_> = service.ports.iter().map(|port| port.on(pod)).collect();
        for family in Family::ALL {
            if let Some(addr) = pod
                .addresses
                .iter()
                .find(|addr| Family::of(**addr) == family)
            {
                groups
                    .entry((family, numbers.clone()))
                    .or_default()
                    .push(endpoint(service, pod, *addr));
            }
        }
    }
    let mut slices = Vec::new();
    for (i, ((family, numbers), endpoints)) in groups.into_iter().enumerate() {
        let ports = service.ports.iter().zip(numbers);
        let ports = ports.filter_map(|(p, number)| {
            Some(SlicePort {
                name: p.name.clone(),
                protocol: p.protocol,
                port: number?,
            })
        });
        let slice = EndpointSlice {
            service: name.clone(),
            ports: ports.collect(),
            family,
            endpoints,
            triggered: None,
        };
        slices.push((
            ObjectName::new(&name.namespace, &format!("{}-{i}", name.name)),
            slice,
        ));
    }
    slices
}

fn endpoint(service: &Service, pod: &Pod, addr: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        addr,
        ready: service.publish_not_ready || (pod.ready && !pod.terminating),
        serving: pod.ready,
        terminating: pod.terminating,
        node: pod.node.clone(),
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
    }
}
