//! Packets without a Service leave byte-identical; malformed ones neither panic nor open flows.

use std::net::IpAddr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, IpFragOffset,
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, PacketBuilder, VlanId,
};
use proxy_common::flow::Role;
use proxy_common::net::Protocol;
use proxy_common::node::AddressFlags;
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::Segment;
use crate::world::*;

both_families!(
    arp,
    icmp,
    other_protocols,
    ports_that_are_no_node_ports,
    node_ports_of_other_addresses,
    traffic_of_pods_with_others,
    fragments,
    extension_headers,
    vlan_tags,
    frames_cut_at_every_length,
    headers_that_lie,
    udp_without_a_checksum_stays_without,
    udp_checksum_that_comes_to_zero_is_written_as_ones,
    hops_are_counted_by_who_forwards,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);

fn node<F: Net>() -> Node<F> {
    Node::new()
        .with_node_port(0, &[pod::<F>(POD_A)])
        .with_cluster_ip(0, &[pod::<F>(POD_A)])
}

/// Passes a frame through every hook, and asserts that it is unchanged. Hooks of pods may follow
/// its flow (P25).
#[track_caller]
fn nobody_cares<F: Net>(node: &Node<F>, bytes: &[u8]) {
    for hop in node.everywhere(bytes) {
        hop.untouched();
    }
    assert_eq!(node.flows().1, 0);
    let opening = node.tables.opening.borrow();
    assert!(
        opening.values().all(|flow| flow.is(Role::UNTRANSLATED)),
        "{opening:?}"
    );
}

fn arp<F: Net>() {
    let IpAddr::V4(target) = proxy_common::net::V4::ip(NODE) else {
        return;
    };
    let addresses = [[192, 0, 2, 9], target.octets()];
    let request = ArpOperation::REQUEST;
    let (hardware, kind) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let arp = ArpPacket::new(
        hardware,
        kind,
        request,
        &[2; 6],
        &addresses[0],
        &[0; 6],
        &addresses[1],
    )
    .expect("fits");
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [255; 6])
        .arp(arp)
        .write(&mut bytes)
        .expect("writes to memory");
    nobody_cares(&node::<F>(), &bytes);
}

/// Returns an IP packet of the family from the client, with protocol `number` and this payload.
fn raw<F: Net>(to: Dotted, number: IpNumber, rest: &[u8]) -> Vec<u8> {
    raw_between::<F>(CLIENT, to, number, rest)
}

/// Returns an IP packet of the family with protocol `number` and this payload.
pub fn raw_between<F: Net>(from: Dotted, to: Dotted, number: IpNumber, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers::<F>(from, to, number));
    step.write(&mut bytes, number, rest)
        .expect("writes to memory");
    bytes
}

/// Returns a fragment at `offset` (in units of 8 bytes) with this payload.
pub fn fragment<F: Net>(
    from: Dotted,
    to: Dotted,
    number: IpNumber,
    more: bool,
    offset: u16,
    rest: &[u8],
) -> Vec<u8> {
    let mut headers = headers::<F>(from, to, number);
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    let offset = IpFragOffset::try_new(offset).expect("fits");
    match &mut headers {
        IpHeaders::Ipv4(ip, _) => {
            ip.identification = NUMBER;
            (ip.dont_fragment, ip.more_fragments, ip.fragment_offset) = (false, more, offset);
        }
        IpHeaders::Ipv6(_, extensions) => {
            extensions.fragment = Some(Ipv6FragmentHeader::new(number, offset, more, NUMBER.into()))
        }
    }
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ip(headers)
        .write(&mut bytes, number, rest)
        .expect("writes to memory");
    if F::V6 {
        // RFC 8200's place of the flag; this version of etherparse puts it elsewhere.
        bytes[56..58].copy_from_slice(&field);
    }
    bytes
}

/// Identification of fragmented datagrams.
pub const NUMBER: u16 = 77;

/// Returns the IP header of a packet.
pub fn headers<F: Net>(from: Dotted, to: Dotted, number: IpNumber) -> IpHeaders {
    match (F::ip(from), F::ip(to)) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let ip = Ipv4Header::new(0, 64, number, src.octets(), dst.octets()).expect("fits");
            IpHeaders::Ipv4(ip, Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let ip = Ipv6Header {
                next_header: number,
                hop_limit: 64,
                source,
                destination,
                ..Default::default()
            };
            IpHeaders::Ipv6(ip, Ipv6Extensions::default())
        }
        _ => unreachable!("one family"),
    }
}

