//! The node of the scenarios: its addresses, pods, devices and routes, and the hooks that packets
//! meet.

use std::cell::RefCell;

use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::{IfIndex, Port, Protocol, V4, V6};
use proxy_common::node::{AddressFlags, Device, LocalPod, Veth};
use proxy_common::policy::{PodRows, PortRange, PortSet, Row, Word};
use proxy_common::reason::Reason;
use proxy_common::service::{Backend, BackendFlags, ServiceFlags, ServiceKey};
use proxy_ebpf::fake::{Bytes, Flows, Memory};
use proxy_ebpf::parse::ethertype;
use proxy_ebpf::{Action, Route, from_device, from_pod, to_device, to_pod, xdp};

pub use crate::family::{Dotted, End, Net, end};
use crate::segment::{Icmp, Segment};

mod hop;

pub use hop::Hop;
use hop::hop;

/// A client outside.
pub const CLIENT: Dotted = [198, 51, 100, 7];
/// This node.
pub const NODE: Dotted = [192, 0, 2, 1];
/// Another node.
pub const NODE2: Dotted = [192, 0, 2, 2];
/// A pod of this node, behind [`VETH_A`].
pub const POD_A: Dotted = [10, 244, 1, 10];
/// A pod of this node, behind [`VETH_B`].
pub const POD_B: Dotted = [10, 244, 1, 11];
/// A pod of another node.
pub const REMOTE: Dotted = [10, 244, 2, 10];
/// A cluster IP.
pub const VIP: Dotted = [10, 96, 0, 10];
/// Another one.
pub const OTHER_VIP: Dotted = [10, 96, 0, 11];

/// The device towards clients and other nodes.
pub const ETH: IfIndex = IfIndex(2);
/// The gate.
pub const GATE: IfIndex = IfIndex(3);
/// The host side of [`POD_A`]'s veth pair.
pub const VETH_A: IfIndex = IfIndex(11);
/// The host side of [`POD_B`]'s veth pair.
pub const VETH_B: IfIndex = IfIndex(12);
/// Next hop and own MAC address on [`ETH`].
pub const LINK: [u8; 12] = [2, 0, 0, 0, 9, 9, 2, 0, 0, 0, 9, 1];

/// The nodePort of the scenarios.
pub const NODE_PORT: u16 = 30080;
/// The port that backends listen on.
pub const TARGET: u16 = 8080;
/// The row that [`Node::allowing`] fills.
pub const ALLOWING: Row = Row(2);

/// Returns the set with one port number, for every protocol.
pub fn port_of(number: u16) -> PortSet {
    let mut set = PortSet {
        len: 3,
        ..PortSet::default()
    };
    for (range, protocol) in set.ranges.iter_mut().zip(PROTOCOLS) {
        *range = PortRange {
            first: number,
            last: number,
            protocol,
            zero: [0; 3],
        };
    }
    set
}

/// Returns the set of all ports of all protocols.
pub fn everything() -> PortSet {
    PortSet {
        flags: PortSet::EVERYTHING,
        ..PortSet::default()
    }
}

/// All protocols that Services have.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Returns a packet between two ends.
pub fn packet<F: Net>(protocol: Protocol, src: End, dst: End) -> Segment {
    Segment::new(protocol, end::<F>(src), end::<F>(dst))
}

/// Returns the first packet of a connection.
pub fn opening<F: Net>(protocol: Protocol, src: End, dst: End) -> Segment {
    packet::<F>(protocol, src, dst).flags(crate::segment::SYN)
}

/// Returns the key of a packet's flow.
pub fn key<F: Net>(protocol: Protocol, (src, sport): End, (dst, dport): End) -> FlowKey<F::Addr> {
    FlowKey::new(
        protocol,
        F::at(src),
        Port::new(sport),
        F::at(dst),
        Port::new(dport),
    )
}

/// Returns a backend that is a pod.
pub fn pod<F: Net>(dotted: Dotted) -> Backend<F::Addr> {
    Backend {
        addr: F::at(dotted),
        port: Port::new(TARGET),
        flags: BackendFlags::POD,
        generation: 0,
    }
}

/// Returns a backend that is a process of a node.
pub fn process<F: Net>(dotted: Dotted) -> Backend<F::Addr> {
    Backend {
        flags: 0,
        ..pod::<F>(dotted)
    }
}

/// The node under test: its tables, which a scenario fills and reads.
pub struct Node<F: Net> {
    /// The tables.
    pub tables: Memory<F>,
}

