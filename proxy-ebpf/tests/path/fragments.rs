//! Fragments of translated datagrams: reassembled, they equal the translated whole datagram,
//! checksum included.

use etherparse::{IpNumber, Ipv6RawExtHeader, PacketBuilder};
use proxy_common::net::Protocol;
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{ACK, Segment};
use crate::untouched::{NUMBER, fragment, headers};
use crate::world::*;

both_families!(
    a_local_pod_gets_them,
    a_remote_pod_gets_them_from_the_node,
    a_pod_reaches_another_by_its_cluster_ip,
    a_process_here_gets_them_through_the_stack,
    one_before_the_first_is_dropped_or_left_to_the_stack,
    those_of_sctp_are_left_alone,
    packets_with_extension_headers_are_translated,
    they_are_not_answered,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);
/// Payload of a datagram, in bytes.
const LONG: usize = 3000;
const PIECE: usize = 1280;

/// Returns a packet with [`LONG`] bytes of payload.
pub fn long<F: Net>(protocol: Protocol, src: End, dst: End) -> Segment {
    let payload: Vec<u8> = (0..LONG).map(|n| (n % 251) as u8).collect();
    // A TCP segment with data is no SYN.
    packet::<F>(protocol, src, dst).flags(ACK).payload(&payload)
}

/// Cuts the packet into fragments between these addresses.
pub fn cut<F: Net>(packet: &Segment, (src, dst): (Dotted, Dotted)) -> Vec<Vec<u8>> {
    let bytes = packet.bytes();
    let transport = &bytes[if F::V6 { 54 } else { 34 }..];
    let pieces = transport.chunks(PIECE).enumerate();
    let last = transport.len().div_ceil(PIECE) - 1;
    let number = IpNumber(packet.protocol.0);
    pieces
        .map(|(n, piece): (usize, &[u8])| {
            let mut frame =
                fragment::<F>(src, dst, number, n < last, (n * PIECE / 8) as u16, piece);
            frame[..12].copy_from_slice(&packet.link);
            frame
        })
        .collect()
}

/// Reassembles fragments; returns the packet and the IPv4 identification.
#[track_caller]
pub fn join<F: Net>(frames: &[Vec<u8>]) -> (Segment, u32) {
    let mut whole = frames[0][..if F::V6 { 54 } else { 34 }].to_vec();
    let mut numbers = std::collections::BTreeSet::new();
    for (n, frame) in frames.iter().enumerate() {
        let (at, field, number) = if F::V6 {
            (
                62,
                [frame[56], frame[57]],
                u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]),
            )
        } else {
            let header = etherparse::Ipv4Header::from_slice(&frame[14..])
                .expect("a header")
                .0;
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "fragment {n}"
            );
            (34, [frame[20], frame[21]], header.identification.into())
        };
        numbers.insert(number);
        let field = u16::from_be_bytes(field);
        let (offset, more) = if F::V6 {
            (field & !7, field & 1)
        } else {
            (field << 3, field >> 13 & 1)
        };
        assert_eq!(
            (usize::from(offset), usize::from(more)),
            (n * PIECE, usize::from(n + 1 < frames.len()))
        );
        assert_eq!(frame[14..34][..2], whole[14..34][..2]);
        whole.extend(&frame[at..]);
    }
    assert_eq!(numbers.len(), 1, "all have one number");
    let len = (whole.len() - 14) as u16;
    if F::V6 {
        whole[20] = frames[0][54];
        whole[18..20].copy_from_slice(&(len - 40).to_be_bytes());
    } else {
        whole[16..18].copy_from_slice(&len.to_be_bytes());
        whole[20..22].fill(0);
        let mut header = etherparse::Ipv4Header::from_slice(&whole[14..])
            .expect("a header")
            .0;
        header.header_checksum = header.calc_header_checksum();
        whole[14..34].copy_from_slice(&header.to_bytes());
    }
    (
        Segment::read(&whole).expect("a whole packet"),
        numbers.into_iter().next().expect("a number"),
    )
}

