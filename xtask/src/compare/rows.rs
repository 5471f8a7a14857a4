//! Owns the questions: which client asks which frontend by which family and protocol, and which
//! node has to deal with it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::scene::{
    self, Backends, FAR_WAY, NEAR_WAY, PORT, Policy, SERVICES, Service, UNASSIGNED_NODE_PORT, WAYS,
};
use crate::lab::probe::Kind;
use crate::lab::topology::{self, Family};

/// The client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod and the number of its node.
    Pod(&'static str, u8),
    /// The client on the nodes' LAN.
    Near,
    /// The client behind the router.
    Far,
    /// A process of a node, which is also what a hostNetwork pod is: the node's network namespace
    /// and cgroup.
    Process(u8),
    /// A process of the node that no socket hooks serve.
    Unhooked(u8),
}

/// The frontend that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The ClusterIP.
    ClusterIp,
    /// A port of the ClusterIP that the Service does not have.
    UnknownClusterPort,
    /// An address of the Service CIDR that no Service has.
    UnassignedClusterIp,
    /// The nodePort of a node.
    NodePort(u8),
    /// The nodePort at the client's own loopback address.
    Loopback,
    /// A port of a node that is no nodePort.
    UnassignedNodePort(u8),
    /// The external IP that is routed by way of a node.
    ExternalIp(u8),
    /// The LB IP that is routed by way of a node.
    LoadBalancerIp(u8),
    /// A port of that which the Service does not have.
    UnknownLoadBalancerPort(u8),
}

/// The transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP with a long response.
    Bulk,
    /// UDP with datagrams of several fragments.
    LargeUdp,
    /// SCTP, by crafted packets.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Bulk, Self::LargeUdp, Self::Sctp];
}

/// A question to both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The client.
    pub client: Client,
    /// The Service of the frontend.
    pub service: &'static Service,
    /// Which frontend.
    pub target: Target,
    /// By which addresses.
    pub family: Family,
    /// By which transport.
    pub protocol: Protocol,
}

/// The share of the rows that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All rows.
    Full,
    /// About one in twenty.
    Quick,
}

const CLIENTS: [Client; 6] = [
    Client::Pod("client-1", 1),
    Client::Pod("client-3", 3),
    Client::Near,
    Client::Far,
    Client::Process(1),
    Client::Process(3),
];
/// A backend, which may reach itself.
const BACKEND: Client = Client::Pod("web-1", 1);

/// The rows of `extent`, those of one Service, client and target together.
pub fn rows(extent: Extent) -> Vec<Row> {
    let mut rows = Vec::new();
    for service in &SERVICES {
        for client in clients(service) {
            for target in targets(service, client) {
                rows.extend(variants(service, client, target));
            }
        }
    }
    rows.retain(|row| extent == Extent::Full || row.is_quick());
    rows
}

fn clients(service: &Service) -> Vec<Client> {
    let backend = (service.backends == Backends::Pods).then_some(BACKEND);
    CLIENTS.into_iter().chain(backend).collect()
}

fn targets(service: &Service, client: Client) -> Vec<Target> {
    let mut targets = vec![Target::ClusterIp];
    if matches!(client, Client::Process(_)) {
        targets.push(Target::Loopback);
    }
    targets.extend([1, 2, 3].map(Target::NodePort));
    targets.extend(WAYS.map(Target::ExternalIp));
    targets.extend(WAYS.map(Target::LoadBalancerIp));
    if service.name == "cluster" {
        targets.extend([Target::UnknownClusterPort, Target::UnassignedClusterIp]);
        targets.extend(WAYS.map(Target::UnassignedNodePort));
        targets.extend(WAYS.map(Target::UnknownLoadBalancerPort));
    }
    targets
}

fn variants(
    service: &'static Service,
    client: Client,
    target: Target,
) -> impl Iterator<Item = Row> {
    let all = Family::BOTH
        .into_iter()
        .flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol)));
    all.map(move |(family, protocol)| Row {
        client,
        service,
        target,
        family,
        protocol,
    })
    .filter(Row::is_asked)
}

