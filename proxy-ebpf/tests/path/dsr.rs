//! Direct server return: the node that a client asks, and another node with the backend, which
//! answers the client.

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice};
use proxy_common::config::Config;
use proxy_common::flow::State;
use proxy_common::net::{IfIndex, Protocol, V4, V6};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind};
use proxy_common::policy::Row;
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, ServiceFlags};
use proxy_ebpf::{Action, Route};

use crate::both_families;
use crate::errors::{error_about, error_quoting};
use crate::fragments::{cut, join, long};
use crate::segment::{ACK, FIN, RST, Segment};
use crate::untouched::raw_between;
use crate::world::*;

mod backend_node;
mod wire;

both_families!(
    the_backend_sees_the_client_and_answers_it,
    of_a_virtual_address_too,
    a_connection_is_established_when_its_client_goes_on,
    it_is_over_when_its_client_closes_it,
    who_expects_an_answer_from_its_own_node_is_masqueraded,
    where_there_is_no_room_it_is_masqueraded,
    a_backend_that_is_no_pod_is_masqueraded,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);
const BACKEND: End = (REMOTE, TARGET);
/// Another pod of the backend's node.
const SIBLING: Dotted = [10, 244, 2, 11];
/// A device that leads to clients only.
const OTHER_ETH: IfIndex = IfIndex(4);
/// A node's own address.
const OWN: AddressFlags =
    AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS | AddressFlags::NODE);

/// Returns the node that clients ask, with these backends of its nodePort and its cluster IP.
fn asked<F: Net>(backends: &[Backend<F::Addr>]) -> Node<F> {
    let mut node = Node::<F>::new()
        .with_node_port(ServiceFlags::DSR, backends)
        .with_cluster_ip(ServiceFlags::DSR, backends);
    node.tables.addresses.insert(F::at(NODE), OWN);
    node.tables
        .addresses
        .insert(F::at(NODE2), AddressFlags(AddressFlags::NODE));
    node.tables.routes.insert(
        F::at(SIBLING),
        Route {
            device: ETH,
            neighbour: Some(LINK),
        },
    );
    node
}

/// Returns the backends' node, with the same Services. The Services need no DSR flag there.
fn answering<F: Net>(backends: &[Backend<F::Addr>]) -> Node<F> {
    let mut node = Node::<F>::new()
        .with_node_port(0, backends)
        .with_cluster_ip(0, backends);
    node.tables.addresses.insert(F::at(NODE2), OWN);
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::NODE));
    node.tables.pods.clear();
    node.tables.pods.insert(
        F::at(REMOTE),
        LocalPod {
            device: VETH_A,
            pod_id: 0,
        },
    );
    node.tables.pods.insert(
        F::at(SIBLING),
        LocalPod {
            device: VETH_B,
            pod_id: 0,
        },
    );
    let (node6, node4) = (V6::at(NODE2), V4::at(NODE2));
    node.tables.devices.insert(
        ETH,
        Device {
            masquerade6: node6,
            masquerade4: node4,
            node6,
            node4,
            mtu: 1500,
            flags: 0,
        },
    );
    node.tables.routes.insert(
        F::at(NODE),
        Route {
            device: ETH,
            neighbour: Some(LINK),
        },
    );
    node
}

fn both<F: Net>() -> (Node<F>, Node<F>) {
    (asked(&[pod::<F>(REMOTE)]), answering(&[pod::<F>(REMOTE)]))
}

/// Length of the outer IP header, in bytes.
fn overhead<F: Net>() -> usize {
    if F::V6 { 40 } else { 20 }
}