/// Echo requests and errors, to the node and to a cluster IP.
fn icmp<F: Net>() {
    for to in [NODE, VIP, POD_A] {
        let step =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers::<F>(CLIENT, to, IpNumber::ICMP));
        let mut bytes = Vec::new();
        let done = if F::V6 {
            step.icmpv6(Icmpv6Type::Unknown {
                type_u8: 1,
                code_u8: 4,
                bytes5to8: [0; 4],
            })
            .write(&mut bytes, &[7; 48])
        } else {
            step.icmpv4(Icmpv4Type::Unknown {
                type_u8: 3,
                code_u8: 3,
                bytes5to8: [0; 4],
            })
            .write(&mut bytes, &[7; 28])
        };
        done.expect("writes to memory");
        nobody_cares(&node::<F>(), &bytes);
    }
}

/// ESP, GRE, and unassigned protocol numbers.
fn other_protocols<F: Net>() {
    let ports = [[0x9c, 0x40], NODE_PORT.to_be_bytes()].concat();
    for number in [
        IpNumber::ENCAPSULATING_SECURITY_PAYLOAD,
        IpNumber::GRE,
        IpNumber(200),
    ] {
        let rest = [&ports[..], &[0; 40]].concat();
        nobody_cares(&node::<F>(), &raw::<F>(NODE, number, &rest));
        nobody_cares(&node::<F>(), &raw::<F>(VIP, number, &rest));
    }
}

/// Verdict table: a port of a node address that is no nodePort, or that a process of the host
/// listens on.
fn ports_that_are_no_node_ports<F: Net>() {
    for (protocol, port) in PROTOCOLS
        .into_iter()
        .flat_map(|p| [22, 80, NODE_PORT - 1, NODE_PORT + 1].map(|port| (p, port)))
    {
        nobody_cares(
            &node::<F>(),
            &opening::<F>(protocol, FROM, (NODE, port)).bytes(),
        );
    }
}

/// V8, V11: nodePorts are served on the selected addresses only; another node's address is not
/// translated here.
fn node_ports_of_other_addresses<F: Net>() {
    for protocol in PROTOCOLS {
        for to in [NODE2, POD_A, REMOTE, CLIENT] {
            nobody_cares(
                &node::<F>(),
                &opening::<F>(protocol, FROM, (to, NODE_PORT)).bytes(),
            );
        }
        let mut node = node::<F>();
        node.tables
            .addresses
            .insert(F::at(NODE), AddressFlags(AddressFlags::HOST));
        nobody_cares(&node, &opening::<F>(protocol, FROM, TO).bytes());
    }
}

/// Traffic without translation: between a pod and the world, and between pods.
fn traffic_of_pods_with_others<F: Net>() {
    for protocol in PROTOCOLS {
        for (src, dst) in [
            (POD_A, CLIENT),
            (CLIENT, POD_A),
            (POD_A, POD_B),
            (POD_A, REMOTE),
            (REMOTE, POD_A),
            (POD_A, NODE),
        ] {
            let packet = opening::<F>(protocol, (src, 40000), (dst, TARGET));
            nobody_cares(&node::<F>(), &packet.bytes());
            nobody_cares(&node::<F>(), &packet.answer().bytes());
        }
    }
}

/// Fragments for no Service are left alone and counted, first and later ones.
fn fragments<F: Net>() {
    let transport =
        &opening::<F>(Protocol::TCP, FROM, (NODE, 22)).bytes()[if F::V6 { 54 } else { 34 }..];
    for (more, offset) in [(true, 0), (true, 1), (false, 100)] {
        let bytes = fragment::<F>(CLIENT, NODE, IpNumber::TCP, more, offset, transport);
        let node = node::<F>();
        nobody_cares(&node, &bytes);
        assert_eq!(node.tables.counted(Counter::Fragment), 5);
    }
}

/// IPv6 extension headers are counted, and left alone if no Service is concerned.
fn extension_headers<F: Net>() {
    if !F::V6 {
        return;
    }
    let transport = &opening::<F>(Protocol::TCP, FROM, (NODE, 22)).bytes()[54..];
    for hop_by_hop in [true, false] {
        let mut headers = headers::<F>(CLIENT, NODE, IpNumber::TCP);
        let IpHeaders::Ipv6(_, extensions) = &mut headers else {
            unreachable!("IPv6")
        };
        let extension =
            Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).expect("fits");
        if hop_by_hop {
            extensions.hop_by_hop_options = Some(extension);
        } else {
            extensions.destination_options = Some(extension);
        }
        let mut bytes = Vec::new();
        let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers);
        step.write(&mut bytes, IpNumber::TCP, transport)
            .expect("writes to memory");
        let node = node::<F>();
        nobody_cares(&node, &bytes);
        assert_eq!(node.tables.counted(Counter::ExtensionHeader), 5);
    }
}

