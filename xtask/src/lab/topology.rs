//! Describes a lab before it exists: how it is wired, which nodes and pods it has, and which
//! address everything gets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use super::family::Family;

use super::dns::Record;

/// Wiring of pods to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wiring {
    /// A routed veth per pod and a gateway that only the node's proxy ARP answers for, as Calico
    /// does.
    PointToPoint,
    /// A bridge `cni0` that has the pods' gateway address, as flannel and the bridge CNI plugin do.
    Bridge,
}

/// Connection of the nodes to other nodes' pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Join {
    /// A route by way of the other node's address.
    Routes,
    /// A device `flannel.1` with permanent neighbours, as flannel does; pods have an MTU of 1450.
    Vxlan,
}

/// The nodes' devices on the LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// One device.
    Plain,
    /// A bridge that the device is a port of, as hosts of virtual machines have.
    Bridge,
    /// A VLAN of the device.
    Vlan,
    /// A bond of two devices, one of them in use.
    Bond,
}

impl Uplink {
    /// The device that has the node's addresses.
    pub fn device(self) -> &'static str {
        match self {
            Self::Plain => "eth0",
            Self::Bridge => "br-lan",
            Self::Vlan => "eth0.5",
            Self::Bond => "bond0",
        }
    }
}

/// The nodes' reverse path filter, for all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpFilter {
    /// No check.
    Off,
    /// The source is reachable by some device: systemd's default.
    Loose,
}

/// The network that a pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A namespace and addresses of its own.
    Pod,
    /// The node's (`hostNetwork: true`).
    Host,
}

/// The service of a pod at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// HTTP/1.1: responds with client and server; `/bytes/N` responds with N bytes.
    Http,
    /// TCP: sends client and server, then echoes.
    TcpEcho,
    /// UDP: sends client and server, and echoes.
    UdpEcho,
    /// DNS over UDP with the pod's records.
    Dns,
}

/// A port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name in the Pod, for named targetPorts.
    pub name: Option<String>,
    /// The port's number.
    pub port: u16,
    /// The service at the port.
    pub serves: Serves,
}

/// A pod to be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// `metadata.name`; the pod's server answers with it.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Its container's ports.
    pub ports: Vec<PortSpec>,
    /// The network that it uses.
    pub network: Network,
    /// Its records if it serves DNS.
    pub records: Vec<Record>,
}

/// A node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// `metadata.name`.
    pub name: String,
    /// Pods that it starts with.
    pub pods: Vec<PodSpec>,
}

/// A lab to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Wiring of pods to their node.
    pub wiring: Wiring,
    /// Connection of the nodes to other nodes' pods.
    pub join: Join,
    /// The nodes' devices on the LAN.
    pub uplink: Uplink,
    /// The MTU of everything on the LAN and behind it, in bytes.
    pub mtu: u32,
    /// The nodes' reverse path filter.
    pub rp_filter: RpFilter,
    /// The nodes, up to nine.
    pub nodes: Vec<NodeSpec>,
}

impl Topology {
    /// A lab without nodes as yet.
    pub fn new(wiring: Wiring, join: Join) -> Self {
        Self {
            wiring,
            join,
            uplink: Uplink::Plain,
            mtu: 1500,
            rp_filter: RpFilter::Loose,
            nodes: Vec::new(),
        }
    }

    /// Adds a node with `pods`.
    #[must_use]
    pub fn node(mut self, name: &str, pods: Vec<PodSpec>) -> Self {
        self.nodes.push(NodeSpec {
            name: name.to_owned(),
            pods,
        });
        self
    }

    /// Sets what nodes have on the LAN, and the MTU.
    #[must_use]
    pub fn uplink(mut self, uplink: Uplink, mtu: u32) -> Self {
        (self.uplink, self.mtu) = (uplink, mtu);
        self
    }

    /// Sets the nodes' reverse path filter.
    #[must_use]
    pub fn rp_filter(mut self, rp_filter: RpFilter) -> Self {
        self.rp_filter = rp_filter;
        self
    }

    /// The MTU of pods.
    pub fn pod_mtu(&self) -> u32 {
        match self.join {
            Join::Routes => self.mtu,
            Join::Vxlan => self.mtu - 50,
        }
    }
}

impl PodSpec {
    /// A pod in namespace `default` without labels and ports.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            network: Network::Pod,
            records: Vec::new(),
        }
    }

    /// Puts it into a namespace (Kubernetes').
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// Its name, with its namespace's before it unless that is `default`.
    pub fn qualified_name(&self) -> String {
        match self.namespace.as_str() {
            "default" => self.name.clone(),
            namespace => format!("{namespace}.{}", self.name),
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a port without a name.
    #[must_use]
    pub fn serving(mut self, port: u16, serves: Serves) -> Self {
        self.ports.push(PortSpec {
            name: None,
            port,
            serves,
        });
        self
    }

    /// Adds a port with a name.
    #[must_use]
    pub fn serving_as(mut self, name: &str, port: u16, serves: Serves) -> Self {
        self.ports.push(PortSpec {
            name: Some(name.to_owned()),
            port,
            serves,
        });
        self
    }

    /// Adds DNS records.
    #[must_use]
    pub fn knowing(mut self, records: Vec<Record>) -> Self {
        self.records.extend(records);
        self
    }

    /// Lets it use its node's network.
    #[must_use]
    pub fn on_host_network(mut self) -> Self {
        self.network = Network::Host;
        self
    }
}

/// The two addresses of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of one family.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both, IPv4 first, as `status.podIPs` has them.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The client on the nodes' LAN.
pub const NEAR_CLIENT: Addresses = lan(200, 0x200);
/// The router's address on the nodes' LAN: everybody's default gateway.
pub const ROUTER: Addresses = lan(1, 1);
/// The client behind the router.
pub const FAR_CLIENT: Addresses = far(10, 0x10);
/// The router's address on the far client's network.
pub const FAR_ROUTER: Addresses = far(1, 1);

/// The address of the `n`th node, counted from 1.
pub const fn node(n: u8) -> Addresses {
    lan(10 + n, 0x10 + n as u16)
}

/// The address of the `i`th pod, counted from 0, of the `n`th node.
pub const fn pod(n: u8, i: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, n, 10 + i),
        v6: Ipv6Addr::new(0xfd00, 0x244, n as u16, 0, 0, 0, 0, 0x10 + i as u16),
    }
}

/// The first addresses of the `n`th node's pods' networks, 10.244.N.0/24 and fd00:244:N::/64.
pub const fn pod_network(n: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, n, 0),
        v6: Ipv6Addr::new(0xfd00, 0x244, n as u16, 0, 0, 0, 0, 0),
    }
}

/// The address of the bridge `cni0` of the `n`th node.
pub const fn pod_gateway(n: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, n, 1),
        v6: Ipv6Addr::new(0xfd00, 0x244, n as u16, 0, 0, 0, 0, 1),
    }
}

/// An address of the nodes' LAN, 192.0.2.0/24 and 2001:db8:0:1::/64.
const fn lan(v4: u8, v6: u16) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 0, 2, v4),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, v6),
    }
}

/// An address of the far client's network, 198.51.100.0/24 and 2001:db8:0:2::/64.
const fn far(v4: u8, v6: u16) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(198, 51, 100, v4),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, v6),
    }
}
