//! Owns the objects of both sides: the nodes, pods and Services with every address among them, and
//! the routes to these addresses.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::lab::cluster::SERVICE_RANGES;
use crate::lab::topology::{self, Family, Join, PodSpec, Serves, Topology, Wiring};

/// The networks of LB and external IPs, IPv4 first.
pub const ROUTED_NETWORKS: [&str; 2] = ["203.0.113.0/24", "2001:db8:2::/47"];
/// The nodes by which LB and external IPs are routed: one with and one without backends.
pub const WAYS: [u8; 2] = [1, 3];
/// The node by which the LAN client reaches ClusterIPs: one with backends.
pub const NEAR_WAY: u8 = 1;
/// The node by which the routed client reaches ClusterIPs: one without backends.
pub const FAR_WAY: u8 = 3;
/// The port of every Service, of each protocol.
pub const PORT: u16 = 80;
/// Ports of the pods' and of the host's SCTP servers.
const SCTP_PORTS: [u16; 2] = [9899, 9898];
/// The SCTP servers with their ports.
pub const SCTP_SERVERS: [(&str, u16); 3] = [
    ("web-1", SCTP_PORTS[0]),
    ("web-2", SCTP_PORTS[0]),
    ("host-1", SCTP_PORTS[1]),
];
/// The MTU of the last hop to the routed client, which neither it nor the nodes know: that of IPv6
/// at least, in bytes.
pub const NARROW: u32 = 1280;

/// The traffic policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All.
    Cluster,
    /// The node's own.
    Local,
}

/// The backends that a Service selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backends {
    /// Nothing.
    None,
    /// A pod on node1 and one on node2.
    Pods,
    /// A pod on node1's own network.
    Host,
}

/// `loadBalancerSourceRanges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// None.
    Open,
    /// The routed client's network.
    Far,
    /// The pods' networks.
    Pods,
}

/// A Service of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// From 1 to 9; its addresses and its nodePort follow from it.
    pub number: u8,
    /// `metadata.name`.
    pub name: &'static str,
    /// Its backends.
    pub backends: Backends,
    /// `externalTrafficPolicy`.
    pub external: Policy,
    /// `internalTrafficPolicy`.
    pub internal: Policy,
    /// `loadBalancerSourceRanges`.
    pub ranges: Ranges,
}

/// A Service with nothing special, to be varied.
const PLAIN: Service = Service {
    number: 1,
    name: "cluster",
    backends: Backends::Pods,
    external: Policy::Cluster,
    internal: Policy::Cluster,
    ranges: Ranges::Open,
};

/// All Services.
pub const SERVICES: [Service; 9] = [
    PLAIN,
    Service {
        number: 2,
        name: "etp-local",
        external: Policy::Local,
        ..PLAIN
    },
    Service {
        number: 3,
        name: "itp-local",
        internal: Policy::Local,
        ..PLAIN
    },
    Service {
        number: 4,
        name: "empty",
        backends: Backends::None,
        ..PLAIN
    },
    Service {
        number: 5,
        name: "empty-etp-local",
        backends: Backends::None,
        external: Policy::Local,
        ..PLAIN
    },
    Service {
        number: 6,
        name: "ranges-far",
        ranges: Ranges::Far,
        ..PLAIN
    },
    Service {
        number: 7,
        name: "ranges-pods",
        ranges: Ranges::Pods,
        ..PLAIN
    },
    Service {
        number: 8,
        name: "host",
        backends: Backends::Host,
        ..PLAIN
    },
    Service {
        number: 9,
        name: "host-etp-local",
        backends: Backends::Host,
        external: Policy::Local,
        ..PLAIN
    },
];

/// An address of the Service ranges that no Service has.
pub fn unassigned(family: Family) -> IpAddr {
    cluster_ip(family, 250)
}

/// A nodePort that no Service has.
pub const UNASSIGNED_NODE_PORT: u16 = 30999;

