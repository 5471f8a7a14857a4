//! Services to frontends and targets (V1-V7, V11), and the winner of a frontend that two Services
//! claim.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::service::{BackendFlags, ServiceFlags};

use super::conflict::Conflict;
use super::endpoints::{Place, backends, endpoints};
use super::pods::PodNetwork;
use crate::contents::{Frontend, Target};
use crate::model::{
    EndpointSlice, Forwarding, LocalRefusal, ObjectName, Refusal, Service, ServicePort, Snapshot,
    TrafficPolicy, UnixTime,
};

/// V3: returns the clients that may use a Service's load balancer IPs, of both families; empty
/// means all.
pub(super) fn sources(snapshot: &Snapshot, service: &Service) -> Vec<IpNet> {
    if service.source_ranges.is_empty() {
        return Vec::new();
    }
    service
        .source_ranges
        .iter()
        .copied()
        .chain(looped_back(snapshot, service))
        .collect()
}

/// Returns the host's load balancer IPs if the node's own address is allowed: packets from the host
/// to them have them as source.
fn looped_back(snapshot: &Snapshot, service: &Service) -> Vec<IpNet> {
    let own = snapshot
        .state
        .nodes
        .get(&ObjectName::cluster(&snapshot.settings.node_name));
    let own = own
        .into_iter()
        .flat_map(|node| &node.internal_ips)
        .chain(snapshot.links.host_addresses.keys());
    let allowed = |v4: bool| {
        let mut own = own.clone().filter(|ip| ip.is_ipv4() == v4);
        own.any(|ip| service.source_ranges.iter().any(|range| range.contains(ip)))
    };
    let families = [true, false].map(|v4| (v4, allowed(v4)));
    let ips = service
        .load_balancer_ips
        .iter()
        .filter(|ip| families.contains(&(ip.is_ipv4(), true)));
    ips.map(|ip| IpNet::from(*ip)).collect()
}

/// V3: returns true if load balancer IPs of a family are for some sources only. A range of all
/// addresses is no restriction.
fn is_restricted(service: &Service, v4: bool) -> bool {
    let mut ranges = service
        .source_ranges
        .iter()
        .filter(|range| range.addr().is_ipv4() == v4)
        .peekable();
    ranges.peek().is_some() && ranges.all(|range| range.prefix_len() > 0)
}

/// A Service, with all that its frontends depend on.
pub(super) struct Claimant<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) service: &'a Service,
    pub(super) slices: &'a [&'a EndpointSlice],
    pub(super) place: &'a Place<'a>,
    pub(super) pods: &'a PodNetwork,
    pub(super) snapshot: &'a Snapshot,
}

/// A service port's claim to a frontend.
pub(super) struct Claim {
    pub(super) frontend: Frontend,
    pub(super) order: Order,
    pub(super) target: Target,
}

/// The order of claims to one frontend, of which the least wins: cluster IPs before others, then
/// the older Service, then the lesser name, then the order of the object's ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    rank: Rank,
    created: UnixTime,
    pub(super) name: ObjectName,
    number: usize,
}

/// Kinds of frontends. A Service cannot take another one's cluster IP by naming it as external IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// Returns the frontends that a Service claims.
pub(super) fn claims(claimant: &Claimant<'_>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for cluster_ip in &claimant.service.cluster_ips {
        for port in &claimant.service.ports {
            claim_port(claimant, *cluster_ip, port, &mut claims);
        }
    }
    claims
}

