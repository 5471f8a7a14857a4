//! V21 without socket hooks: packets of this host's processes to Services arrive through the gate,
//! and answers leave through it.

use proxy_common::net::{IfIndex, Port, Protocol};
use proxy_common::node::{AddressFlags, Device, RangeKind};
use proxy_common::policy::Row;
use proxy_common::reason::Reason;
use proxy_common::service::{Backend, ServiceFlags};
use proxy_ebpf::Action;

use crate::both_families;
use crate::errors::error_about;
use crate::family::LOOPBACK;
use crate::fragments::{cut, join};
use crate::world::*;

mod node_ports;
mod untouched;

both_families!(
    a_process_reaches_a_pod_of_its_node,
    a_process_reaches_a_pod_of_another_node,
    a_process_reaches_another_process_of_its_node,
    connections_from_one_port_by_two_frontends_stay_apart,
    it_is_asked_as_pods_are,
    p18_its_address_is_not_forged_there_and_elsewhere_it_is,
    errors_about_its_packets_reach_it,
    it_is_refused_by_the_gate,
    v13_all_processes_are_one_client,
    p18_whom_this_host_routes_is_judged_by_its_own_address,
);

const FROM: End = (NODE, 40000);
const TO: End = (VIP, 80);

/// Returns a node with the gate, and this backend behind a cluster IP and a nodePort.
fn node<F: Net>(backend: Backend<F::Addr>) -> Node<F> {
    let mut node = Node::<F>::new()
        .with_node_port(0, &[backend])
        .with_cluster_ip(0, &[backend]);
    let eth = node.tables.devices[&ETH];
    node.tables
        .devices
        .insert(GATE, Device { mtu: 65535, ..eth });
    node.tables.config.gate = GATE;
    node.tables.config.least_mtu = 1500;
    for vip in [VIP, OTHER_VIP] {
        node.tables.ranges.insert(
            (F::at(vip), if F::V6 { 128 } else { 32 }),
            RangeKind::SERVICES,
        );
    }
    node
}

fn a_process_reaches_a_pod_of_its_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(POD_A)).isolated();
        let met = node
            .from_gate(&opening::<F>(protocol, FROM, TO))
            .goes(Action::Pod(VETH_A));
        assert_eq!(
            (met.src, met.dst),
            (end::<F>(FROM), end::<F>((POD_A, TARGET))),
            "P18: the own node is let in, as itself"
        );
        let told = node
            .from_pod(VETH_A, &met.answer())
            .goes(Action::Transmit(GATE));
        assert_eq!((told.src, told.dst), (end::<F>(TO), end::<F>(FROM)));
        assert_eq!(node.flows(), (0, 2));
        node.from_gate(&packet::<F>(protocol, FROM, TO))
            .goes(Action::Pod(VETH_A));
    }
}

fn a_process_reaches_a_pod_of_another_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(REMOTE));
        let met = node
            .from_gate(&opening::<F>(protocol, FROM, TO))
            .goes(Action::Neighbour(ETH));
        assert_eq!(
            (met.src.ip(), met.dst),
            (F::ip(NODE), end::<F>((REMOTE, TARGET)))
        );
        assert!((1024..30_000).contains(&met.src.port()), "V12: {met:?}");
        // XDP leaves the answer to tc.
        node.xdp(&met.answer()).untouched();
        let told = node.from_device(&met.answer()).goes(Action::Transmit(GATE));
        assert_eq!((told.src, told.dst), (end::<F>(TO), end::<F>(FROM)));
        node.from_gate(&packet::<F>(protocol, FROM, TO))
            .goes(Action::Neighbour(ETH));
    }
}

/// The backend's answer is addressed to the cluster IP, and arrives by the gate.
fn a_process_reaches_another_process_of_its_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(process::<F>(NODE));
        let met = node
            .from_gate(&opening::<F>(protocol, FROM, TO))
            .goes(Action::Transmit(GATE));
        assert_eq!(
            (met.src.ip(), met.dst),
            (F::ip(VIP), end::<F>((NODE, TARGET)))
        );
        let told = node.from_gate(&met.answer()).goes(Action::Transmit(GATE));
        assert_eq!((told.src, told.dst), (end::<F>(TO), end::<F>(FROM)));
    }
}

fn connections_from_one_port_by_two_frontends_stay_apart<F: Net>() {
    for (backend, way) in [
        (REMOTE, Action::Neighbour(ETH)),
        (NODE, Action::Transmit(GATE)),
    ] {
        let mut node = node::<F>(process::<F>(backend));
        let service = *node.tables.services.values().next().expect("there is one");
        for protocol in PROTOCOLS {
            let key = proxy_common::service::ServiceKey::new(
                F::at(OTHER_VIP),
                proxy_common::net::Port::new(80),
                protocol,
            );
            node.tables.services.insert(key, service);
        }
        node.tables
            .addresses
            .insert(F::at(OTHER_VIP), AddressFlags(AddressFlags::CLUSTER_IP));
        for protocol in PROTOCOLS {
            let [first, second] = [VIP, OTHER_VIP].map(|vip| {
                node.from_gate(&opening::<F>(protocol, FROM, (vip, 80)))
                    .goes(way)
            });
            assert_ne!(first.src, second.src, "{protocol:?}");
            for (met, vip) in [(first, VIP), (second, OTHER_VIP)] {
                let answer = met.answer();
                let hop = if backend == NODE {
                    node.from_gate(&answer)
                } else {
                    node.from_device(&answer)
                };
                let told = hop.goes(Action::Transmit(GATE));
                assert_eq!((told.src, told.dst), (end::<F>((vip, 80)), end::<F>(FROM)));
            }
        }
    }
}