#[expect(
    clippy::wrong_self_convention,
    reason = "hooks are named after where packets come from"
)]
impl<F: Net> Node<F> {
    /// Returns a node with two pods, one device, routes to all addresses above, and no Service.
    pub fn new() -> Self {
        let mut tables = Memory::<F>::default();
        let host = AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS);
        tables.addresses.insert(F::at(NODE), host);
        tables.pods.insert(
            F::at(POD_A),
            LocalPod {
                device: VETH_A,
                pod_id: 0,
            },
        );
        tables.pods.insert(
            F::at(POD_B),
            LocalPod {
                device: VETH_B,
                pod_id: 0,
            },
        );
        let (node6, node4) = (V6::at(NODE), V4::at(NODE));
        let eth = Device {
            masquerade6: node6,
            masquerade4: node4,
            node6,
            node4,
            mtu: 1500,
            flags: 0,
        };
        tables.devices.insert(ETH, eth);
        for dotted in [CLIENT, NODE2, REMOTE] {
            tables.routes.insert(
                F::at(dotted),
                Route {
                    device: ETH,
                    neighbour: Some(LINK),
                },
            );
        }
        Self { tables }
    }

    /// Adds a nodePort of every protocol.
    pub fn with_node_port(mut self, flags: u32, backends: &[Backend<F::Addr>]) -> Self {
        let zero = <F::Addr as proxy_common::net::Address>::ZERO;
        let flags = flags | ServiceFlags::NODE_PORT;
        let keys = PROTOCOLS
            .map(|protocol| (ServiceKey::new(zero, Port::new(NODE_PORT), protocol), flags));
        self.tables.serve(1, &keys, backends);
        self
    }

    /// Adds port 80 of [`VIP`], of every protocol.
    pub fn with_cluster_ip(mut self, flags: u32, backends: &[Backend<F::Addr>]) -> Self {
        let flags = flags | ServiceFlags::CLUSTER_IP;
        let keys =
            PROTOCOLS.map(|protocol| (ServiceKey::new(F::at(VIP), Port::new(80), protocol), flags));
        self.tables.serve(2, &keys, backends);
        self.tables
            .addresses
            .insert(F::at(VIP), AddressFlags(AddressFlags::CLUSTER_IP));
        self
    }

    /// Leaves every Service without a backend on this node.
    pub fn without_local_backends(mut self) -> Self {
        self.tables
            .services
            .values_mut()
            .for_each(|service| service.local_len = 0);
        self
    }

    /// Limits the masquerade range to one port.
    pub fn with_masquerade_port(mut self, port: u16) -> Self {
        (
            self.tables.config.masquerade_first,
            self.tables.config.masquerade_len,
        ) = (port, 1);
        self
    }

    /// Lets `seconds` pass.
    pub fn later(&mut self, seconds: u32) {
        self.tables.now += seconds * self.tables.config.hz;
    }

    /// Passes a packet that [`ETH`] received through tc.
    pub fn from_device(&self, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            from_device::<F, _, _>(bytes, &self.tables, ETH)
        })
    }
    /// Passes a process's packet that arrives by [`GATE`] through tc.
    pub fn from_gate(&self, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            from_device::<F, _, _>(bytes, &self.tables, GATE)
        })
    }
    /// Passes bytes that arrive by [`GATE`] through tc.
    pub fn raw_from_gate(&self, bytes: &[u8]) -> Hop {
        hop::<F>(bytes.to_vec(), |bytes| {
            from_device::<F, _, _>(bytes, &self.tables, GATE)
        })
    }
    /// Passes a packet that [`ETH`] received through XDP.
    pub fn xdp(&self, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            xdp::<F, _, _>(bytes, &self.tables, ETH)
        })
    }
    /// Passes bytes that [`ETH`] received through tc.
    pub fn raw_from_device(&self, bytes: &[u8]) -> Hop {
        hop::<F>(bytes.to_vec(), |bytes| {
            from_device::<F, _, _>(bytes, &self.tables, ETH)
        })
    }
    /// Passes a packet that the pod behind `device` sent.
    pub fn from_pod(&self, device: IfIndex, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            from_pod::<F, _, _>(bytes, &self.tables, device)
        })
    }
    /// Passes a packet that the stack forwards to the pod behind `device`.
    pub fn to_pod(&self, device: IfIndex, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            to_pod::<F, _, _>(bytes, &self.tables, device)
        })
    }
    /// Passes a packet of this host's own to the pod behind `device`.
    pub fn own_to_pod(&self, device: IfIndex, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            bytes.from_host = true;
            to_pod::<F, _, _>(bytes, &self.tables, device)
        })
    }
    /// Passes bytes that the pod behind `device` sent, or that the stack forwards to it.
    pub fn raw_at_pod(&self, device: IfIndex, leaves: bool, bytes: &[u8]) -> Hop {
        hop::<F>(bytes.to_vec(), |bytes| match leaves {
            true => from_pod::<F, _, _>(bytes, &self.tables, device),
            false => to_pod::<F, _, _>(bytes, &self.tables, device),
        })
    }

    /// Turns policy on: [`POD_A`] is isolated in both directions, [`POD_B`] is not.
    pub fn isolated(mut self) -> Self {
        for (dotted, device, pod_id) in [(POD_A, VETH_A, 1), (POD_B, VETH_B, 2)] {
            self.tables
                .pods
                .insert(F::at(dotted), LocalPod { device, pod_id });
            self.tables.veths.insert(device, Veth { pod_id, flags: 0 });
        }
        self.tables.config.flags |= Config::POLICY;
        self.isolate(Row::CLOSED, Row::CLOSED)
    }
    /// Sets the rows of [`POD_A`]; [`Self::allowing`] fills the row [`ALLOWING`].
    pub fn isolate(mut self, ingress: Row, egress: Row) -> Self {
        self.tables.rows.insert(1, PodRows { ingress, egress });
        self
    }
    /// Lets [`ALLOWING`] allow this set of ports of one address, and nothing else.
    pub fn allowing(mut self, dotted: Dotted, ports: PortSet) -> Self {
        self.tables.matrix.insert((ALLOWING.0, 1), 2);
        self.tables.port_sets.insert(2, ports);
        let [first, second, third, fourth] = dotted;
        self.tables
            .directory
            .insert((first.into(), second), Word::node(300));
        self.tables.directory.insert((300, third), Word::node(301));
        self.tables.directory.insert((301, fourth), Word::class(1));
        self.tables.exact.insert(F::at(dotted), 1);
        self
    }
    /// Passes a packet that the stack forwards or sends by [`ETH`].
    pub fn to_device(&self, packet: &Segment) -> Hop {
        hop::<F>(packet.bytes(), |bytes| {
            to_device::<F, _, _>(bytes, &self.tables, ETH)
        })
    }
    /// Passes a process's packet, to any destination, as it leaves by `device`.
    pub fn sends(&self, device: IfIndex, packet: &Segment) -> Hop {
        self.raw_sends(device, &packet.bytes())
    }
    /// Passes bytes that a process of this host sends by `device`.
    pub fn raw_sends(&self, device: IfIndex, bytes: &[u8]) -> Hop {
        hop::<F>(bytes.to_vec(), |bytes| {
            bytes.from_host = true;
            to_device::<F, _, _>(bytes, &self.tables, device)
        })
    }
    /// Passes bytes that the stack forwards or sends by [`ETH`].
    pub fn raw_to_device(&self, bytes: &[u8]) -> Hop {
        hop::<F>(bytes.to_vec(), |bytes| {
            to_device::<F, _, _>(bytes, &self.tables, ETH)
        })
    }
    /// Passes bytes through every hook; returns each result.
    pub fn everywhere(&self, bytes: &[u8]) -> [Hop; 5] {
        let tables = &self.tables;
        [
            hop::<F>(bytes.to_vec(), |bytes| xdp::<F, _, _>(bytes, tables, ETH)),
            hop::<F>(bytes.to_vec(), |bytes| {
                from_device::<F, _, _>(bytes, tables, ETH)
            }),
            hop::<F>(bytes.to_vec(), |bytes| {
                from_pod::<F, _, _>(bytes, tables, VETH_A)
            }),
            hop::<F>(bytes.to_vec(), |bytes| {
                to_pod::<F, _, _>(bytes, tables, VETH_A)
            }),
            hop::<F>(bytes.to_vec(), |bytes| {
                to_device::<F, _, _>(bytes, tables, ETH)
            }),
        ]
    }

    /// Returns the number of half-open and of established entries.
    pub fn flows(&self) -> (usize, usize) {
        (
            self.tables.opening.borrow().len(),
            self.tables.established.borrow().len(),
        )
    }
    /// Returns the entry of a flow; panics if the table has none.
    pub fn flow(&self, table: &RefCell<Flows<F>>, key: &FlowKey<F::Addr>) -> Flow<F::Addr> {
        table
            .borrow()
            .get(key)
            .copied()
            .unwrap_or_else(|| panic!("no flow {key:?}"))
    }
}
