//! V21 where no hooks of sockets are: what processes of this host send to Services comes by the
//! gate, and what answers goes out of it.

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

both_families!(
    a_process_reaches_a_pod_of_its_node,
    a_process_reaches_a_pod_of_another_node,
    a_process_reaches_another_process_of_its_node,
    connections_from_one_port_by_two_frontends_stay_apart,
    it_is_asked_as_pods_are,
    p18_its_address_is_not_forged_there_and_elsewhere_it_is,
    errors_about_its_packets_reach_it,
    it_is_refused_by_the_gate,
    its_node_ports_go_into_the_gate_and_come_back_by_loopback,
    node_ports_by_loopback_reach_pods_by_the_nodes_address,
    a_process_of_its_node_is_reached_by_a_node_port,
    addresses_that_are_elsewhere_are_caught_on_the_way_out,
    what_asks_for_no_service_leaves_as_it_was,
    v21_who_listens_on_loopback_is_not_hidden,
    v21_only_a_process_asks_by_loopback,
    v17_a_new_connection_by_loopback_leads_where_pods_serve,
    fragments_go_into_the_gate_after_their_first,
    errors_about_its_node_ports_go_the_same_way,
    where_sockets_serve_nothing_is_caught,
    a_node_port_without_pods_is_refused_by_loopback,
    what_does_not_fit_is_told_by_loopback,
    who_has_no_address_of_this_host_is_no_process,
    what_comes_from_elsewhere_to_loopback_belongs_to_no_flow,
    v13_all_processes_are_one_client,
    pods_here_get_no_larger_packets_than_any_device_takes,
    what_cannot_be_translated_goes_no_further_than_the_gate,
    p18_whom_this_host_routes_is_judged_by_its_own_address,
);

const FROM: End = (NODE, 40000);
const TO: End = (VIP, 80);

/// A node with the gate, and a cluster IP and a nodePort with such backends.
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
        // XDP leaves it to tc.
        node.xdp(&met.answer()).untouched();
        let told = node.from_device(&met.answer()).goes(Action::Transmit(GATE));
        assert_eq!((told.src, told.dst), (end::<F>(TO), end::<F>(FROM)));
        node.from_gate(&packet::<F>(protocol, FROM, TO))
            .goes(Action::Neighbour(ETH));
    }
}

/// It answers the address that was asked for, by the gate.
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

/// V11: an external policy of Local is not for it.
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

/// Errors from the frontend's address reach it; a router's error comes by the device that it
/// arrived at.
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
/// An address of a load balancer somewhere else.
const ELSEWHERE: Dotted = [203, 0, 113, 200];
const PROCESS_PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// A process sends by `device`, and what that becomes is met in the gate.
fn through<F: Net>(node: &Node<F>, device: IfIndex, packet: &crate::segment::Segment) -> Hop {
    let entered = node.sends(device, packet).goes(Action::Enter(GATE));
    assert_eq!(
        (entered.src, entered.dst),
        (packet.src, packet.dst),
        "nothing is rewritten before"
    );
    node.from_gate(&entered)
}

fn its_node_ports_go_into_the_gate_and_come_back_by_loopback<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(POD_A)).isolated();
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Pod(VETH_A));
        assert_eq!(
            (met.src, met.dst),
            (end::<F>(FROM), end::<F>((POD_A, TARGET))),
            "P18: the own node is let in, as itself"
        );
        let told = node
            .from_pod(VETH_A, &met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(BY_NODE), end::<F>(FROM)));
        through(
            &node,
            IfIndex::LOOPBACK,
            &packet::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Pod(VETH_A));
    }
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(REMOTE));
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Neighbour(ETH));
        assert_eq!(met.src.ip(), F::ip(NODE));
        // What was put into the gate is not put into it again.
        node.to_device(&met).untouched();
        node.xdp(&met.answer()).untouched();
        let told = node
            .from_device(&met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(BY_NODE), end::<F>(FROM)));
    }
}