/// V11: externalTrafficPolicy Local does not apply to processes.
fn it_is_asked_as_pods_are<F: Net>() {
    let mut node = node::<F>(pod::<F>(REMOTE)).without_local_backends();
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.flags = ServiceFlags::LOAD_BALANCER | ServiceFlags::LOCAL);
    node.from_gate(&opening::<F>(PROTOCOLS[0], FROM, TO))
        .goes(Action::Neighbour(ETH));
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.flags = ServiceFlags::CLUSTER_IP | ServiceFlags::LOCAL);
    node.from_gate(&opening::<F>(PROTOCOLS[0], (NODE, 40001), TO))
        .dropped(Reason::AwaitLocalBackend);
}

fn p18_its_address_is_not_forged_there_and_elsewhere_it_is<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A))
        .isolated()
        .isolate(Row::CLOSED, Row::CLOSED);
    let syn = opening::<F>(PROTOCOLS[0], FROM, TO);
    node.from_device(&syn).dropped(Reason::ForgedSource);
    node.from_gate(&syn).goes(Action::Pod(VETH_A));
}

/// Errors of the backend come from the frontend's address, by the gate; errors of a router are
/// delivered by the stack.
fn errors_about_its_packets_reach_it<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(REMOTE));
        let met = node
            .from_gate(&opening::<F>(protocol, FROM, TO))
            .goes(Action::Neighbour(ETH));
        for (teller, known_as, way) in [
            (REMOTE, VIP, Action::Transmit(GATE)),
            (NODE2, NODE2, Action::Stack),
        ] {
            let told = node
                .raw_from_device(&error_about::<F>((teller, NODE), &met))
                .tells(way);
            assert_eq!(
                (told.src, told.dst),
                (F::ip(known_as), F::ip(NODE)),
                "{protocol:?}"
            );
        }
    }
}

fn it_is_refused_by_the_gate<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let told = node
        .from_gate(&opening::<F>(PROTOCOLS[0], FROM, (VIP, 81)))
        .refused(GATE);
    assert_eq!((told.src, told.dst), (F::ip(VIP), F::ip(NODE)));
}

const BY_NODE: End = (NODE, NODE_PORT);
/// An address of a load balancer that is no address of this host.
const ELSEWHERE: Dotted = [203, 0, 113, 200];
const PROCESS_PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// Sends a process's packet by `device`, asserts that it enters the gate unchanged, and passes it
/// through there.
fn through<F: Net>(node: &Node<F>, device: IfIndex, packet: &crate::segment::Segment) -> Hop {
    let entered = node.sends(device, packet).goes(Action::Enter(GATE));
    assert_eq!(
        (entered.src, entered.dst),
        (packet.src, packet.dst),
        "nothing is rewritten before"
    );
    node.from_gate(&entered)
}

fn with_elsewhere<F: Net>(backend: Backend<F::Addr>) -> Node<F> {
    let mut node = node::<F>(backend);
    let service = *node.tables.services.values().next().expect("there is one");
    for protocol in PROTOCOLS {
        let key =
            proxy_common::service::ServiceKey::new(F::at(ELSEWHERE), Port::new(443), protocol);
        let flags = ServiceFlags::LOAD_BALANCER;
        node.tables
            .services
            .insert(key, proxy_common::service::Service { flags, ..service });
    }
    node
}

/// V13: the source address of a process does not matter.
fn v13_all_processes_are_one_client<F: Net>() {
    let mut node =
        node::<F>(pod::<F>(POD_A)).with_node_port(0, &[pod::<F>(POD_A), pod::<F>(POD_B)]);
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.affinity = 100);
    let asks = |at, port| {
        node.from_gate(&opening::<F>(Protocol::TCP, (at, port), (at, NODE_PORT)))
            .said
    };
    let first = asks(LOOPBACK, 40000);
    assert!((40001..40020).all(|port| asks(LOOPBACK, port) == first && asks(NODE, port) == first));
}

/// The source is a container without a Pod object, behind a bridge of its own.
fn p18_whom_this_host_routes_is_judged_by_its_own_address<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A)).isolated();
    node.from_gate(&opening::<F>(Protocol::TCP, (CLIENT, 40000), TO))
        .dropped(Reason::DeniedIngress);
    let node = node
        .isolate(ALLOWING, Row::CLOSED)
        .allowing(CLIENT, port_of(TARGET));
    node.from_gate(&opening::<F>(Protocol::TCP, (CLIENT, 40000), TO))
        .goes(Action::Pod(VETH_A));
}
