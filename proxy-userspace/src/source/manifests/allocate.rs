//! Allocates cluster IPs and nodePorts for Services that name none. Every agent that reads the same
//! files allocates the same.
//!
//! Each comes from a hash of the Service's name, so that a new Service moves no other, unless their
//! hashes collide.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::jiff::Timestamp;

use super::super::args::Ranges;
use crate::model::k8s::{self, Convert};
use crate::model::{Invalid, ObjectRef, PortRange, Update};

/// Returns the Services with everything allocated; an invalid one as [`Update::Invalid`]. Of two
/// Services in conflict the later one is invalid.
pub(super) fn allocate(services: Vec<Service>, ranges: &Ranges) -> Vec<Update> {
    let mut services: Vec<_> = services
        .into_iter()
        .map(|service| (k8s::reference(&service), service))
        .collect();
    let created = |s: &Service| {
        s.metadata()
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MAX, |time| time.0)
    };
    services.sort_by(|(a, x), (b, y)| (created(x), a).cmp(&(created(y), b)));
    let mut taken = Taken::default();
    let mut updates = Vec::new();
    let mut accepted = Vec::new();
    for (object, service) in services {
        match explicit(&object, &service, ranges, &mut taken) {
            Ok(()) => accepted.push((object, service)),
            Err(invalid) => updates.push(Update::Invalid(invalid)),
        }
    }
    // By name: the loser of two hashes that collide must not depend on the files' times.
    accepted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (object, mut service) in accepted {
        updates.push(match complete(&object, &mut service, ranges, &mut taken) {
            Ok(()) => k8s::seen(&service),
            Err(invalid) => Update::Invalid(invalid),
        });
    }
    updates
}

/// The allocated ports and addresses, with their owners.
#[derive(Default)]
struct Taken {
    node_ports: BTreeMap<u16, ObjectRef>,
    cluster_ips: BTreeMap<IpAddr, ObjectRef>,
}

fn invalid(object: &ObjectRef, field: impl Into<String>, why: impl Into<String>) -> Invalid {
    Invalid {
        object: object.clone(),
        field: field.into(),
        why: why.into(),
    }
}

/// Checks a Service as the API server does, and takes the addresses and ports that it names.
fn explicit(
    object: &ObjectRef,
    service: &Service,
    ranges: &Ranges,
    taken: &mut Taken,
) -> Result<(), Invalid> {
    if let Update::Invalid(invalid) = k8s::seen(service) {
        return Err(invalid);
    }
    let spec = service.spec.clone().unwrap_or_default();
    let ports = node_ports(object, &spec, ranges.node_ports, taken)?;
    let ips = cluster_ips(object, &spec, taken)?;
    taken
        .node_ports
        .extend(ports.into_iter().map(|port| (port, object.clone())));
    taken
        .cluster_ips
        .extend(ips.into_iter().map(|ip| (ip, object.clone())));
    Ok(())
}

fn node_ports(
    object: &ObjectRef,
    spec: &ServiceSpec,
    range: PortRange,
    taken: &Taken,
) -> Result<Vec<u16>, Invalid> {
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1
            && (port.name.as_deref().is_none_or(str::is_empty)
                || ports
                    .iter()
                    .filter(|other: &&k8s_openapi::api::core::v1::ServicePort| {
                        other.name == port.name
                    })
                    .count()
                    > 1)
        {
            return Err(invalid(
                object,
                format!("spec.ports[{i}].name"),
                "where there are several ports, each needs a name of its own",
            ));
        }
        let Some(number) = port
            .node_port
            .and_then(|n| u16::try_from(n).ok())
            .filter(|&n| n != 0)
        else {
            continue;
        };
        let field = format!("spec.ports[{i}].nodePort");
        if matches!(
            spec.type_.as_deref(),
            None | Some("ClusterIP" | "ExternalName")
        ) {
            return Err(invalid(
                object,
                field,
                "a nodePort needs `type: NodePort` (or LoadBalancer)",
            ));
        }
        if !range.contains(number) {
            return Err(invalid(
                object,
                field,
                format!("{number} is not in the range of nodePorts, {range}"),
            ));
        }
        if let Some(other) = taken.node_ports.get(&number) {
            return Err(invalid(
                object,
                field,
                format!("{number} belongs to {other} already"),
            ));
        }
        found.push(number);
    }
    Ok(found)
}

fn cluster_ips(
    object: &ObjectRef,
    spec: &ServiceSpec,
    taken: &Taken,
) -> Result<Vec<IpAddr>, Invalid> {
    let written = spec
        .cluster_ip
        .iter()
        .chain(spec.cluster_ips.iter().flatten());
    let found: Vec<IpAddr> = written.filter_map(|ip| ip.parse().ok()).collect();
    match found
        .iter()
        .find_map(|ip| Some((ip, taken.cluster_ips.get(ip)?)))
    {
        Some((ip, other)) => Err(invalid(
            object,
            "spec.clusterIP",
            format!("{ip} belongs to {other} already"),
        )),
        None => Ok(found),
    }
}

/// Allocates the addresses and ports that the Service leaves open, as the API server does.
fn complete(
    object: &ObjectRef,
    service: &mut Service,
    ranges: &Ranges,
    taken: &mut Taken,
) -> Result<(), Invalid> {
    let Some(spec) = &mut service.spec else {
        return Ok(());
    };
    let kind = spec.type_.clone().unwrap_or_default();
    if kind == "ExternalName" {
        return Ok(());
    }
    if spec.cluster_ip.as_deref() != Some("None") {
        allocate_cluster_ips(object, spec, ranges, taken)?;
    }
    if kind == "NodePort"
        || kind == "LoadBalancer" && spec.allocate_load_balancer_node_ports != Some(false)
    {
        allocate_node_ports(object, spec, ranges.node_ports, taken)?;
    }
    Ok(())
}