impl Row {
    /// Returns the address that the client asks.
    pub fn addr(&self) -> SocketAddr {
        let (service, family) = (self.service, self.family);
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        match self.target {
            Target::ClusterIp => at(service.cluster_ip(family), PORT),
            Target::UnknownClusterPort => at(service.cluster_ip(family), PORT + 1),
            Target::UnassignedClusterIp => at(scene::unassigned(family), PORT),
            Target::NodePort(n) => at(topology::node(n).of(family), service.node_port()),
            Target::Loopback => match family {
                Family::V4 => at(Ipv4Addr::LOCALHOST.into(), service.node_port()),
                Family::V6 => at(Ipv6Addr::LOCALHOST.into(), service.node_port()),
            },
            Target::UnassignedNodePort(n) => at(topology::node(n).of(family), UNASSIGNED_NODE_PORT),
            Target::ExternalIp(way) => at(service.external_ip(family, way), PORT),
            Target::LoadBalancerIp(way) => at(service.load_balancer_ip(family, way), PORT),
            Target::UnknownLoadBalancerPort(way) => {
                at(service.load_balancer_ip(family, way), PORT + 1)
            }
        }
    }

    /// Returns the kind of question.
    pub fn kind(&self) -> Kind {
        match self.protocol {
            Protocol::Tcp => Kind::Http,
            Protocol::Udp => Kind::Udp,
            Protocol::Bulk => Kind::Bulk,
            Protocol::LargeUdp => Kind::LargeUdp,
            Protocol::Sctp => Kind::Sctp,
        }
    }

    /// Returns true if it is a question of its own: the length of a response matters only where one
    /// comes, and processes have no SCTP sockets here.
    fn is_asked(&self) -> bool {
        match self.protocol {
            Protocol::Tcp | Protocol::Udp => true,
            Protocol::Bulk | Protocol::LargeUdp => {
                matches!(self.service.name, "cluster" | "host") && self.is_served()
            }
            Protocol::Sctp => !self.is_from_process(),
        }
    }

    fn is_served(&self) -> bool {
        !matches!(
            self.target,
            Target::UnknownClusterPort
                | Target::UnassignedClusterIp
                | Target::UnassignedNodePort(_)
                | Target::UnknownLoadBalancerPort(_)
        )
    }

    /// The number of the node that has to deal with it: the one that is addressed, else the
    /// client's own, else the one that it is routed to.
    pub fn asked(&self) -> u8 {
        match (self.target, self.client) {
            (Target::NodePort(n) | Target::UnassignedNodePort(n), _) => n,
            (_, Client::Pod(_, node) | Client::Process(node) | Client::Unhooked(node)) => node,
            (
                Target::ExternalIp(way)
                | Target::LoadBalancerIp(way)
                | Target::UnknownLoadBalancerPort(way),
                _,
            ) => way,
            (_, Client::Near) => NEAR_WAY,
            (_, Client::Far) => FAR_WAY,
        }
    }

    /// Returns true if a process of a node asks, by a socket that its cgroup's hooks may see.
    pub fn is_from_process(&self) -> bool {
        matches!(self.client, Client::Process(_) | Client::Unhooked(_))
    }

    /// Returns true if a process asks that no socket hooks serve.
    pub fn is_unhooked(&self) -> bool {
        matches!(self.client, Client::Unhooked(_))
    }

    /// Returns the same row asked by a process that no socket hooks serve; `None` if no process
    /// asks.
    pub fn unhooked(&self) -> Option<Self> {
        match self.client {
            Client::Process(node) => Some(Self {
                client: Client::Unhooked(node),
                ..*self
            }),
            Client::Pod(..) | Client::Near | Client::Far | Client::Unhooked(_) => None,
        }
    }

    /// Returns true if the client is outside of the cluster.
    pub fn is_from_outside(&self) -> bool {
        matches!(self.client, Client::Near | Client::Far)
    }

    /// Returns true if the client is a pod of the node that is asked.
    pub fn is_from_own_pod(&self) -> bool {
        matches!(self.client, Client::Pod(_, node) if node == self.asked())
    }

