//! Answers to load balancers' health checks (V22): port and addresses of each Service, and its
//! endpoints on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addresses::{is_link_local, node_port_addresses};
use crate::model::{NodePortAddresses, ObjectName, Proxied, Service, Snapshot, State, UnixTime};

/// The health check of one Service (V22).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// The addresses that serve it: those that serve nodePorts (V8), of the Service's families.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of its ready endpoints on this node, of both families.
    pub local_endpoints: BTreeSet<IpAddr>,
}

impl HealthCheck {
    /// Returns the number of endpoints for a load balancer that asks at `addr`: those of that
    /// family, so that a dual-stack pod counts once.
    pub fn weight(&self, addr: IpAddr) -> usize {
        self.local_endpoints
            .iter()
            .filter(|endpoint| endpoint.is_ipv4() == addr.is_ipv4())
            .count()
    }
}

/// The health checks of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// Those that are served, by Service.
    pub served: BTreeMap<ObjectName, HealthCheck>,
    /// Services without one, because another Service has their port.
    pub conflicts: Vec<PortConflict>,
}

/// Two Services with the same healthCheckNodePort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortConflict {
    /// The port.
    pub port: u16,
    /// The Service that has it.
    pub winner: ObjectName,
    /// The Service that does not.
    pub loser: ObjectName,
}

impl fmt::Display for PortConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            port,
            winner,
            loser,
        } = self;
        write!(
            f,
            "the health of Service {loser} is not served at port {port}: Service {winner} has it"
        )
    }
}

/// V22. Of two Services with one port the older has it, then the one with the lesser name.
pub fn health_checks(snapshot: &Snapshot) -> HealthChecks {
    let mut asked: Vec<_> = snapshot.state.services.iter().filter_map(asked).collect();
    if asked.is_empty() {
        return HealthChecks::default();
    }
    asked.sort_by_key(|(port, name, service)| {
        (*port, service.created.unwrap_or(UnixTime::MAX), *name)
    });
    let addresses = listen_addresses(snapshot);
    let mut local = local_ready_endpoints(&snapshot.state, &snapshot.settings.node_name);
    let mut owners: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    let mut checks = HealthChecks::default();
    for (port, name, service) in asked {
        if let Some(winner) = owners.get(&port) {
            checks.conflicts.push(PortConflict {
                port,
                winner: (*winner).clone(),
                loser: name.clone(),
            });
            continue;
        }
        owners.insert(port, name);
        let local_endpoints = local.remove(name).unwrap_or_default();
        let check = HealthCheck {
            port,
            addresses: of_families(&addresses, service),
            local_endpoints,
        };
        checks.served.insert(name.clone(), check);
    }
    checks
}

fn asked<'a>(
    (name, service): (&'a ObjectName, &'a Service),
) -> Option<(u16, &'a ObjectName, &'a Service)> {
    let port = service
        .health_check_node_port
        .filter(|_| service.proxied == Proxied::Yes)?;
    Some((port, name, service))
}

fn of_families(addresses: &BTreeSet<IpAddr>, service: &Service) -> BTreeSet<IpAddr> {
    addresses
        .iter()
        .copied()
        .filter(|addr| {
            service
                .cluster_ips
                .iter()
                .any(|ip| ip.is_ipv4() == addr.is_ipv4())
        })
        .collect()
}

/// V8, restricted to addresses of this host: an ExternalIP often belongs to another host that
/// translates it. Loopback is included if the operator's prefixes contain it, for processes of this
/// host. Link-local addresses are not: listening there needs a device, and no load balancer asks
/// there.
fn listen_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let mut addresses = node_port_addresses(snapshot);
    addresses
        .retain(|addr| !is_link_local(*addr) && snapshot.links.host_addresses.contains_key(addr));
    if let NodePortAddresses::Within(prefixes) = &snapshot.settings.nodeport_addresses {
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ];
        addresses.extend(
            loopback
                .into_iter()
                .filter(|addr| prefixes.iter().any(|prefix| prefix.contains(addr))),
        );
    }
    addresses
}

