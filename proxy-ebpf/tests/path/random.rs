//! Properties of all packets: no panic, no change if untouched, valid checksums, and the reply
//! undoes the rewrite.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proxy_common::net::{Protocol, V4, V6};
use proxy_ebpf::Action;

use crate::segment::Segment;
use crate::world::*;

/// Returns a node with Services and backends of every kind.
fn node<F: Net>() -> Node<F> {
    let backends = [
        pod::<F>(POD_A),
        pod::<F>(POD_B),
        pod::<F>(REMOTE),
        process::<F>(NODE),
        process::<F>(NODE2),
    ];
    Node::new()
        .with_node_port(0, &backends)
        .with_cluster_ip(0, &backends)
}

fn addresses() -> impl Strategy<Value = Dotted> {
    prop_oneof![5 => select(vec![CLIENT, NODE, NODE2, POD_A, POD_B, REMOTE, VIP]), 1 => any::<Dotted>()]
}

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![3 => select(vec![80, NODE_PORT, TARGET, 40000]), 1 => any::<u16>()]
}

fn segments<F: Net>() -> impl Strategy<Value = Segment> {
    let ends = (addresses(), ports(), addresses(), ports());
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    let rest = (
        select(PROTOCOLS.to_vec()),
        any::<u8>(),
        any::<u8>(),
        0..4usize,
        payload,
    );
    (ends, rest).prop_map(
        |((src, sport, dst, dport), (protocol, flags, ttl, options, payload))| {
            let options = if F::V6 {
                Vec::new()
            } else {
                [1, 1, 1, 0].repeat(options)
            };
            Segment {
                options,
                ..packet::<F>(protocol, (src, sport), (dst, dport))
                    .flags(flags)
                    .ttl(ttl)
                    .payload(&payload)
            }
        },
    )
}

/// Passes bytes through every hook, and asserts that untouched ones are unchanged.
fn survive<F: Net>(node: &Node<F>, bytes: &[u8]) {
    for hop in node.everywhere(bytes) {
        if hop.said == Ok(Action::Untouched) {
            hop.untouched();
        }
    }
}

/// Changes single bytes and truncates.
fn mutate(mut bytes: Vec<u8>, changes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
    bytes
}

/// Passes valid packets through every hook of one node; packets that leave are valid, translated or
/// refused.
fn stays_valid<F: Net>(packets: &[Segment]) {
    let node = node::<F>();
    for packet in packets {
        for hop in node.everywhere(&packet.bytes()) {
            match hop.said {
                Ok(Action::Untouched) => hop.untouched(),
                Ok(Action::Transmit(device)) if Segment::read(hop.bytes()).is_err() => {
                    drop(hop.refused(device))
                }
                Ok(action) => drop(hop.goes(action)),
                Err(_) => {}
            }
        }
    }
}

/// Asserts that the reply reaches the client from the frontend that it asked, at its port, with the
/// backend's bytes.
fn comes_back<F: Net>(protocol: Protocol, client: End, backend: usize, asked: &[u8], said: &[u8]) {
    let backends = [pod::<F>(POD_A), process::<F>(NODE), pod::<F>(REMOTE)];
    let node = Node::<F>::new().with_node_port(0, &backends[backend..=backend]);
    let to = (NODE, NODE_PORT);
    let packet = opening::<F>(protocol, client, to).payload(asked);
    let there = Segment::read(node.from_device(&packet).bytes()).expect("a valid packet");
    assert_eq!(there.payload, asked);

    let answer = there.answer().payload(said);
    let hop = match backend {
        0 => node.from_pod(VETH_A, &answer),
        1 => node.to_device(&answer),
        _ => node.from_device(&answer),
    };
    assert!(
        matches!(hop.said, Ok(Action::Stack | Action::Neighbour(_))),
        "{hop:?}"
    );
    let back = Segment::read(hop.bytes()).expect("a valid packet");
    assert_eq!(
        (back.src, back.dst, &back.payload[..]),
        (end::<F>(to), end::<F>(client), said)
    );
    assert_eq!(node.flows(), (0, 2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
        if let Some(ethertype) = bytes.get_mut(12..14) {
            ethertype.copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
        }
        survive(&node::<V4>(), &bytes);
        survive(&node::<V6>(), &bytes);
    }

    #[test]
    fn mutations_never_panic(
        four in segments::<V4>(),
        six in segments::<V6>(),
        changes in prop::collection::vec(any::<(Index, u8)>(), 0..8),
        cut in any::<Option<Index>>(),
    ) {
        survive(&node::<V4>(), &mutate(four.bytes(), &changes, cut));
        survive(&node::<V6>(), &mutate(six.bytes(), &changes, cut));
    }

    #[test]
    fn checksums_stay_right(
        four in prop::collection::vec(segments::<V4>(), 1..12),
        six in prop::collection::vec(segments::<V6>(), 1..12),
    ) {
        stays_valid::<V4>(&four);
        stays_valid::<V6>(&six);
    }

    #[test]
    fn replies_restore_the_clients_view(
        protocol in select(PROTOCOLS.to_vec()),
        host: u8,
        port: u16,
        backend in 0..3usize,
        asked in prop::collection::vec(any::<u8>(), 0..64),
        said in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let client = ([203, 0, 113, host], port);
        comes_back::<V4>(protocol, client, backend, &asked, &said);
        comes_back::<V6>(protocol, client, backend, &asked, &said);
    }
}