/// A tagged frame belongs to the VLAN's device, also where the tag looks like the first byte of an
/// IP header.
fn vlan_tags<F: Net>() {
    for id in [1, 0x0500, 0x0600] {
        let step = PacketBuilder::ethernet2([2; 6], [4; 6])
            .single_vlan(VlanId::try_new(id).expect("fits"));
        let IpHeaders::Ipv4(..) = headers::<F>(CLIENT, NODE, IpNumber::TCP) else {
            continue;
        };
        let mut bytes = Vec::new();
        let step = step
            .ip(headers::<F>(CLIENT, NODE, IpNumber::TCP))
            .tcp(40000, NODE_PORT, 1, 1)
            .syn();
        step.write(&mut bytes, &[]).expect("writes to memory");
        nobody_cares(&node::<F>(), &bytes);
    }
}

/// P35: a frame that ends before the end of an announced header is dropped as truncated. It causes
/// no panic and no flow.
fn frames_cut_at_every_length<F: Net>() {
    for protocol in PROTOCOLS {
        let bytes = opening::<F>(protocol, FROM, TO).bytes();
        let parsed = 14
            + if F::V6 { 40 } else { 20 }
            + match protocol {
                Protocol::TCP => 18,
                Protocol::SCTP => 13,
                _ => 8,
            };
        for len in 0..=bytes.len() {
            let node = node::<F>();
            for hop in node.everywhere(&bytes[..len]) {
                match hop.said {
                    Ok(Action::Untouched) => hop.untouched(),
                    Ok(_) => assert!(len >= parsed, "{len}: {hop:?}"),
                    Err(Reason::Truncated) => {
                        assert!((14..parsed).contains(&len), "{len}: {hop:?}")
                    }
                    Err(Reason::RewriteFailed) => assert!(len >= parsed, "{len}: {hop:?}"),
                    Err(reason) => panic!("{len}: {reason:?}"),
                }
            }
        }
    }
}

/// Invalid versions and lengths.
fn headers_that_lie<F: Net>() {
    let bytes = opening::<F>(Protocol::TCP, FROM, TO).bytes();
    for first in 0..=255u8 {
        let version = if F::V6 {
            first >> 4 == 6
        } else {
            first >> 4 == 4 && first & 15 >= 5
        };
        if version {
            continue;
        }
        let mut bytes = bytes.clone();
        bytes[14] = first;
        nobody_cares(&node::<F>(), &bytes);
    }
}

/// A UDP datagram without a checksum (IPv4) leaves without one.
fn udp_without_a_checksum_stays_without<F: Net>() {
    if F::V6 {
        return;
    }
    let mut bytes = packet::<F>(Protocol::UDP, FROM, TO).bytes();
    bytes[40..42].fill(0);
    let [_, hop, ..] = node::<F>().everywhere(&bytes);
    hop.goes(Action::Pod(VETH_A));
    assert_eq!(hop.bytes()[40..42], [0, 0]);
}

/// UDP writes a checksum of zero as ones, so that it is not taken for "none".
fn udp_checksum_that_comes_to_zero_is_written_as_ones<F: Net>() {
    let at = if F::V6 { 60 } else { 40 };
    let there = packet::<F>(Protocol::UDP, FROM, (POD_A, TARGET))
        .payload(&[0, 0])
        .bytes();
    // The payload that makes the sum zero is the checksum itself.
    let datagram = packet::<F>(Protocol::UDP, FROM, TO).payload(&there[at..at + 2]);
    let node = node::<F>();
    let hop = node.from_device(&datagram);
    hop.goes(Action::Pod(VETH_A));
    assert_eq!(hop.bytes()[at..at + 2], [255, 255]);
    let back = packet::<F>(Protocol::UDP, TO, FROM)
        .payload(&[0, 0])
        .bytes();
    let answer = packet::<F>(Protocol::UDP, (POD_A, TARGET), FROM).payload(&back[at..at + 2]);
    let hop = node.from_pod(VETH_A, &answer);
    hop.goes(Action::Neighbour(ETH));
    assert_eq!(hop.bytes()[at..at + 2], [255, 255]);
}

/// The stack decrements the TTL of packets that it forwards; the packet path does for the others.
fn hops_are_counted_by_who_forwards<F: Net>() {
    for (ttl, protocol) in [0, 1]
        .into_iter()
        .flat_map(|ttl| PROTOCOLS.map(|p| (ttl, p)))
    {
        let syn: Segment = opening::<F>(protocol, FROM, TO).ttl(ttl);
        let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE)]);
        assert_eq!(node.from_device(&syn).goes(Action::Stack).ttl, ttl);
    }
    let last = node::<F>()
        .from_device(&opening::<F>(Protocol::TCP, FROM, TO).ttl(2))
        .goes(Action::Pod(VETH_A));
    assert_eq!(last.ttl, 1);
}
