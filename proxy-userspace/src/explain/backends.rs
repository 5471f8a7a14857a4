//! The backends of a Service (P28).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use proxy_common::net::Protocol;

use super::party::{Party, Port};
use super::typed::{End, Target};
use crate::model::{ObjectName, Service, ServicePort, State};

pub(super) fn service_named<'a>(
    state: &'a State,
    name: &ObjectName,
) -> Result<(&'a ObjectName, &'a Service)> {
    state
        .services
        .get_key_value(name)
        .ok_or_else(|| anyhow::anyhow!("no Service {name}"))
}

/// Returns the backends of the cluster's DNS, Service kube-system/kube-dns; none without it.
pub(crate) fn dns(state: &State) -> Vec<(Party<'_>, Port)> {
    let name = ObjectName::new("kube-system", "kube-dns");
    let to = Target {
        end: End::Service(name.clone()),
        port: "53".to_owned(),
        protocol: Protocol::UDP,
    };
    state
        .services
        .get(&name)
        .and_then(|service| backends(state, &name, service, &to).ok())
        .unwrap_or_default()
}

pub(super) fn service_at(state: &State, addr: IpAddr) -> Option<(&ObjectName, &Service)> {
    state
        .services
        .iter()
        .find(|(_, service)| service.cluster_ips.contains(&addr))
}

/// Returns the ready endpoints behind a Service's port, or else those that still serve (P28); of
/// one family if a cluster IP was asked for.
///
/// # Errors
/// If the Service has no such port, or no endpoint.
pub(super) fn backends<'a>(
    state: &'a State,
    name: &ObjectName,
    service: &Service,
    to: &Target,
) -> Result<Vec<(Party<'a>, Port)>> {
    let port = service_port(name, service, to)?;
    let slices = state.slices.values().filter(|slice| slice.service == *name);
    let mut found: BTreeSet<(Readiness, SocketAddr)> = BTreeSet::new();
    for slice in slices {
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
            .map(|p| p.port);
        for number in numbers {
            let endpoints = slice.endpoints.iter().filter(|e| e.ready || e.serving);
            let readiness = |ready: bool| {
                if ready {
                    Readiness::Ready
                } else {
                    Readiness::Serving
                }
            };
            found.extend(endpoints.map(|e| (readiness(e.ready), SocketAddr::new(e.addr, number))));
        }
    }
    let best = found.first().map(|(readiness, _)| *readiness);
    let of_family = |addr: &SocketAddr| !matches!(to.end, End::Address(asked) if asked.is_ipv4() != addr.is_ipv4());
    let chosen = found
        .into_iter()
        .filter(|(readiness, addr)| Some(*readiness) == best && of_family(addr));
    let backends: Vec<_> = chosen
        .map(|(_, addr)| {
            (
                Party::at(state, addr.ip()),
                Port {
                    number: addr.port(),
                    protocol: port.protocol,
                },
            )
        })
        .collect();
    ensure!(
        !backends.is_empty(),
        "Service {name} has no endpoint that is ready: everybody is refused there, whatever policies say"
    );
    Ok(backends)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    Ready,
    Serving,
}

fn service_port<'a>(
    name: &ObjectName,
    service: &'a Service,
    to: &Target,
) -> Result<&'a ServicePort> {
    let is = |p: &&ServicePort| {
        p.protocol == to.protocol && (*p.name == *to.port || to.port.parse() == Ok(p.port))
    };
    if let Some(port) = service.ports.iter().find(is) {
        return Ok(port);
    }
    let port = |p: &ServicePort| match &*p.name {
        "" => format!("{}/{}", p.port, p.protocol.name()),
        name => format!("{}/{} ({name})", p.port, p.protocol.name()),
    };
    let there: Vec<_> = service.ports.iter().map(port).collect();
    let asked: Arc<str> = format!("{}/{}", to.port, to.protocol.name()).into();
    bail!(
        "Service {name} has no port {asked}; it has {}",
        there.join(", ")
    )
}