impl Service {
    /// Its endpoints, as pod and number of the node.
    pub fn endpoints(&self) -> &'static [(&'static str, u8)] {
        match self.backends {
            Backends::None => &[],
            Backends::Pods => &[("web-1", 1), ("web-2", 2)],
            Backends::Host => &[("host-1", 1)],
        }
    }

    /// Returns true if an endpoint is on the `node`th node.
    pub fn is_on(&self, node: u8) -> bool {
        self.endpoints().iter().any(|(_, at)| *at == node)
    }

    /// Its ClusterIP.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        cluster_ip(family, self.number)
    }

    /// Its nodePort, of each protocol.
    pub fn node_port(&self) -> u16 {
        30000 + u16::from(self.number)
    }

    /// Its LB IP that is routed by way of the `way`th node.
    pub fn load_balancer_ip(&self, family: Family, way: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(203, 0, 113, 10 * self.number + way).into(),
            Family::V6 => {
                Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, self.number.into(), way.into()).into()
            }
        }
    }

    /// Its external IP that is routed by way of the `way`th node.
    pub fn external_ip(&self, family: Family, way: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(203, 0, 113, 100 + 10 * self.number + way).into(),
            Family::V6 => {
                Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, self.number.into(), way.into()).into()
            }
        }
    }

    /// The object without its status.
    pub fn object(&self) -> Value {
        let (app, tcp, udp, sctp) = match self.backends {
            Backends::None => ("nobody", 8080, 5353, SCTP_PORTS[0]),
            Backends::Pods => ("web", 8080, 5353, SCTP_PORTS[0]),
            Backends::Host => ("host", 8088, 8089, SCTP_PORTS[1]),
        };
        let port = |name: &str, protocol: &str, target: u16| json!({ "name": name, "protocol": protocol, "port": PORT, "targetPort": target, "nodePort": self.node_port() });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "type": "LoadBalancer",
                "ipFamilyPolicy": "RequireDualStack",
                "clusterIPs": Family::BOTH.map(|family| self.cluster_ip(family)),
                "clusterIP": self.cluster_ip(Family::V4),
                "externalIPs": self.by_all_ways(Self::external_ip),
                "externalTrafficPolicy": self.external.word(),
                "internalTrafficPolicy": self.internal.word(),
                "loadBalancerSourceRanges": self.ranges.cidrs(),
                "selector": { "app": app },
                "ports": [port("http", "TCP", tcp), port("echo", "UDP", udp), port("assoc", "SCTP", sctp)],
            },
        })
    }

    /// Returns the status that a cloud's controller would write for its load balancer.
    pub fn status(&self) -> Value {
        let ingress = self
            .by_all_ways(Self::load_balancer_ip)
            .into_iter()
            .map(|ip| json!({ "ip": ip }));
        json!({ "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } })
    }

    fn by_all_ways(&self, address: fn(&Self, Family, u8) -> IpAddr) -> Vec<IpAddr> {
        Family::BOTH
            .iter()
            .flat_map(|family| WAYS.map(|way| address(self, *family, way)))
            .collect()
    }
}

impl Policy {
    fn word(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

impl Ranges {
    fn cidrs(self) -> &'static [&'static str] {
        match self {
            Self::Open => &[],
            Self::Far => &["198.51.100.0/24", "2001:db8:0:2::/64"],
            Self::Pods => &["10.244.0.0/16", "fd00:244::/32"],
        }
    }
}

fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 1, number).into(),
        Family::V6 => {
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + u16::from(number)).into()
        }
    }
}

/// Three nodes: the first two have backends, the first and the third have pods that are clients
/// only.
pub fn topology(wiring: Wiring, join: Join) -> Topology {
    let web = |name: &str| {
        PodSpec::new(name)
            .label("app", "web")
            .serving(8080, Serves::Http)
            .serving(5353, Serves::UdpEcho)
    };
    let host = PodSpec::new("host-1")
        .label("app", "host")
        .serving(8088, Serves::Http)
        .serving(8089, Serves::UdpEcho);
    let first = vec![
        web("web-1"),
        PodSpec::new("client-1"),
        host.on_host_network(),
    ];
    let topology = Topology::new(wiring, join).node("node1", first);
    topology
        .node("node2", vec![web("web-2")])
        .node("node3", vec![PodSpec::new("client-3")])
}

/// Lines of `ip` for a router or client that reaches ClusterIPs by way of the `cluster_way`th node,
/// and each LB and external IP by its own.
pub fn routes(cluster_way: u8) -> String {
    let mut script = String::new();
    for (range, family) in SERVICE_RANGES.iter().zip(Family::BOTH) {
        route(&mut script, range, family, cluster_way);
    }
    for service in &SERVICES {
        for (family, way) in Family::BOTH
            .into_iter()
            .flat_map(|family| WAYS.map(|way| (family, way)))
        {
            route(
                &mut script,
                service.load_balancer_ip(family, way),
                family,
                way,
            );
            route(&mut script, service.external_ip(family, way), family, way);
        }
    }
    script
}

/// Writing to a `String` cannot fail.
fn route(script: &mut String, to: impl std::fmt::Display, family: Family, way: u8) {
    let _ = writeln!(
        script,
        "route add {to} via {}",
        topology::node(way).of(family)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_frontends_have_an_address_in_common() {
        let mut all = BTreeSet::new();
        let mut count = 0;
        for (service, family) in SERVICES
            .iter()
            .flat_map(|service| Family::BOTH.map(|family| (service, family)))
        {
            let by_ways = WAYS.iter().flat_map(|way| {
                [
                    service.load_balancer_ip(family, *way),
                    service.external_ip(family, *way),
                ]
            });
            let addresses: Vec<IpAddr> = by_ways.chain([service.cluster_ip(family)]).collect();
            count += addresses.len();
            all.extend(addresses);
        }
        assert_eq!(all.len(), count);
    }
}