/// Asserts the outer header of a packet encapsulated for `backend`, and returns the inner packet.
#[track_caller]
fn carried<F: Net>(hop: &Hop, (backend, port): End) -> Vec<u8> {
    assert_eq!(hop.said, Ok(Action::Neighbour(ETH)));
    let bytes = hop.bytes();
    let (carrier, inner) = bytes[14..].split_at(overhead::<F>());
    if F::V6 {
        let header = Ipv6HeaderSlice::from_slice(carrier).expect("a header");
        assert_eq!(
            (header.next_header(), usize::from(header.payload_length())),
            (IpNumber::IPV6, inner.len())
        );
        assert_eq!(
            (F::ip(NODE), F::ip(backend)),
            (
                header.source_addr().into(),
                header.destination_addr().into()
            )
        );
        assert_eq!(
            (header.flow_label().value(), header.hop_limit()),
            (port.into(), 64)
        );
    } else {
        let header = Ipv4HeaderSlice::from_slice(carrier).expect("a header");
        assert_eq!(
            (header.protocol(), usize::from(header.total_len())),
            (IpNumber::IPV4, 20 + inner.len())
        );
        assert_eq!(
            (F::ip(NODE), F::ip(backend)),
            (
                header.source_addr().into(),
                header.destination_addr().into()
            )
        );
        assert_eq!(
            (
                header.identification(),
                header.ttl(),
                header.dont_fragment()
            ),
            (port, 64, true)
        );
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
    }
    [&bytes[..14], inner].concat()
}

/// Passes a client's packet through the asked node and the backend's node; returns the packet that
/// the backend gets.
#[track_caller]
fn through<F: Net>((asked, answering): (&Node<F>, &Node<F>), sent: &Segment) -> Segment {
    let hop = asked.from_device(sent);
    assert_eq!(carried::<F>(&hop, BACKEND), sent.bytes(), "as it came");
    answering
        .raw_from_device(hop.bytes())
        .goes(Action::Pod(VETH_A))
}

fn the_backend_sees_the_client_and_answers_it<F: Net>() {
    for protocol in PROTOCOLS {
        let (asked, answering) = both::<F>();
        let sent = opening::<F>(protocol, FROM, TO);
        for _ in 0..2 {
            let met = through((&asked, &answering), &sent);
            assert_eq!(
                met,
                sent.clone().to(end::<F>(BACKEND)).hop(),
                "again, a retransmission leads nowhere else"
            );
        }
        assert_eq!(answering.flows(), (2, 0));
        let answer = sent.clone().to(end::<F>(BACKEND)).answer();
        let told = answering
            .from_pod(VETH_A, &answer)
            .goes(Action::Neighbour(ETH));
        assert_eq!(told, answer.from(end::<F>(TO)).hop());
        assert_eq!(answering.flows(), (0, 2));
        let data = packet::<F>(protocol, FROM, TO).flags(ACK);
        assert_eq!(
            through((&asked, &answering), &data),
            data.to(end::<F>(BACKEND)).hop()
        );
        assert_eq!(
            (
                asked.tables.counted(Counter::Encapsulated),
                answering.tables.counted(Counter::Decapsulated)
            ),
            (3, 3)
        );
    }
}

fn of_a_virtual_address_too<F: Net>() {
    let (asked, answering) = both::<F>();
    let sent = opening::<F>(Protocol::TCP, FROM, (VIP, 80));
    let met = through((&asked, &answering), &sent);
    let told = answering
        .from_pod(VETH_A, &met.answer())
        .goes(Action::Neighbour(ETH));
    assert_eq!((told.src, told.dst), (end::<F>((VIP, 80)), end::<F>(FROM)));
}

/// V18: the asked node sees no answers, so only the client's packets establish the flow: a second
/// datagram does, a second SYN does not.
fn a_connection_is_established_when_its_client_goes_on<F: Net>() {
    for protocol in PROTOCOLS {
        let (asked, _) = both::<F>();
        let sent = opening::<F>(protocol, FROM, TO);
        carried::<F>(&asked.from_device(&sent), BACKEND);
        assert_eq!(asked.flows(), (2, 0));
        carried::<F>(&asked.from_device(&sent), BACKEND);
        assert_eq!(
            asked.flows(),
            if protocol == Protocol::UDP {
                (0, 2)
            } else {
                (2, 0)
            }
        );
        carried::<F>(
            &asked.from_device(&packet::<F>(protocol, FROM, TO).flags(ACK)),
            BACKEND,
        );
        assert_eq!(asked.flows(), (0, 2));
    }
}