/// No pod could answer a loopback address.
fn node_ports_by_loopback_reach_pods_by_the_nodes_address<F: Net>() {
    let (from, to) = ((LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    for protocol in PROCESS_PROTOCOLS {
        for (backend, way) in [
            (POD_A, Action::Pod(VETH_A)),
            (REMOTE, Action::Neighbour(ETH)),
        ] {
            let node = node::<F>(pod::<F>(backend));
            let met =
                through(&node, IfIndex::LOOPBACK, &opening::<F>(protocol, from, to)).goes(way);
            assert_eq!(
                (met.src.ip(), met.dst),
                (F::ip(NODE), end::<F>((backend, TARGET)))
            );
            let back = if backend == POD_A {
                node.from_pod(VETH_A, &met.answer())
            } else {
                node.from_device(&met.answer())
            };
            let told = back.goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(from)));
            through(&node, IfIndex::LOOPBACK, &packet::<F>(protocol, from, to)).goes(way);
        }
    }
    let mut node = node::<F>(pod::<F>(POD_A));
    node.tables.devices.insert(
        GATE,
        Device {
            mtu: 65535,
            ..Device::default()
        },
    );
    through(
        &node,
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, from, to),
    )
    .dropped(Reason::NoMasqueradeAddress);
}

/// It sees the node's address as its client, and its answers are caught like the questions.
fn a_process_of_its_node_is_reached_by_a_node_port<F: Net>() {
    for protocol in PROCESS_PROTOCOLS {
        for at in [NODE, LOOPBACK] {
            let node = node::<F>(process::<F>(NODE));
            let (from, to) = ((at, 40000), (at, NODE_PORT));
            let question = opening::<F>(protocol, from, to);
            let met =
                through(&node, IfIndex::LOOPBACK, &question).goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!(
                (met.src.ip(), met.dst),
                (F::ip(NODE), end::<F>((NODE, TARGET)))
            );
            assert!((1024..30_000).contains(&met.src.port()), "{met:?}");
            let told = through(&node, IfIndex::LOOPBACK, &met.answer())
                .goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(from)));
        }
    }
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

/// The kernel takes what has such an address by loopback.
fn addresses_that_are_elsewhere_are_caught_on_the_way_out<F: Net>() {
    let to = (ELSEWHERE, 443);
    for protocol in PROTOCOLS {
        let node = with_elsewhere::<F>(pod::<F>(POD_A));
        let met = through(&node, ETH, &opening::<F>(protocol, FROM, to)).goes(Action::Pod(VETH_A));
        let told = node
            .from_pod(VETH_A, &met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(FROM)));
        // Another of its ports is somebody else's.
        node.sends(ETH, &opening::<F>(protocol, FROM, (ELSEWHERE, 22)))
            .untouched();
        // What was received is forwarded as it is.
        node.to_device(&opening::<F>(protocol, FROM, to))
            .untouched();
        let node = with_elsewhere::<F>(process::<F>(NODE));
        let met = through(&node, ETH, &opening::<F>(protocol, FROM, to))
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!(met.src.ip(), F::ip(ELSEWHERE));
        let told = through(&node, ETH, &met.answer()).goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(FROM)));
    }
}

fn what_asks_for_no_service_leaves_as_it_was<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    for (device, to) in [
        (IfIndex::LOOPBACK, (NODE, 22)),
        (IfIndex::LOOPBACK, (LOOPBACK, 631)),
        (ETH, (CLIENT, 443)),
    ] {
        for protocol in PROTOCOLS {
            node.sends(device, &opening::<F>(protocol, FROM, to))
                .untouched();
        }
    }
    // V16: a connection that somebody had before there was such a nodePort.
    node.sends(
        IfIndex::LOOPBACK,
        &packet::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    node.sends(
        IfIndex::LOOPBACK,
        &packet::<F>(Protocol::TCP, BY_NODE, FROM),
    )
    .untouched();
    // V8: nodePorts are not on every address of the host.
    let mut node = node;
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::HOST));
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    assert_eq!(node.flows(), (0, 0));
}