/// Passes all fragments through a hook, each of which must leave by `action`.
#[track_caller]
fn all(frames: &[Vec<u8>], action: Action, hook: impl Fn(&[u8]) -> Hop) -> Vec<Vec<u8>> {
    let hops = frames.iter().map(|frame| hook(frame));
    hops.map(|hop| {
        assert_eq!(hop.said, Ok(action));
        hop.bytes().to_vec()
    })
    .collect()
}

/// Returns a node with a Service; for TCP, the connection is established already.
fn node_with<F: Net>(
    node: Node<F>,
    protocol: Protocol,
    open: impl Fn(&Node<F>, &Segment),
    syn: (End, End),
) -> Node<F> {
    if protocol == Protocol::TCP {
        open(&node, &opening::<F>(protocol, syn.0, syn.1));
    }
    node
}

const TRANSLATED: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

fn a_local_pod_gets_them<F: Net>() {
    for protocol in TRANSLATED {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let node = node_with(
            node,
            protocol,
            |node, syn| _ = node.from_device(syn).goes(Action::Pod(VETH_A)),
            (FROM, TO),
        );
        let sent = long::<F>(protocol, FROM, TO);
        let frames = cut::<F>(&sent, (CLIENT, NODE));
        let (arrived, number) = join::<F>(&all(&frames, Action::Pod(VETH_A), |bytes| {
            node.raw_from_device(bytes)
        }));
        assert_eq!(
            (&arrived, number),
            (&sent.to(end::<F>((POD_A, TARGET))).hop(), NUMBER.into()),
            "the source is kept"
        );
        let answer = long::<F>(protocol, (POD_A, TARGET), FROM);
        let frames = cut::<F>(&answer, (POD_A, CLIENT));
        let back = all(&frames, Action::Neighbour(ETH), |bytes| {
            node.raw_at_pod(VETH_A, true, bytes)
        });
        assert_eq!(join::<F>(&back).0, answer.from(end::<F>(TO)).hop());
    }
}

/// Both directions get another source address, and all fragments of a datagram the same new IPv4
/// identification.
fn a_remote_pod_gets_them_from_the_node<F: Net>() {
    for protocol in TRANSLATED {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        let node = node_with(
            node,
            protocol,
            |node, syn| _ = node.from_device(syn).goes(Action::Neighbour(ETH)),
            (FROM, TO),
        );
        let sent = long::<F>(protocol, FROM, TO);
        let frames = cut::<F>(&sent, (CLIENT, NODE));
        let (left, number) = join::<F>(&all(&frames, Action::Neighbour(ETH), |bytes| {
            node.raw_from_device(bytes)
        }));
        assert_eq!(
            left,
            sent.from(end::<F>((NODE, left.src.port())))
                .to(end::<F>((REMOTE, TARGET)))
                .hop()
        );
        assert_eq!(number == u32::from(NUMBER), F::V6);
        let answer = long::<F>(protocol, (REMOTE, TARGET), (NODE, left.src.port()));
        let frames = cut::<F>(&answer, (REMOTE, NODE));
        let (back, number) = join::<F>(&all(&frames, Action::Neighbour(ETH), |bytes| {
            node.raw_from_device(bytes)
        }));
        assert_eq!(back, answer.from(end::<F>(TO)).to(end::<F>(FROM)).hop());
        assert_eq!(number == u32::from(NUMBER), F::V6);
    }
}

fn a_pod_reaches_another_by_its_cluster_ip<F: Net>() {
    for (backend, action) in [
        (POD_A, Action::Pod(VETH_A)),
        (REMOTE, Action::Neighbour(ETH)),
    ] {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(backend)]);
        let sent = long::<F>(Protocol::UDP, (POD_B, 40000), (VIP, 80));
        let frames = cut::<F>(&sent, (POD_B, VIP));
        let left = join::<F>(&all(&frames, action, |bytes| {
            node.raw_at_pod(VETH_B, true, bytes)
        }))
        .0;
        assert_eq!(left, sent.to(end::<F>((backend, TARGET))).hop());
    }
}