fn allocate_cluster_ips(
    object: &ObjectRef,
    spec: &mut ServiceSpec,
    ranges: &Ranges,
    taken: &mut Taken,
) -> Result<(), Invalid> {
    let written = spec
        .cluster_ip
        .iter()
        .chain(spec.cluster_ips.iter().flatten())
        .filter(|ip| !ip.is_empty());
    let mut ips: Vec<String> = Vec::new();
    written.for_each(|ip| {
        if !ips.contains(ip) {
            ips.push(ip.clone())
        }
    });
    for v4 in wanted_families(object, spec, ranges)? {
        if ips
            .iter()
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .any(|ip| ip.is_ipv4() == v4)
        {
            continue;
        }
        let of_family = ranges
            .cluster_ips
            .iter()
            .find(|range| range.addr().is_ipv4() == v4);
        let free = of_family.and_then(|range| free_address(object, range, taken));
        let ip = free.ok_or_else(|| {
            invalid(
                object,
                "spec.clusterIP",
                "no cluster IP of its family is free",
            )
        })?;
        taken.cluster_ips.insert(ip, object.clone());
        ips.push(ip.to_string());
    }
    spec.cluster_ip = ips.first().cloned();
    spec.cluster_ips = Some(ips);
    Ok(())
}

/// Returns the families that the Service needs (true: IPv4), the default family first.
fn wanted_families(
    object: &ObjectRef,
    spec: &ServiceSpec,
    ranges: &Ranges,
) -> Result<Vec<bool>, Invalid> {
    let available: Vec<bool> = ranges
        .cluster_ips
        .iter()
        .map(|range| range.addr().is_ipv4())
        .collect();
    let mut wanted = Vec::new();
    for (i, family) in spec.ip_families.iter().flatten().enumerate() {
        let v4 = family == "IPv4";
        if !available.contains(&v4) {
            return Err(invalid(
                object,
                format!("spec.ipFamilies[{i}]"),
                format!("no cluster IPs of family {family} here"),
            ));
        }
        wanted.push(v4);
    }
    let written = spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    match (spec.ip_family_policy.as_deref(), written) {
        (Some("RequireDualStack"), _) if available.len() < 2 => {
            return Err(invalid(
                object,
                "spec.ipFamilyPolicy",
                "there are cluster IPs of one family only",
            ));
        }
        (Some("PreferDualStack" | "RequireDualStack"), _) => wanted.extend(
            available
                .iter()
                .filter(|v4| !wanted.contains(v4))
                .copied()
                .collect::<Vec<_>>(),
        ),
        (_, Some(ip)) if wanted.is_empty() => wanted.push(ip.is_ipv4()),
        _ if wanted.is_empty() => wanted.extend(available.first()),
        _ => {}
    }
    Ok(wanted)
}

/// Returns a free address in the API server's order: the lower part, where people choose by hand,
/// comes last.
fn free_address(object: &ObjectRef, range: &IpNet, taken: &Taken) -> Option<IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(32);
    // Without the network's own address and IPv4's broadcast address.
    let usable = (1u64 << bits) - 2;
    let reserved = (usable / 16).clamp(16, 256).min(usable / 2);
    let family = if range.addr().is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    probe(hash(&format!("{} {family}", object.name)), reserved, usable)
        .map(|offset: u64| match range.network() {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from(u32::from(first) + 1 + offset as u32)),
            IpAddr::V6(first) => {
                IpAddr::V6(Ipv6Addr::from(u128::from(first) + 1 + u128::from(offset)))
            }
        })
        .find(|ip| !taken.cluster_ips.contains_key(ip))
}

fn allocate_node_ports(
    object: &ObjectRef,
    spec: &mut ServiceSpec,
    range: PortRange,
    taken: &mut Taken,
) -> Result<(), Invalid> {
    for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
        if port.node_port.is_some_and(|number| number != 0) {
            continue;
        }
        let [name, protocol] =
            [&port.name, &port.protocol].map(|text| text.as_deref().unwrap_or_default());
        let free = free_port(
            &format!("{} {name} {protocol} {}", object.name, port.port),
            range,
            taken,
        );
        let number = free.ok_or_else(|| {
            invalid(
                object,
                format!("spec.ports[{i}].nodePort"),
                format!("none is free in {range}"),
            )
        })?;
        taken.node_ports.insert(number, object.clone());
        port.node_port = Some(number.into());
    }
    let wants_health_check = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    if wants_health_check && spec.health_check_node_port.is_none_or(|number| number == 0) {
        let free = free_port(&format!("{} health check", object.name), range, taken);
        let number = free.ok_or_else(|| {
            invalid(
                object,
                "spec.healthCheckNodePort",
                format!("none is free in {range}"),
            )
        })?;
        taken.node_ports.insert(number, object.clone());
        spec.health_check_node_port = Some(number.into());
    }
    Ok(())
}

fn free_port(purpose: &str, range: PortRange, taken: &Taken) -> Option<u16> {
    let size = u64::from(range.count());
    let reserved = (size / 32).clamp(16, 128).min(size / 2);
    let ports = probe(hash(purpose), reserved, size).map(|offset| range.first + offset as u16);
    ports
        .into_iter()
        .find(|port| !taken.node_ports.contains_key(port))
}

/// Returns the offsets to try: `reserved..size`, beginning where the hash points and wrapping
/// around, then `0..reserved`.
fn probe(hash: u64, reserved: u64, size: u64) -> impl Iterator<Item = u64> {
    let dynamic = size - reserved;
    (0..dynamic)
        .map(move |i| reserved + (hash % dynamic + i) % dynamic)
        .chain(0..reserved)
}

/// FNV-1a, 64 bits: the same on every host and in every version.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
