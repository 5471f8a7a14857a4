//! ICMP errors about translated packets reach the sender and quote the packet as it was sent.

use std::net::SocketAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, IpNumber, Ipv4HeaderSlice, PacketBuilder};
use proxy_common::config::Config;
use proxy_common::net::{Address as _, Protocol};
use proxy_common::policy::Row;
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{Icmp, Segment, TTL};
use crate::untouched::headers;
use crate::world::*;

both_families!(
    about_a_local_backend,
    about_a_remote_backend,
    about_a_pods_own_connection,
    about_a_process_of_this_node,
    about_what_went_through_the_firewall,
    others_are_left_alone,
    p25_they_are_judged_like_their_connection,
    hops_are_counted,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);
/// A router between client and backend.
const ROUTER: Dotted = [203, 0, 113, 1];

/// Returns the ICMP error from `from` to `to` about a packet, with an MTU of 1,280.
pub fn error_about<F: Net>((from, to): (Dotted, Dotted), about: &Segment) -> Vec<u8> {
    error_quoting::<F>((from, to), &about.bytes()[14..])
}

pub fn error_quoting<F: Net>((from, to): (Dotted, Dotted), quoted: &[u8]) -> Vec<u8> {
    let number = if F::V6 {
        IpNumber::IPV6_ICMP
    } else {
        IpNumber::ICMP
    };
    let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers::<F>(from, to, number));
    let mut bytes = Vec::new();
    let done = if F::V6 {
        step.icmpv6(Icmpv6Type::Unknown {
            type_u8: 2,
            code_u8: 0,
            bytes5to8: MTU,
        })
        .write(&mut bytes, quoted)
    } else {
        step.icmpv4(Icmpv4Type::Unknown {
            type_u8: 3,
            code_u8: 4,
            bytes5to8: MTU,
        })
        .write(&mut bytes, quoted)
    };
    done.expect("writes to memory");
    bytes
}

const MTU: [u8; 4] = [0, 0, 5, 0];

/// Asserts the addresses of the message, and that it quotes `sent`. An SCTP quote keeps the
/// checksum of the translated packet `met`.
#[track_caller]
fn quotes<F: Net>(icmp: &Icmp, (from, to): (Dotted, Dotted), sent: &Segment, met: &Segment) {
    assert_eq!((icmp.src, icmp.dst), (F::at(from).ip(), F::at(to).ip()));
    assert_eq!((icmp.kind, icmp.rest), (if F::V6 { 2 } else { 3 }, MTU));
    let (mut owed, met) = (
        sent.clone().ttl(met.ttl).bytes()[14..].to_vec(),
        &met.bytes()[14..],
    );
    let transport = if F::V6 { 40 } else { 20 };
    if sent.protocol == Protocol::SCTP {
        let checksum = transport + 8..transport + 12;
        owed[checksum.clone()].copy_from_slice(&met[checksum]);
    }
    assert_eq!(icmp.quote, owed);
    if !F::V6 {
        let header = Ipv4HeaderSlice::from_slice(&icmp.quote).expect("a header");
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
    }
}

fn about_a_local_backend<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let sent = opening::<F>(protocol, FROM, TO);
        let met = node.from_device(&sent).goes(Action::Pod(VETH_A));
        let told = node
            .raw_at_pod(VETH_A, true, &error_about::<F>((POD_A, CLIENT), &met))
            .tells(Action::Neighbour(ETH));
        quotes::<F>(&told, (NODE, CLIENT), &sent, &met);
        let answer = met.answer();
        let met = node.from_pod(VETH_A, &answer).goes(Action::Neighbour(ETH));
        for teller in [ROUTER, CLIENT] {
            let told = node
                .raw_from_device(&error_about::<F>((teller, NODE), &met))
                .tells(Action::Pod(VETH_A));
            quotes::<F>(&told, (teller, POD_A), &answer, &met);
        }
        assert_eq!(node.tables.counted(Counter::ErrorTranslated), 3);
    }
}

fn about_a_remote_backend<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        let sent = opening::<F>(protocol, FROM, TO);
        let met = node.from_device(&sent).goes(Action::Neighbour(ETH));
        for (teller, known_as) in [(REMOTE, NODE), (ROUTER, ROUTER)] {
            let told = node
                .raw_from_device(&error_about::<F>((teller, NODE), &met))
                .tells(Action::Neighbour(ETH));
            quotes::<F>(&told, (known_as, CLIENT), &sent, &met);
        }
        let answer = met.answer();
        let met = node.from_device(&answer).goes(Action::Neighbour(ETH));
        for (teller, known_as) in [(CLIENT, NODE), (ROUTER, ROUTER)] {
            let told = node
                .raw_from_device(&error_about::<F>((teller, NODE), &met))
                .tells(Action::Neighbour(ETH));
            quotes::<F>(&told, (known_as, REMOTE), &answer, &met);
        }
    }
}