/// For SCTP, listeners are unknown.
fn v21_who_listens_on_loopback_is_not_hidden<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    let (from, to) = ((LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    node.tables
        .taken
        .insert((Protocol::TCP, F::at(LOOPBACK), Port::new(NODE_PORT)));
    node.sends(IfIndex::LOOPBACK, &opening::<F>(Protocol::TCP, from, to))
        .untouched();
    node.sends(IfIndex::LOOPBACK, &opening::<F>(Protocol::SCTP, from, to))
        .untouched();
    let question = opening::<F>(Protocol::UDP, from, to);
    through(&node, IfIndex::LOOPBACK, &question).goes(Action::Pod(VETH_A));
    // Who begins to listen later is heard with the next datagram.
    node.tables
        .taken
        .insert((Protocol::UDP, F::at(LOOPBACK), Port::new(NODE_PORT)));
    node.sends(IfIndex::LOOPBACK, &question).untouched();
}

fn v21_only_a_process_asks_by_loopback<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let question = opening::<F>(Protocol::TCP, (CLIENT, 40000), (LOOPBACK, NODE_PORT));
    node.from_device(&question).untouched();
    node.from_pod(VETH_A, &question).untouched();
}

fn v17_a_new_connection_by_loopback_leads_where_pods_serve<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    let question = opening::<F>(Protocol::TCP, (LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    let first = node.from_gate(&question).goes(Action::Pod(VETH_A));
    node.from_pod(VETH_A, &first.answer())
        .goes(Action::Enter(IfIndex::LOOPBACK));
    assert_eq!(
        node.from_gate(&question).goes(Action::Pod(VETH_A)),
        first,
        "it is sent again"
    );
    node = node.with_node_port(0, &[pod::<F>(POD_B)]);
    let second = node.from_gate(&question).goes(Action::Pod(VETH_B));
    assert_eq!(second.dst, end::<F>((POD_B, TARGET)));
}

fn fragments_go_into_the_gate_after_their_first<F: Net>() {
    let node = with_elsewhere::<F>(pod::<F>(POD_A));
    let datagram = packet::<F>(Protocol::UDP, FROM, (ELSEWHERE, 443)).payload(&[7; 3000]);
    let frames = cut::<F>(&datagram, (NODE, ELSEWHERE));
    let entered: Vec<_> = frames
        .iter()
        .map(|frame| node.raw_sends(ETH, frame))
        .collect();
    let met = entered.iter().map(|hop| {
        assert_eq!(hop.said, Ok(Action::Enter(GATE)));
        let met = node.raw_from_gate(hop.bytes());
        assert_eq!(met.said, Ok(Action::Pod(VETH_A)));
        met.bytes().to_vec()
    });
    assert_eq!(
        join::<F>(&met.collect::<Vec<_>>()).0.dst,
        end::<F>((POD_A, TARGET))
    );
    // Of nobody's datagrams the later ones are nobody's too.
    let other = cut::<F>(
        &packet::<F>(Protocol::UDP, FROM, (CLIENT, 443)).payload(&[7; 3000]),
        (NODE, CLIENT),
    );
    other
        .iter()
        .for_each(|frame| node.raw_sends(ETH, frame).untouched());
}

/// A port that is closed meanwhile.
fn errors_about_its_node_ports_go_the_same_way<F: Net>() {
    for (at, home) in [
        (NODE, Action::Stack),
        (LOOPBACK, Action::Enter(IfIndex::LOOPBACK)),
    ] {
        let node = node::<F>(pod::<F>(REMOTE));
        let (from, to) = ((at, 40000), (at, NODE_PORT));
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(Protocol::UDP, from, to),
        )
        .goes(Action::Neighbour(ETH));
        let told = node
            .from_device(&met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        let error = error_about::<F>((at, at), &told);
        let entered = node.raw_sends(IfIndex::LOOPBACK, &error);
        assert_eq!(entered.said, Ok(Action::Enter(GATE)));
        let told = node
            .raw_from_gate(entered.bytes())
            .tells(Action::Neighbour(ETH));
        assert_eq!((told.src, told.dst), (F::ip(NODE), F::ip(REMOTE)));
        // What the pod says of it, and what a router does.
        let told = node
            .raw_from_device(&error_about::<F>((REMOTE, NODE), &met))
            .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(at)));
        let told = node
            .raw_from_device(&error_about::<F>((NODE2, NODE), &met))
            .tells(home);
        assert_eq!((told.src, told.dst), (F::ip(NODE2), F::ip(at)));
    }
}

fn where_sockets_serve_nothing_is_caught<F: Net>() {
    let mut node = with_elsewhere::<F>(pod::<F>(POD_A));
    node.tables.config.gate = IfIndex::NONE;
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, (ELSEWHERE, 443)))
        .untouched();
}