    /// Returns true if the client is on the node that is asked: its pod, its process or its
    /// hostNetwork pod.
    pub fn is_from_own_node(&self) -> bool {
        matches!(self.client, Client::Pod(_, node) | Client::Process(node) | Client::Unhooked(node) if node == self.asked())
    }

    /// Returns true if the client is a pod of another node than the one that is asked.
    pub fn is_from_other_pod(&self) -> bool {
        matches!(self.client, Client::Pod(_, node) if node != self.asked())
    }

    /// Returns true if externalTrafficPolicy Local applies.
    pub fn is_external_local(&self) -> bool {
        let external = matches!(
            self.target,
            Target::NodePort(_) | Target::ExternalIp(_) | Target::LoadBalancerIp(_)
        );
        external && self.service.external == Policy::Local
    }

    fn is_quick(&self) -> bool {
        if matches!(
            self.protocol,
            Protocol::Bulk | Protocol::LargeUdp | Protocol::Sctp
        ) {
            let way = match self.client {
                Client::Far | Client::Process(3) => Target::NodePort(3),
                Client::Pod(..) | Client::Near | Client::Process(_) | Client::Unhooked(_) => {
                    Target::ClusterIp
                }
            };
            let client = matches!(
                self.client,
                Client::Far | Client::Process(3) | Client::Pod("client-3", _)
            );
            return self.service.name == "cluster" && client && self.target == way;
        }
        let service = matches!(
            self.service.name,
            "cluster" | "etp-local" | "empty" | "ranges-far"
        );
        let client = matches!(
            self.client,
            Client::Far | Client::Pod("client-3", _) | Client::Process(3)
        );
        let variant = matches!(
            (self.family, self.protocol),
            (Family::V4, Protocol::Tcp) | (Family::V6, Protocol::Udp)
        );
        let rare = matches!(
            self.target,
            Target::NodePort(2) | Target::ExternalIp(_) | Target::UnknownLoadBalancerPort(_)
        );
        service && client && variant && !rare
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name, node) => write!(f, "pod {name} on node{node}"),
            Self::Near => f.write_str("LAN client"),
            Self::Far => f.write_str("routed client"),
            Self::Process(node) => write!(f, "process, hostNetwork pod of node{node}"),
            Self::Unhooked(node) => write!(f, "process of node{node}, no cgroup"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp => f.write_str("ClusterIP"),
            Self::UnknownClusterPort => f.write_str("ClusterIP, unknown port"),
            Self::UnassignedClusterIp => f.write_str("Service CIDR, unassigned"),
            Self::NodePort(n) => write!(f, "nodePort of node{n}"),
            Self::Loopback => f.write_str("nodePort, loopback"),
            Self::UnassignedNodePort(n) => write!(f, "node{n}, no nodePort"),
            Self::ExternalIp(way) => write!(f, "external IP by node{way}"),
            Self::LoadBalancerIp(way) => write!(f, "LB IP by node{way}"),
            Self::UnknownLoadBalancerPort(way) => write!(f, "LB IP by node{way}, unknown port"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} -> {} {:?} {:?}",
            self.service.name, self.client, self.target, self.family, self.protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_rows_are_some_of_all_and_have_every_kind_of_client() {
        let (all, quick) = (rows(Extent::Full), rows(Extent::Quick));
        assert!(quick.len() * 10 < all.len() && quick.iter().all(|row| all.contains(row)));
        let has = |kind: fn(&Row) -> bool| quick.iter().any(kind);
        assert!(
            has(Row::is_from_process)
                && has(Row::is_from_own_pod)
                && has(Row::is_from_other_pod)
                && has(Row::is_from_outside)
        );
    }

    #[test]
    fn a_pod_asks_its_own_node_unless_it_addresses_another() {
        let row = |target| Row {
            client: Client::Pod("client-3", 3),
            service: &SERVICES[0],
            target,
            family: Family::V4,
            protocol: Protocol::Tcp,
        };
        assert_eq!(row(Target::LoadBalancerIp(1)).asked(), 3);
        assert_eq!(row(Target::NodePort(1)).asked(), 1);
        assert!(
            row(Target::NodePort(1)).is_from_other_pod()
                && row(Target::ClusterIp).is_from_own_pod()
        );
    }
}
