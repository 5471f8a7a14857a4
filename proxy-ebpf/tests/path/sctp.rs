//! SCTP's own features. The other scenarios cover SCTP too; `crc32c` verifies its checksum there.

use proxy_common::net::Protocol;
use proxy_common::reason::Reason;
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{ACK, FIN, RST, SYN, Segment};
use crate::world::*;

both_families!(
    an_association_lives_through_all_its_chunks,
    v16_only_an_init_opens,
    v17_an_association_that_is_over_is_opened_anew,
    a_checksum_that_the_device_computes_is_left_to_it,
    checksums_are_right_up_to_the_mtu,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);
/// Offset of the first chunk in the frame of a family.
const fn chunk_at<F: Net>() -> usize {
    14 + if F::V6 { 40 } else { 20 } + 12
}

/// Returns a frame with a chunk of another type and a valid checksum.
fn with_chunk<F: Net>(packet: &Segment, kind: u8) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let at = chunk_at::<F>();
    bytes[at] = kind;
    bytes[at - 4..at].fill(0);
    let crc = crc32c::crc32c(&bytes[at - 12..]);
    bytes[at - 4..at].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Asserts that the result equals `packet`, except for the type of its chunk.
#[track_caller]
fn same_but_for_the_chunk<F: Net>(hop: &Hop, packet: &Segment, kind: u8) {
    assert_eq!(hop.bytes(), with_chunk::<F>(packet, kind));
}

fn init<F: Net>() -> Segment {
    opening::<F>(Protocol::SCTP, FROM, TO)
}

/// Set-up, data, heartbeats and shutdown (RFC 9260), to a local and to a remote pod.
fn an_association_lives_through_all_its_chunks<F: Net>() {
    for (backend, way) in [
        (POD_A, Action::Pod(VETH_A)),
        (REMOTE, Action::Neighbour(ETH)),
    ] {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(backend)]);
        let there = node.from_device(&init::<F>()).goes(way);
        let answer = |packet: &Segment| match backend {
            POD_A => node.from_pod(VETH_A, packet),
            _ => node.from_device(packet),
        };
        let back = Action::Neighbour(ETH);
        assert_eq!(answer(&there.answer()).goes(back).src, end::<F>(TO));
        assert_eq!(node.flows(), (0, 2));
        let (asks, says) = (init::<F>().flags(ACK), there.answer().flags(ACK));
        // COOKIE ECHO, COOKIE ACK, DATA, SACK, HEARTBEAT, HEARTBEAT ACK, SHUTDOWN, SHUTDOWN ACK.
        for kind in [10, 11, 0, 3, 4, 5, 7, 8] {
            let hop = node.raw_from_device(&with_chunk::<F>(&asks, kind));
            assert_eq!(hop.said, Ok(way));
            let out = Segment {
                src: there.src,
                dst: there.dst,
                ..asks.clone().hop()
            };
            same_but_for_the_chunk::<F>(&hop, &out, kind);
            let bytes = with_chunk::<F>(&says, kind);
            let hop = if backend == POD_A {
                node.raw_at_pod(VETH_A, true, &bytes)
            } else {
                node.raw_from_device(&bytes)
            };
            assert_eq!(hop.said, Ok(back));
            let out = Segment {
                src: end::<F>(TO),
                dst: end::<F>(FROM),
                ..says.clone().hop()
            };
            same_but_for_the_chunk::<F>(&hop, &out, kind);
        }
        // SHUTDOWN COMPLETE.
        assert_eq!(
            node.raw_from_device(&with_chunk::<F>(&asks, 14)).said,
            Ok(way)
        );
        let forward = node.flow(
            &node.tables.established,
            &key::<F>(Protocol::SCTP, FROM, TO),
        );
        assert!(proxy_common::flow::State::closed(forward.state));
    }
}

fn v16_only_an_init_opens<F: Net>() {
    let node = Node::<F>::new()
        .with_node_port(0, &[pod::<F>(POD_A)])
        .with_cluster_ip(0, &[pod::<F>(POD_A)]);
    for flags in [SYN | ACK, ACK, RST, FIN | ACK] {
        node.from_device(&init::<F>().flags(flags)).untouched();
        node.from_pod(
            VETH_B,
            &opening::<F>(Protocol::SCTP, (POD_B, 1), (VIP, 80)).flags(flags),
        )
        .dropped(Reason::NotSyn);
    }
    assert_eq!(node.flows(), (0, 0));
}

fn v17_an_association_that_is_over_is_opened_anew<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
    let there = node.from_device(&init::<F>()).goes(Action::Pod(VETH_A));
    node.from_pod(VETH_A, &there.answer())
        .goes(Action::Neighbour(ETH));
    node.from_device(&init::<F>().flags(RST))
        .goes(Action::Pod(VETH_A));
    assert_eq!(node.flows(), (0, 2));
    node.from_device(&init::<F>()).goes(Action::Pod(VETH_A));
    assert_eq!(node.flows(), (2, 0));
}

/// A local sender leaves 0 in the checksum, and the kernel or the device computes it later.
fn a_checksum_that_the_device_computes_is_left_to_it<F: Net>() {
    let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
    let mut bytes = opening::<F>(Protocol::SCTP, (POD_A, 1), (VIP, 80)).bytes();
    let at = chunk_at::<F>();
    bytes[at - 4..at].fill(0);
    let hop = node.raw_at_pod(VETH_A, true, &bytes);
    assert_eq!(hop.said, Ok(Action::Neighbour(ETH)));
    assert_eq!(&hop.bytes()[at - 4..at], [0; 4]);
    assert_eq!(&hop.bytes()[at - 10..at - 8], TARGET.to_be_bytes());
}

fn checksums_are_right_up_to_the_mtu<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let there = node.from_device(&init::<F>()).goes(Action::Neighbour(ETH));
    node.from_device(&there.answer())
        .goes(Action::Neighbour(ETH));
    let largest = 1500 - (chunk_at::<F>() - 14) - 4;
    for len in [0, 1, 2, 3, 4, 100, 1000, largest] {
        let data = init::<F>().flags(ACK).payload(&vec![0x5a; len]);
        let at_tc = node.from_device(&data).goes(Action::Neighbour(ETH));
        assert_eq!(
            (at_tc.dst, at_tc.payload.len()),
            (end::<F>((REMOTE, TARGET)), len)
        );
        let at_xdp = node.xdp(&data).goes(Action::Transmit(ETH));
        assert_eq!((at_xdp.dst, at_xdp.payload), (at_tc.dst, at_tc.payload));
    }
}
