//! Services and their ports, in the terms of the cases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use portway::compile::compile;
use portway::contents::{Contents, Frontend};
use portway::model::{ObjectName, Proxied, Service, ServicePort, Snapshot, State};

use crate::cases::{Place, PortExpect, ServiceCase};
use crate::cluster;
use crate::report::{Tally, Weight};

/// Checks one Service's ports, and that each frontend serves them.
pub fn check(case: &ServiceCase, tally: &mut Tally) -> Result<()> {
    let state = cluster::of(&case.object.iter().cloned().collect::<Vec<_>>())?;
    let found: BTreeMap<_, _> = ports(&state, family_is_v4(&case.config)).collect();
    tally.compare(
        &case.name,
        Weight::Binding,
        &case.expect.service_ports,
        &found,
    );
    let contents = compile(&Snapshot {
        state,
        ..Snapshot::default()
    });
    let missing: Vec<_> = found
        .values()
        .flat_map(|port| missing(port, &contents))
        .collect();
    tally.compare(
        &format!("{}: frontends that are missing", case.name),
        Weight::Binding,
        &Vec::new(),
        &missing,
    );
    Ok(())
}

fn ports(state: &State, v4: bool) -> impl Iterator<Item = (String, PortExpect)> + '_ {
    let served = state
        .services
        .iter()
        .filter(|(_, service)| service.proxied == Proxied::Yes);
    served.flat_map(move |(name, service)| {
        let ip = service
            .cluster_ips
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == v4);
        ip.into_iter().flat_map(move |ip| {
            service
                .ports
                .iter()
                .map(move |port| (port_name(name, port), known(service, port, ip)))
        })
    })
}

fn known(service: &Service, port: &ServicePort, cluster_ip: IpAddr) -> PortExpect {
    let of_family = |ips: &BTreeSet<IpAddr>| {
        ips.iter()
            .filter(|ip| ip.is_ipv4() == cluster_ip.is_ipv4())
            .copied()
            .collect()
    };
    let ranges = service
        .source_ranges
        .iter()
        .filter(|range| range.addr().is_ipv4() == cluster_ip.is_ipv4());
    PortExpect {
        cluster_ip,
        port: port.port,
        protocol: port.protocol.name().to_owned(),
        health_check_node_port: service.health_check_node_port.unwrap_or(0),
        external_ips: of_family(&service.external_ips),
        load_balancer_ips: of_family(&service.load_balancer_ips),
        load_balancer_source_ranges: ranges.map(ToString::to_string).collect(),
    }
}

fn missing(port: &PortExpect, contents: &Contents) -> Vec<Frontend> {
    let Ok(protocol) = crate::packet::protocol(&port.protocol) else {
        return Vec::new();
    };
    let all = port
        .external_ips
        .iter()
        .chain(&port.load_balancer_ips)
        .chain([&port.cluster_ip]);
    let frontends = all.map(|addr| Frontend {
        addr: *addr,
        port: port.port,
        protocol,
    });
    frontends
        .filter(|frontend| !contents.frontends.contains_key(frontend))
        .collect()
}

/// The service ports of a family.
pub fn names(state: &State, config: &Place) -> Result<BTreeSet<String>> {
    Ok(ports(state, family_is_v4(config))
        .map(|(name, _)| name)
        .collect())
}

/// Returns the Services with changed frontends or backends.
pub fn updated(before: &Contents, after: &Contents) -> BTreeSet<String> {
    let one_way = |a: &Contents, b: &Contents| {
        let differing = a
            .frontends
            .iter()
            .filter(|(frontend, target)| b.frontends.get(frontend) != Some(target));
        differing
            .filter_map(|(_, target)| Some(target.service.rsplit_once(':')?.0.to_owned()))
            .collect::<BTreeSet<_>>()
    };
    &one_way(before, after) | &one_way(after, before)
}

/// The healthCheckNodePorts by Service.
pub fn health_check_ports(state: &State) -> BTreeMap<String, u16> {
    let served = state
        .services
        .iter()
        .filter(|(_, service)| service.proxied == Proxied::Yes);
    served
        .filter_map(|(name, service)| Some((name.to_string(), service.health_check_node_port?)))
        .collect()
}

/// `namespace/name:port/PROTOCOL`, without the colon where the port has no name.
pub fn port_name(service: &ObjectName, port: &ServicePort) -> String {
    let colon = if port.name.is_empty() { "" } else { ":" };
    format!("{service}{colon}{}/{}", port.name, port.protocol.name())
}

/// Parses the text of [`port_name`] into Service, port name and protocol.
pub fn split(name: &str) -> Result<(ObjectName, &str, &str)> {
    let (rest, protocol) = name
        .rsplit_once('/')
        .with_context(|| format!("read the service port {name}"))?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    let Some((namespace, service)) = service.split_once('/') else {
        bail!("read the service port {name}")
    };
    Ok((ObjectName::new(namespace, service), port, protocol))
}

/// Returns true unless the case is about IPv6.
pub fn family_is_v4(config: &Place) -> bool {
    config.ip_family.as_deref() != Some("IPv6")
}