/// V17, V18: the asked node does not see the backend's FIN; a client that has closed still
/// acknowledges the backend's data.
fn it_is_over_when_its_client_closes_it<F: Net>() {
    for (protocol, flags, state) in [
        (Protocol::TCP, FIN | ACK, State::FIN_FORWARD),
        (Protocol::TCP, RST, State::RESET),
        (Protocol::SCTP, FIN | ACK, State::FIN_FORWARD),
        (Protocol::SCTP, RST, State::RESET),
    ] {
        let (asked, _) = both::<F>();
        let sent = |flags| packet::<F>(protocol, FROM, TO).flags(flags);
        for flags in [crate::segment::SYN, ACK] {
            carried::<F>(&asked.from_device(&sent(flags)), BACKEND);
        }
        let mut last = sent(flags).bytes();
        if protocol == Protocol::SCTP && flags != RST {
            // SHUTDOWN ACK: the backend has sent SHUTDOWN before.
            last[14 + overhead::<F>() + 12] = 8;
        }
        carried::<F>(&asked.raw_from_device(&last), BACKEND);
        let key = key::<F>(protocol, FROM, TO);
        assert_eq!(
            asked.flow(&asked.tables.established, &key).state,
            State::REPLIED | state
        );
        carried::<F>(&asked.from_device(&sent(ACK)), BACKEND);
        carried::<F>(
            &asked.from_device(&opening::<F>(protocol, FROM, TO)),
            BACKEND,
        );
        assert_eq!(asked.flows(), (2, 0), "the next connection");
    }
}

/// V11: pods and nodes are masqueraded, since they match replies with their own tables.
fn who_expects_an_answer_from_its_own_node_is_masqueraded<F: Net>() {
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    node.tables.ranges.insert(
        (F::at(SIBLING), if F::V6 { 128 } else { 32 }),
        RangeKind::PODS,
    );
    for client in [SIBLING, NODE2] {
        node.tables.routes.insert(
            F::at(client),
            Route {
                device: ETH,
                neighbour: Some(LINK),
            },
        );
        let left = node
            .from_device(&opening::<F>(Protocol::TCP, (client, 40000), TO))
            .goes(Action::Neighbour(ETH));
        assert_eq!((left.src.ip(), left.dst), (F::ip(NODE), end::<F>(BACKEND)));
    }
}

fn where_there_is_no_room_it_is_masqueraded<F: Net>() {
    let narrow = if F::V6 { 1319 } else { 87 };
    let changes: [fn(&mut Device, u32); 2] = [
        |device, mtu| device.mtu = mtu,
        |device, _| (device.node4, device.node6) = Default::default(),
    ];
    for change in changes {
        let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
        change(node.tables.devices.get_mut(&ETH).expect("there"), narrow);
        let left = node
            .from_device(&opening::<F>(Protocol::UDP, FROM, TO))
            .goes(Action::Neighbour(ETH));
        assert_eq!(left.src.ip(), F::ip(NODE));
    }
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    node.tables.config.flags |= Config::THROUGH_STACK;
    node.from_device(&opening::<F>(Protocol::TCP, FROM, TO))
        .goes(Action::Stack);
}

fn a_backend_that_is_no_pod_is_masqueraded<F: Net>() {
    let node = asked::<F>(&[process::<F>(NODE2)]);
    let left = node
        .from_device(&opening::<F>(Protocol::TCP, FROM, TO))
        .goes(Action::Neighbour(ETH));
    assert_eq!(
        (left.src.ip(), left.dst),
        (F::ip(NODE), end::<F>((NODE2, TARGET)))
    );
}