/// Adds the frontends of one port in the family of one cluster IP.
fn claim_port(
    claimant: &Claimant<'_>,
    cluster_ip: IpAddr,
    port: &ServicePort,
    claims: &mut Vec<Claim>,
) {
    let Claimant {
        name,
        service,
        slices,
        place,
        pods,
        snapshot,
    } = claimant;
    let v4 = cluster_ip.is_ipv4();
    let options = service.annotations.over(snapshot.settings.service_options);
    let backends = Arc::new(backends(
        service,
        port,
        &endpoints(port, v4, slices),
        place,
        options,
        |addr| {
            if pods.contains(snapshot, addr.ip()) {
                BackendFlags::POD
            } else {
                0
            }
        },
    ));
    let forwarding = match options.forwarding {
        Forwarding::Dsr => ServiceFlags::DSR,
        Forwarding::Masquerade => 0,
    };
    let id = service_port_name(name, port);
    let mut add = |addr: IpAddr, number: u16, rank: Rank| {
        claims.push(Claim {
            frontend: Frontend {
                addr,
                port: number,
                protocol: port.protocol,
            },
            order: Order {
                rank,
                created: service.created.unwrap_or(UnixTime::MAX),
                name: (*name).clone(),
                number: claims.len(),
            },
            target: Target {
                service: id.clone(),
                flags: flags(service, rank, snapshot.settings.local_refusal)
                    | source_flag(service, rank, v4)
                    | forwarding,
                affinity: service.affinity,
                backends: backends.clone(),
            },
        });
    };
    // V20: a node-local cache on the cluster IP keeps it.
    if !snapshot.links.host_addresses.contains_key(&cluster_ip) {
        add(cluster_ip, port.port, Rank::ClusterIp);
    }
    if let Some(number) = port.node_port {
        add(
            if v4 {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            },
            number,
            Rank::NodePort,
        );
    }
    for (ips, rank) in [
        (&service.load_balancer_ips, Rank::LoadBalancer),
        (&service.external_ips, Rank::ExternalIp),
    ] {
        ips.iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .for_each(|ip| add(*ip, port.port, rank));
    }
}

/// Returns `namespace/name:port`, with the port's number if it has no name.
pub fn service_port_name(name: &ObjectName, port: &ServicePort) -> Arc<str> {
    if port.name.is_empty() {
        format!("{name}:{}", port.port).into()
    } else {
        format!("{name}:{}", port.name).into()
    }
}

/// Returns the flags for the frontend's kind, its policy, and its refusal if Local finds no
/// backend.
fn flags(service: &Service, rank: Rank, refusal: LocalRefusal) -> u32 {
    let (kind, policy, refusal) = match rank {
        // Pods retry; a refusal would be taken for the Service's own.
        Rank::ClusterIp => (
            ServiceFlags::CLUSTER_IP,
            service.internal_policy,
            Refusal::Drop,
        ),
        Rank::NodePort => (
            ServiceFlags::NODE_PORT,
            service.external_policy,
            refusal.node_port,
        ),
        Rank::LoadBalancer => (
            ServiceFlags::LOAD_BALANCER,
            service.external_policy,
            refusal.load_balancer,
        ),
        Rank::ExternalIp => (
            ServiceFlags::EXTERNAL_IP,
            service.external_policy,
            refusal.external_ip,
        ),
    };
    match (policy, refusal) {
        (TrafficPolicy::Cluster, _) => kind,
        (TrafficPolicy::Local, Refusal::Reject) => kind | ServiceFlags::LOCAL,
        (TrafficPolicy::Local, Refusal::Drop) => {
            kind | ServiceFlags::LOCAL | ServiceFlags::LOCAL_DROP
        }
    }
}

fn source_flag(service: &Service, rank: Rank, v4: bool) -> u32 {
    if rank == Rank::LoadBalancer && is_restricted(service, v4) {
        ServiceFlags::SOURCE_RANGES
    } else {
        0
    }
}

/// Returns the target that wins a frontend, and the conflicts with the others.
pub(super) fn settle(
    frontend: Frontend,
    claims: &BTreeMap<Order, Target>,
) -> (Option<&Target>, Vec<Conflict>) {
    let mut all = claims.iter();
    let Some((_, winner)) = all.next() else {
        return (None, Vec::new());
    };
    // A Service's own second claim is the load balancer's address, also listed as external IP.
    let losers = all.filter(|(_, target)| target.service != winner.service);
    let conflicts = losers
        .map(|(order, target)| Conflict {
            frontend,
            winner: winner.service.clone(),
            loser: target.service.clone(),
            object: order.name.clone(),
        })
        .collect();
    (Some(winner), conflicts)
}