fn a_process_here_gets_them_through_the_stack<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE)]);
    let sent = long::<F>(Protocol::UDP, FROM, TO);
    let frames = cut::<F>(&sent, (CLIENT, NODE));
    let arrived = join::<F>(&all(&frames, Action::Stack, |bytes| {
        node.raw_from_device(bytes)
    }))
    .0;
    assert_eq!(arrived, sent.to(end::<F>((NODE, TARGET))));
    let answer = long::<F>(Protocol::UDP, (NODE, TARGET), FROM);
    let frames = cut::<F>(&answer, (NODE, CLIENT));
    let back = join::<F>(&all(&frames, Action::Stack, |bytes| {
        node.raw_to_device(bytes)
    }))
    .0;
    assert_eq!(back, answer.from(end::<F>(TO)));
}

/// A later fragment for a cluster IP is dropped; one for the node's own address may belong to the
/// stack.
fn one_before_the_first_is_dropped_or_left_to_the_stack<F: Net>() {
    let node = Node::<F>::new()
        .with_node_port(0, &[pod::<F>(REMOTE)])
        .with_cluster_ip(0, &[pod::<F>(REMOTE)]);
    let later = |src, dst| fragment::<F>(src, dst, IpNumber::UDP, false, 100, &[7; 16]);
    node.raw_at_pod(VETH_A, true, &later(POD_A, VIP))
        .dropped(Reason::FragmentUnknown);
    node.raw_from_device(&later(CLIENT, VIP))
        .dropped(Reason::FragmentUnknown);
    assert_eq!(node.tables.counted(Counter::FragmentLeft), 0);
    node.raw_from_device(&later(CLIENT, NODE)).untouched();
    assert_eq!(node.tables.counted(Counter::FragmentLeft), 1);
}

/// SCTP's checksum covers all fragments, so the packet path cannot rewrite the first one alone.
fn those_of_sctp_are_left_alone<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
    for frame in cut::<F>(&long::<F>(Protocol::SCTP, FROM, TO), (CLIENT, NODE)) {
        node.raw_from_device(&frame).untouched();
    }
}

fn packets_with_extension_headers_are_translated<F: Net>() {
    if !F::V6 {
        return;
    }
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let (sent, owed) = (
            opening::<F>(protocol, FROM, TO),
            opening::<F>(protocol, FROM, (POD_A, TARGET)).hop(),
        );
        let with_options = |packet: &Segment, (src, dst): (Dotted, Dotted)| {
            let number = IpNumber(protocol.0);
            let mut headers = headers::<F>(src, dst, number);
            let etherparse::IpHeaders::Ipv6(ip, extensions) = &mut headers else {
                unreachable!("IPv6")
            };
            ip.hop_limit = packet.ttl;
            let options = Ipv6RawExtHeader::new_raw(number, &[1, 4, 0, 0, 0, 0]).expect("fits");
            extensions.destination_options = Some(options);
            let mut bytes = Vec::new();
            let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers);
            step.write(&mut bytes, number, &packet.bytes()[54..])
                .expect("writes to memory");
            bytes
        };
        let hop = node.raw_from_device(&with_options(&sent, (CLIENT, NODE)));
        assert_eq!(hop.said, Ok(Action::Pod(VETH_A)));
        assert_eq!(
            hop.bytes()[14..],
            with_options(&owed, (CLIENT, POD_A))[14..]
        );
    }
}

/// A fragment that cannot be forwarded is dropped without an ICMP error.
fn they_are_not_answered<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[]);
    let frames = cut::<F>(&long::<F>(Protocol::UDP, FROM, TO), (CLIENT, NODE));
    node.raw_from_device(&frames[0]).dropped(Reason::NoBackend);
}
