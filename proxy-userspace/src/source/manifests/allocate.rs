//! Cluster IPs and nodePorts for Services that ask for none in particular: every agent that reads the same files gives the same.
//!
//! Each comes from a hash of what it is for, so that adding a Service moves no other (unless their hashes meet).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::jiff::Timestamp;

use super::super::args::Ranges;
use crate::model::k8s::{self, Convert};
use crate::model::{Invalid, ObjectRef, PortRange, Update};

/// The Services with everything allocated, or what is wrong with them. A conflict costs the later one.
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
    let mut given = Given::default();
    let mut updates = Vec::new();
    let mut accepted = Vec::new();
    for (object, service) in services {
        match explicit(&object, &service, ranges, &mut given) {
            Ok(()) => accepted.push((object, service)),
            Err(invalid) => updates.push(Update::Invalid(invalid)),
        }
    }
    // Which of two hashes that meet gives way must not depend on when files were written.
    accepted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (object, mut service) in accepted {
        updates.push(match complete(&object, &mut service, ranges, &mut given) {
            Ok(()) => k8s::seen(&service),
            Err(invalid) => Update::Invalid(invalid),
        });
    }
    updates
}

/// The allocated ports and addresses, with their owners.
#[derive(Default)]
struct Given {
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

/// Checks what the API server would check, and takes what the Service names itself.
fn explicit(
    object: &ObjectRef,
    service: &Service,
    ranges: &Ranges,
    given: &mut Given,
) -> Result<(), Invalid> {
    if let Update::Invalid(invalid) = k8s::seen(service) {
        return Err(invalid);
    }
    let spec = service.spec.clone().unwrap_or_default();
    let ports = node_ports(object, &spec, ranges.node_ports, given)?;
    let ips = cluster_ips(object, &spec, given)?;
    given
        .node_ports
        .extend(ports.into_iter().map(|port| (port, object.clone())));
    given
        .cluster_ips
        .extend(ips.into_iter().map(|ip| (ip, object.clone())));
    Ok(())
}

fn node_ports(
    object: &ObjectRef,
    spec: &ServiceSpec,
    range: PortRange,
    given: &Given,
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
        if let Some(other) = given.node_ports.get(&number) {
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
    given: &Given,
) -> Result<Vec<IpAddr>, Invalid> {
    let written = spec
        .cluster_ip
        .iter()
        .chain(spec.cluster_ips.iter().flatten());
    let found: Vec<IpAddr> = written.filter_map(|ip| ip.parse().ok()).collect();
    match found
        .iter()
        .find_map(|ip| Some((ip, given.cluster_ips.get(ip)?)))
    {
        Some((ip, other)) => Err(invalid(
            object,
            "spec.clusterIP",
            format!("{ip} belongs to {other} already"),
        )),
        None => Ok(found),
    }
}

/// Gives what the Service leaves open, as the API server would.
fn complete(
    object: &ObjectRef,
    service: &mut Service,
    ranges: &Ranges,
    given: &mut Given,
) -> Result<(), Invalid> {
    let Some(spec) = &mut service.spec else {
        return Ok(());
    };
    let kind = spec.type_.clone().unwrap_or_default();
    if kind == "ExternalName" {
        return Ok(());
    }
    if spec.cluster_ip.as_deref() != Some("None") {
        give_cluster_ips(object, spec, ranges, given)?;
    }
    if kind == "NodePort"
        || kind == "LoadBalancer" && spec.allocate_load_balancer_node_ports != Some(false)
    {
        give_node_ports(object, spec, ranges.node_ports, given)?;
    }
    Ok(())
}

fn give_cluster_ips(
    object: &ObjectRef,
    spec: &mut ServiceSpec,
    ranges: &Ranges,
    given: &mut Given,
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
        let free = of_family.and_then(|range| free_address(object, range, given));
        let ip = free.ok_or_else(|| {
            invalid(
                object,
                "spec.clusterIP",
                "no cluster IP of its family is free",
            )
        })?;
        given.cluster_ips.insert(ip, object.clone());
        ips.push(ip.to_string());
    }
    spec.cluster_ip = ips.first().cloned();
    spec.cluster_ips = Some(ips);
    Ok(())
}

/// Families by whether they are IPv4, the default family first.
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

/// The API server's order: the lower part, where people choose by hand, comes last.
fn free_address(object: &ObjectRef, range: &IpNet, given: &Given) -> Option<IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(32);
    // Neither the network's own address nor IPv4's broadcast.
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
        .find(|ip| !given.cluster_ips.contains_key(ip))
}