/// Returns the ready endpoints on `node`, by Service. An endpoint with several ports or slices
/// counts once. Terminating ones never count: load balancers must choose other nodes before the
/// last of them is gone.
pub fn local_ready_endpoints(state: &State, node: &str) -> BTreeMap<ObjectName, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<ObjectName, BTreeSet<IpAddr>> = BTreeMap::new();
    for slice in state
        .slices
        .values()
        .filter(|slice| !slice.ports.is_empty())
    {
        let here = slice.endpoints.iter().filter(|e| e.ready && e.is_on(node));
        for endpoint in here {
            found
                .entry(slice.service.clone())
                .or_default()
                .insert(endpoint.addr);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        EndpointSlice, Family, Labels, ServiceAnnotations, SliceEndpoint, SlicePort, TrafficPolicy,
    };
    use proxy_common::net::{Device, IfIndex, Protocol};

    fn endpoint(addr: &str, node: &str) -> SliceEndpoint {
        SliceEndpoint {
            addr: ip(addr),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node.into()),
            zone_hints: BTreeSet::new(),
            node_hints: BTreeSet::new(),
        }
    }

    fn slice(
        family: Family,
        ports: &[(&str, u16)],
        endpoints: Vec<SliceEndpoint>,
    ) -> EndpointSlice {
        let ports = ports.iter().map(|(name, port)| SlicePort {
            name: (*name).into(),
            protocol: Protocol::TCP,
            port: *port,
        });
        EndpointSlice {
            service: name("web"),
            ports: ports.collect(),
            family,
            endpoints,
            triggered: None,
        }
    }

    /// Two ready endpoints on this node, one of each family; one that terminates; one on another
    /// node.
    fn slices() -> [(ObjectName, EndpointSlice); 2] {
        let terminating = SliceEndpoint {
            ready: false,
            terminating: true,
            ..endpoint("10.244.1.3", "n1")
        };
        let v4 = vec![
            endpoint("10.244.1.2", "n1"),
            terminating,
            endpoint("10.244.2.2", "n2"),
        ];
        let v6 = vec![endpoint("fd00:244:1::2", "n1")];
        [
            (
                name("web-1"),
                slice(Family::V4, &[("a", 80), ("b", 81)], v4),
            ),
            (name("web-2"), slice(Family::V6, &[("a", 80)], v6)),
        ]
    }

    fn service(created: UnixTime, port: u16, cluster_ips: &[&str]) -> Service {
        Service {
            proxied: Proxied::Yes,
            cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            source_ranges: BTreeSet::new(),
            ports: Vec::new(),
            selector: Labels::new(),
            external_policy: TrafficPolicy::Local,
            internal_policy: TrafficPolicy::Cluster,
            affinity: 0,
            annotations: ServiceAnnotations::default(),
            health_check_node_port: Some(port),
            publish_not_ready: false,
            created: Some(created),
        }
    }

    fn snapshot<const N: usize>(services: [(&str, Service); N]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = "n1".into();
        snapshot.state.services = services.map(|(text, service)| (name(text), service)).into();
        snapshot.links.devices = [(IfIndex(2), Device::default())].into();
        snapshot.links.host_addresses = ["192.0.2.1", "2001:db8::1", "fe80::1"]
            .map(|text| (ip(text), IfIndex(2)))
            .into();
        snapshot
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| ip(text)).collect()
    }

    #[test]
    fn v22_distinct_local_ready_endpoints_count_per_family() {
        let mut snapshot = snapshot([("web", service(1, 31234, &["10.96.0.1", "fd00:96::1"]))]);
        snapshot.state.slices = slices().into();
        let checks = health_checks(&snapshot);
        let check = &checks.served[&name("web")];
        assert_eq!(
            (check.port, &check.addresses),
            (31234, &ips(&["192.0.2.1", "2001:db8::1"]))
        );
        assert_eq!(check.local_endpoints, ips(&["10.244.1.2", "fd00:244:1::2"]));
        assert_eq!(
            ["192.0.2.1", "2001:db8::1"].map(|text| check.weight(ip(text))),
            [1, 1]
        );
    }

    #[test]
    fn v22_a_service_of_one_family_is_served_at_addresses_of_that_family() {
        let checks = health_checks(&snapshot([("web", service(1, 31234, &["fd00:96::1"]))]));
        let check = &checks.served[&name("web")];
        assert_eq!(
            (&check.addresses, check.local_endpoints.len()),
            (&ips(&["2001:db8::1"]), 0)
        );
    }

    #[test]
    fn v22_of_two_services_with_one_port_the_older_has_it() {
        let checks = health_checks(&snapshot([
            ("a", service(2, 31234, &["10.96.0.1"])),
            ("b", service(1, 31234, &["10.96.0.2"])),
        ]));
        assert_eq!(checks.served.keys().collect::<Vec<_>>(), [&name("b")]);
        assert_eq!(
            checks
                .conflicts
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["the health of Service shop/a is not served at port 31234: Service shop/b has it"]
        );
    }

    #[test]
    fn v8_loopback_only_where_the_operator_says_so() {
        let mut snapshot = snapshot([("web", service(1, 31234, &["10.96.0.1"]))]);
        let mut at = |prefixes: &[&str]| {
            let prefixes = prefixes
                .iter()
                .map(|p| p.parse().expect("a prefix"))
                .collect();
            snapshot.settings.nodeport_addresses = NodePortAddresses::Within(prefixes);
            health_checks(&snapshot).served[&name("web")]
                .addresses
                .clone()
        };
        assert_eq!(at(&["127.0.0.0/8"]), ips(&["127.0.0.1"]));
        assert_eq!(at(&["192.0.2.0/24"]), ips(&["192.0.2.1"]));
        assert_eq!(at(&["0.0.0.0/0"]), ips(&["127.0.0.1", "192.0.2.1"]));
    }
}