fn about_a_pods_own_connection<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
        let sent = opening::<F>(protocol, (POD_B, 40000), (VIP, 80));
        let met = node.from_pod(VETH_B, &sent).goes(Action::Neighbour(ETH));
        for (teller, known_as) in [(REMOTE, VIP), (ROUTER, ROUTER)] {
            let bytes = error_about::<F>((teller, POD_B), &met);
            let told = node.raw_from_device(&bytes).tells(Action::Pod(VETH_B));
            quotes::<F>(&told, (known_as, POD_B), &sent, &met);
            // Errors that the stack forwards, from this host or through a tunnel, go on through the
            // stack.
            let told = node.raw_at_pod(VETH_B, false, &bytes).tells(Action::Stack);
            quotes::<F>(&told, (known_as, POD_B), &sent, &met);
        }
        let answer = met.answer();
        let met = node.from_device(&answer).goes(Action::Pod(VETH_B));
        let told = node
            .raw_at_pod(VETH_B, true, &error_about::<F>((POD_B, VIP), &met))
            .tells(Action::Neighbour(ETH));
        quotes::<F>(&told, (POD_B, REMOTE), &answer, &met);
    }
}

/// The backend is a process of this host: the stack sends its errors, and receives those about its
/// packets.
fn about_a_process_of_this_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE)]);
        let sent = opening::<F>(protocol, FROM, TO);
        let met = node.from_device(&sent).goes(Action::Stack);
        let told = node
            .raw_to_device(&error_about::<F>((NODE, CLIENT), &met))
            .tells(Action::Stack);
        quotes::<F>(&told, (NODE, CLIENT), &sent, &met);
        let answer = met.answer();
        let met = node.to_device(&answer).goes(Action::Stack);
        let told = node
            .raw_from_device(&error_about::<F>((ROUTER, NODE), &met))
            .tells(Action::Stack);
        quotes::<F>(&told, (ROUTER, NODE), &answer, &met);
    }
}

/// The packet passed two flows, one after the other: the error is translated by both.
fn about_what_went_through_the_firewall<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    node.tables.config.flags = Config::THROUGH_STACK;
    let sent = opening::<F>(Protocol::TCP, FROM, TO);
    let forwarded = node.from_device(&sent).goes(Action::Stack);
    let met = node.to_device(&forwarded).goes(Action::Stack);
    let back = node.raw_from_device(&error_about::<F>((REMOTE, NODE), &met));
    quotes::<F>(
        &back.tells(Action::Stack),
        (REMOTE, CLIENT),
        &forwarded,
        &met,
    );
    let told = node.raw_to_device(back.bytes()).tells(Action::Stack);
    quotes::<F>(&told, (NODE, CLIENT), &sent, &met);
}

fn others_are_left_alone<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
    let sent = opening::<F>(Protocol::UDP, FROM, TO);
    let met = node.from_device(&sent).goes(Action::Pod(VETH_A));
    let stranger = met.clone().from(SocketAddr::new(met.src.ip(), 1));
    for hop in node.everywhere(&error_about::<F>((ROUTER, NODE), &stranger)) {
        hop.untouched();
    }
    // A quote of a later fragment, or one cut off before the ports, identifies no flow.
    let quoted = met.bytes()[14..].to_vec();
    let cut = if F::V6 { 40 + 3 } else { 20 + 3 };
    node.raw_at_pod(
        VETH_A,
        true,
        &error_quoting::<F>((POD_A, CLIENT), &quoted[..cut]),
    )
    .untouched();
    if !F::V6 {
        let mut later = quoted.clone();
        later[7] = 100;
        node.raw_at_pod(VETH_A, true, &error_quoting::<F>((POD_A, CLIENT), &later))
            .untouched();
    }
    // No host sends an error about an error.
    let nested = error_about::<F>((POD_A, CLIENT), &met)[14..].to_vec();
    node.raw_at_pod(VETH_A, true, &error_quoting::<F>((POD_A, CLIENT), &nested))
        .untouched();
    assert_eq!(node.tables.counted(Counter::ErrorTranslated), 0);
}

/// P25: an error is judged by the connection's current verdict.
fn p25_they_are_judged_like_their_connection<F: Net>() {
    let node = Node::<F>::new()
        .with_node_port(0, &[pod::<F>(POD_A)])
        .isolated();
    let node = node
        .isolate(ALLOWING, Row::CLOSED)
        .allowing(CLIENT, port_of(TARGET));
    let met = node
        .from_device(&opening::<F>(Protocol::UDP, FROM, TO))
        .goes(Action::Pod(VETH_A));
    let error = error_about::<F>((POD_A, CLIENT), &met);
    node.raw_at_pod(VETH_A, true, &error)
        .tells(Action::Neighbour(ETH));
    let node = node.isolate(Row::CLOSED, Row::CLOSED);
    node.raw_at_pod(VETH_A, true, &error)
        .dropped(Reason::DeniedIngress);
}

/// A forwarded error loses a hop; at the last one it is dropped without another error.
fn hops_are_counted<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
    let met = node
        .from_device(&opening::<F>(Protocol::UDP, FROM, TO))
        .goes(Action::Pod(VETH_A));
    let mut bytes = error_about::<F>((POD_A, CLIENT), &met);
    let before = Icmp::read(&bytes).expect("a message").ttl;
    let told = node
        .raw_at_pod(VETH_A, true, &bytes)
        .tells(Action::Neighbour(ETH));
    assert_eq!((told.ttl, before), (before - 1, TTL));
    bytes[if F::V6 { 21 } else { 22 }] = 1;
    node.raw_at_pod(VETH_A, true, &bytes)
        .dropped(Reason::TtlExceeded);
}