fn a_node_port_without_pods_is_refused_by_loopback<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    node.tables
        .services
        .values_mut()
        .for_each(|service| (service.cluster_len, service.local_len) = (0, 0));
    for at in [NODE, LOOPBACK] {
        let told = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(Protocol::TCP, (at, 40000), (at, NODE_PORT)),
        )
        .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(at)));
    }
}

/// IPv6 heeds what is less than what the device has that has the address.
fn what_does_not_fit_is_told_by_loopback<F: Net>() {
    let node = node::<F>(pod::<F>(REMOTE));
    for (at, port) in [(NODE, NODE_PORT), (LOOPBACK, NODE_PORT), (VIP, 80)] {
        let from = if at == VIP { NODE } else { at };
        let datagram = opening::<F>(Protocol::UDP, (from, 40000), (at, port)).payload(&[7; 2000]);
        let back = if at == VIP {
            Action::Transmit(GATE)
        } else {
            Action::Enter(IfIndex::LOOPBACK)
        };
        let told = node.from_gate(&datagram).tells(back);
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(from)));
        assert_eq!(
            u32::from_be_bytes(told.rest),
            if F::V6 && at != VIP { 1499 } else { 1500 }
        );
    }
}

/// A container that has a device on top of [`ETH`] sends by it, and so does a proxy with its
/// client's address; what answers would not find them.
fn who_has_no_address_of_this_host_is_no_process<F: Net>() {
    let node = with_elsewhere::<F>(pod::<F>(POD_A));
    for to in [(ELSEWHERE, 443), (VIP, 81)] {
        node.sends(ETH, &opening::<F>(Protocol::TCP, (CLIENT, 40000), to))
            .untouched();
        node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, to))
            .goes(Action::Enter(GATE));
    }
    // Where the node's address is loopback's own.
    let mut node = node;
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::NODE_PORTS));
    node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, (ELSEWHERE, 443)))
        .goes(Action::Enter(GATE));
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .goes(Action::Enter(GATE));
}

/// The kernel would call it a martian.
fn what_comes_from_elsewhere_to_loopback_belongs_to_no_flow<F: Net>() {
    for (backend, way) in [
        (POD_A, Action::Pod(VETH_A)),
        (REMOTE, Action::Neighbour(ETH)),
    ] {
        let node = node::<F>(pod::<F>(backend));
        let question = opening::<F>(Protocol::UDP, (LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
        let met = node.from_gate(&question).goes(way);
        node.from_device(&question).untouched();
        node.xdp(&question).untouched();
        node.raw_from_device(&error_about::<F>((CLIENT, NODE), &question.answer()))
            .untouched();
        let told = if backend == POD_A {
            node.from_pod(VETH_A, &met.answer())
        } else {
            node.from_device(&met.answer())
        };
        told.goes(Action::Enter(IfIndex::LOOPBACK));
        node.from_device(&question).untouched();
        node.xdp(&question).untouched();
    }
}

/// Whatever address they ask from.
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

/// Loopback takes more than kernels before 5.12 hand over to a pod.
fn pods_here_get_no_larger_packets_than_any_device_takes<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let datagram = |len| packet::<F>(Protocol::UDP, FROM, BY_NODE).payload(&vec![7; len]);
    for _ in 0..2 {
        node.from_gate(&datagram(1400)).goes(Action::Pod(VETH_A));
        let told = node
            .from_gate(&datagram(1500))
            .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!(
            u32::from_be_bytes(told.rest),
            if F::V6 { 1499 } else { 1500 }
        );
    }
    // What others send has come by a device that takes it.
    let client = packet::<F>(Protocol::UDP, (CLIENT, 40000), BY_NODE).payload(&[7; 1500]);
    node.from_device(&client).goes(Action::Pod(VETH_A));
}

/// The stack would send it into the gate again.
fn what_cannot_be_translated_goes_no_further_than_the_gate<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let mut other = packet::<F>(Protocol::UDP, FROM, TO).bytes();
    other[if F::V6 { 20 } else { 23 }] = 47;
    node.raw_from_gate(&other).dropped(Reason::LeftInGate);
    node.raw_from_device(&other).untouched();
    node.from_gate(&packet::<F>(Protocol::TCP, FROM, BY_NODE))
        .dropped(Reason::LeftInGate);
}

/// A container without an object, behind a bridge of its own.
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