fn give_node_ports(
    object: &ObjectRef,
    spec: &mut ServiceSpec,
    range: PortRange,
    given: &mut Given,
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
            given,
        );
        let number = free.ok_or_else(|| {
            invalid(
                object,
                format!("spec.ports[{i}].nodePort"),
                format!("none is free in {range}"),
            )
        })?;
        given.node_ports.insert(number, object.clone());
        port.node_port = Some(number.into());
    }
    let wants_health_check = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    if wants_health_check && spec.health_check_node_port.is_none_or(|number| number == 0) {
        let free = free_port(&format!("{} health check", object.name), range, given);
        let number = free.ok_or_else(|| {
            invalid(
                object,
                "spec.healthCheckNodePort",
                format!("none is free in {range}"),
            )
        })?;
        given.node_ports.insert(number, object.clone());
        spec.health_check_node_port = Some(number.into());
    }
    Ok(())
}

fn free_port(purpose: &str, range: PortRange, given: &Given) -> Option<u16> {
    let size = u64::from(range.count());
    let reserved = (size / 32).clamp(16, 128).min(size / 2);
    let ports = probe(hash(purpose), reserved, size).map(|offset| range.first + offset as u16);
    ports
        .into_iter()
        .find(|port| !given.node_ports.contains_key(port))
}

/// Offsets to try: `reserved..size` from where the hash points, around, then `0..reserved`.
fn probe(hash: u64, reserved: u64, size: u64) -> impl Iterator<Item = u64> {
    let dynamic = size - reserved;
    (0..dynamic)
        .map(move |i| reserved + (hash % dynamic + i) % dynamic)
        .chain(0..reserved)
}

