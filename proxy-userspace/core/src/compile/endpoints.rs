//! Endpoints of service ports, and the sets for policy Cluster and policy Local (V2, V5-V7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::contents::{Backends, Endpoint};
use crate::model::{
    EndpointSlice, Forwarding, Service, ServiceOptions, ServicePort, SliceEndpoint, TrafficPolicy,
};

/// This node's name and zone, for locality and hints.
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

/// The endpoints of one service port and family, by address.
pub(super) type Endpoints<'a> = BTreeMap<SocketAddr, &'a SliceEndpoint>;

/// V2: returns the endpoints of the slice ports of the same name and protocol. If an address is
/// listed twice, the more useful entry counts.
pub(super) fn endpoints<'a>(
    port: &ServicePort,
    v4: bool,
    slices: &[&'a EndpointSlice],
) -> Endpoints<'a> {
    let usefulness = |e: &SliceEndpoint| (!e.terminating, e.ready, e.serving);
    let mut found: Endpoints<'a> = BTreeMap::new();
    for slice in slices {
        for p in slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
        {
            for endpoint in slice.endpoints.iter().filter(|e| e.addr.is_ipv4() == v4) {
                let kept = found
                    .entry(SocketAddr::new(endpoint.addr, p.port))
                    .or_insert(endpoint);
                if usefulness(endpoint) > usefulness(kept) {
                    *kept = endpoint;
                }
            }
        }
    }
    found
}

/// V2: returns the endpoints of a service port, of either family, with any conditions.
pub fn known_endpoints<'a>(
    port: &ServicePort,
    slices: &[&'a EndpointSlice],
) -> BTreeMap<SocketAddr, &'a SliceEndpoint> {
    endpoints(port, true, slices)
        .into_iter()
        .chain(endpoints(port, false, slices))
        .collect()
}

/// V14: returns the endpoints of a service port, of either family, that answer. Endpoints that the
/// Service publishes before they are ready count as answering, or their flows would end over and
/// over.
pub fn serving_endpoints(
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
) -> BTreeSet<SocketAddr> {
    known_endpoints(port, slices)
        .into_iter()
        .filter(|(_, e)| e.serving || (e.ready && service.publish_not_ready))
        .map(|(addr, _)| addr)
        .collect()
}

/// V7: returns both sets as intervals. The Local set is empty unless a policy of the Service asks
/// for it, or other nodes send clients here for direct server return: such clients must not depend
/// on this node's hints (V6).
pub(super) fn backends(
    service: &Service,
    port: &ServicePort,
    all: &Endpoints,
    place: &Place,
    options: ServiceOptions,
    flags: impl Fn(&SocketAddr) -> u16,
) -> Backends {
    let cluster = cluster_set(all, place);
    let local = if uses_local(service, port) || options.forwarding == Forwarding::Dsr {
        local_set(all, place)
    } else {
        BTreeSet::new()
    };
    let endpoint = |addr: &SocketAddr| Endpoint {
        addr: *addr,
        flags: flags(addr),
    };
    Backends {
        local_only: local.difference(&cluster).map(endpoint).collect(),
        both: local.intersection(&cluster).map(endpoint).collect(),
        cluster_only: cluster.difference(&local).map(endpoint).collect(),
        algorithm: options.algorithm,
    }
}

/// Returns true if a frontend of the port has policy Local.
fn uses_local(service: &Service, port: &ServicePort) -> bool {
    let outside = port.node_port.is_some()
        || !service.external_ips.is_empty()
        || !service.load_balancer_ips.is_empty();
    service.internal_policy == TrafficPolicy::Local
        || (outside && service.external_policy == TrafficPolicy::Local)
}

/// V5, V6.
fn cluster_set(all: &Endpoints, place: &Place) -> BTreeSet<SocketAddr> {
    let hints = hints(all, place);
    let hinted = |e: &SliceEndpoint| match hints {
        Hints::Node => e.node_hints.contains(place.node),
        Hints::Zone => place.zone.is_some_and(|zone| e.zone_hints.contains(zone)),
        Hints::None => true,
    };
    usable(all.iter().filter(|(_, e)| hinted(e) || !e.ready))
}

/// V5. Topology is ignored (V6).
fn local_set(all: &Endpoints, place: &Place) -> BTreeSet<SocketAddr> {
    usable(all.iter().filter(|(_, e)| e.is_on(place.node)))
}

/// V5: returns the ready endpoints; if there are none, those that serve while they terminate.
fn usable<'a>(
    endpoints: impl Iterator<Item = (&'a SocketAddr, &'a &'a SliceEndpoint)> + Clone,
) -> BTreeSet<SocketAddr> {
    let which = |wanted: fn(&SliceEndpoint) -> bool| {
        endpoints
            .clone()
            .filter(move |(_, e)| wanted(e))
            .map(|(a, _)| *a)
    };
    let ready: BTreeSet<_> = which(|e| e.ready).collect();
    if ready.is_empty() {
        which(|e| e.serving && e.terminating).collect()
    } else {
        ready
    }
}

/// The hints that apply.
enum Hints {
    Node,
    Zone,
    None,
}

/// V6: hints apply if every ready endpoint has one and at least one matches. Node hints come first.
fn hints(all: &Endpoints, place: &Place) -> Hints {
    let ready = || all.values().filter(|e| e.ready);
    let in_zone = |e: &&&SliceEndpoint| place.zone.is_some_and(|zone| e.zone_hints.contains(zone));
    if ready().all(|e| !e.node_hints.is_empty())
        && ready().any(|e| e.node_hints.contains(place.node))
    {
        Hints::Node
    } else if ready().all(|e| !e.zone_hints.is_empty()) && ready().any(|e| in_zone(&e)) {
        Hints::Zone
    } else {
        Hints::None
    }
}