/// FNV-1a, 64 bits: small, and the same everywhere for ever.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;
    use serde_json::{Value, json};

    fn ranges() -> Ranges {
        let cluster_ips = ["10.96.0.0/12", "fd00:10:96::/112"]
            .map(|p| p.parse().expect("a prefix"))
            .to_vec();
        Ranges {
            node_ports: PortRange {
                first: 30000,
                last: 32767,
            },
            cluster_ips,
        }
    }

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}),
        )
        .expect("a Service")
    }

    fn said(services: Vec<Service>, ranges: &Ranges) -> BTreeMap<String, String> {
        let words = |update| match update {
            Update::Apply(Object::Service(name, s)) => {
                let ports: Vec<_> = s.ports.iter().filter_map(|p| p.node_port).collect();
                (
                    name.name.to_string(),
                    format!("{:?} {ports:?}", s.cluster_ips),
                )
            }
            Update::Invalid(i) => (i.object.name.name.to_string(), i.to_string()),
            other @ (Update::Apply(_)
            | Update::Flawed(..)
            | Update::Delete(_)
            | Update::Synced
            | Update::Connection(_)) => panic!("{other:?}"),
        };
        allocate(services, ranges).into_iter().map(words).collect()
    }

    fn node_port() -> Value {
        json!({"type": "NodePort", "ports": [{"port": 80}]})
    }

    #[test]
    fn every_agent_allocates_the_same_in_whatever_order_files_are_read_and_additions_move_nothing()
    {
        let names: Vec<String> = (0..200).map(|i| format!("web-{i}")).collect();
        let all = said(
            names.iter().map(|n| service(n, node_port())).collect(),
            &ranges(),
        );
        let reversed = said(
            names
                .iter()
                .rev()
                .map(|n| service(n, node_port()))
                .collect(),
            &ranges(),
        );
        assert_eq!(all, reversed);
        let few = said(
            names[..20]
                .iter()
                .map(|n| service(n, node_port()))
                .collect(),
            &ranges(),
        );
        let moved = few.iter().filter(|(name, got)| all[*name] != **got).count();
        assert!(moved <= 2, "{moved} of 20 moved when 180 were added");
        assert_eq!(
            said(vec![service("web", node_port())], &ranges())["web"],
            "[10.104.249.152] [31672]"
        );
    }

    #[test]
    fn what_is_given_is_honoured_first_and_a_conflict_names_both() {
        let explicit = |port: u16| json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": port}]});
        let got = said(
            vec![
                service("b", explicit(30991)),
                service("a", explicit(30080)),
                service("web", node_port()),
            ],
            &ranges(),
        );
        assert_eq!(got["a"], "[10.96.0.10] [30080]");
        assert_eq!(
            got["b"],
            "Service shop/b: spec.clusterIP: 10.96.0.10 belongs to Service shop/a already"
        );
        let twice = said(
            vec![
                service("web", explicit(30080)),
                service(
                    "also",
                    json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30080}]}),
                ),
            ],
            &ranges(),
        );
        assert_eq!(
            twice["web"],
            "Service shop/web: spec.ports[0].nodePort: 30080 belongs to Service shop/also already"
        );
    }

    #[test]
    fn of_two_that_want_one_port_the_one_written_first_has_it_whatever_their_names() {
        let stamped = |name: &str, time: &str| {
            let mut service = service(
                name,
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
            );
            service.metadata.creation_timestamp = Some(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time.parse().expect("a time")),
            );
            service
        };
        let got = said(
            vec![
                stamped("copycat", "2026-01-01T00:00:00.2Z"),
                stamped("web", "2026-01-01T00:00:00.1Z"),
            ],
            &ranges(),
        );
        assert_eq!(
            got["copycat"],
            "Service shop/copycat: spec.ports[0].nodePort: 30080 belongs to Service shop/web already"
        );
    }

    #[test]
    fn two_protocols_of_one_service_may_share_a_node_port() {
        let dns = json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "dns-tcp", "port": 53, "nodePort": 30053}]});
        assert_eq!(
            said(vec![service("dns", dns)], &ranges())["dns"],
            "[10.96.0.10] [30053, 30053]"
        );
    }

    #[test]
    fn mistakes_that_an_api_server_refuses() {
        for (spec, why) in [
            (
                json!({"ports": [{"port": 80, "nodePort": 30080}]}),
                "spec.ports[0].nodePort: a nodePort needs `type: NodePort` (or LoadBalancer)",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
                "spec.ports[0].nodePort: 80 is not in the range of nodePorts, 30000-32767",
            ),
            (
                json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
                "spec.ports[0].name: where there are several ports, each needs a name of its own",
            ),
            (
                json!({"ports": [{"port": 0}]}),
                "spec.ports[0].port: 0 is no port: 1 to 65535",
            ),
        ] {
            assert_eq!(
                said(vec![service("web", spec)], &ranges())["web"],
                format!("Service shop/web: {why}")
            );
        }
    }

    #[test]
    fn families_follow_the_policy() {
        let dual = json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]});
        let both = &said(vec![service("web", dual)], &ranges())["web"];
        assert!(
            both.starts_with("[10.") && both.contains(", fd00:10:96::"),
            "{both}"
        );
        let only_v6 = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
        assert!(
            said(vec![service("web", only_v6.clone())], &ranges())["web"]
                .starts_with("[fd00:10:96::")
        );
        let v4 = Ranges {
            cluster_ips: ranges().cluster_ips[..1].to_vec(),
            ..ranges()
        };
        assert_eq!(
            said(vec![service("web", only_v6)], &v4)["web"],
            "Service shop/web: spec.ipFamilies[0]: no cluster IPs of family IPv6 here"
        );
    }

    #[test]
    fn a_full_range_is_said() {
        let small = Ranges {
            node_ports: PortRange {
                first: 30000,
                last: 30001,
            },
            ..ranges()
        };
        let got = said(
            ["a", "b", "c"].map(|n| service(n, node_port())).to_vec(),
            &small,
        );
        assert_eq!(
            got["c"],
            "Service shop/c: spec.ports[0].nodePort: none is free in 30000-30001"
        );
    }
}
