//! The only file that writes packet bytes: the rewrite of a flow's packets, and the refusals that tell a client at once.

use proxy_common::event::{Answer, Counter, Reason};
use proxy_common::flow::{Flow, Way, fragment_ports};
use proxy_common::net::{
    Addr4, Addr6, Address, Device, Family, Port, Protocol, V4, V6, checksum_update, sum_add, sum_diff, sum_fold,
};

use crate::crc32c::contribution;
use crate::parse::others::{Icmp, Walked, icmp4, icmp6, step6, walk4, walk6};
use crate::parse::{Headers, Ip, LINK, Network, read4, read6};
use crate::{Action, Change, Packet, Scratch, Tables};

/// Bytes of an ICMP or ICMPv6 header.
const ICMP: u32 = 8;
/// Time to live of the packets that we make.
const TTL: u8 = 64;
/// The bits of a traffic class that encapsulation keeps. Congestion is told by loss: who decapsulates hands no mark on (RFC 6040, 4.3).
const DSCP: u8 = 0xfc;
/// What a refusal quotes of TCP: through the checksum, which a device may still have to fill in. Of SCTP that is the header and an INIT's
/// tag, without which its sender does not believe it.
const QUOTED_TCP: u32 = 20;
/// What a refusal quotes of UDP: its header.
const QUOTED_UDP: u32 = 8;

/// Gives a packet the addresses and ports of its flow. Where we, not the stack, send it on, its time to live goes down by one.
#[inline(always)]
pub fn apply<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>, flow: &Flow<F::Addr>, way: Way) -> Result<(), Reason> {
    let ttl = match way {
        Way::Stack | Way::Gate | Way::Tunnel => headers.ttl,
        // Checked before: 1 and 0 do not get here.
        Way::Pod | Way::Neighbour => headers.ttl.wrapping_sub(1),
    };
    let key = &headers.key;
    let addresses = sum_add(sum_diff(key.src.sum(), flow.src.sum()), sum_diff(key.dst.sum(), flow.dst.sum()));
    let ports = sum_add(sum_diff(key.sport.word(), flow.sport.word()), sum_diff(key.dport.word(), flow.dport.word()));
    let uncovered = hops::<F>(headers.ttl, ttl);
    let udp = key.protocol == Protocol::UDP;
    let checksum = headers.transport + if udp { 6 } else { 16 };
    let change = Change { addresses, ports, udp, v6: F::V6, uncovered };
    let [a, b] = flow.sport.bytes();
    let [c, d] = flow.dport.bytes();
    F::write(packet, headers, flow.src, flow.dst, ttl)
        .and_then(|()| packet.store(headers.transport, &[a, b, c, d]))
        .and_then(|()| match key.protocol {
            Protocol::SCTP => fix_crc(packet, headers, flow),
            _ => packet.fix_checksum(checksum, change),
        })
        .ok_or(Reason::RewriteFailed)
}

/// The partial sum of a change of IPv6's hop limit; IPv4's header has a checksum for that.
#[inline(always)]
fn hops<F: Family>(from: u8, to: u8) -> u32 {
    let word = |ttl: u8| u32::from(u16::from_ne_bytes([0, ttl]));
    if F::V6 && from != to { sum_diff(word(from), word(to)) } else { 0 }
}

/// Gives a fragment that is not its datagram's first the addresses of its flow.
#[inline(always)]
pub fn addresses<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>, flow: &Flow<F::Addr>, way: Way) -> Result<(), Reason> {
    let ttl = if way.is_to_stack() { headers.ttl } else { headers.ttl.wrapping_sub(1) };
    F::write(packet, headers, flow.src, flow.dst, ttl).ok_or(Reason::RewriteFailed)?;
    // The checksum that compensates the addresses is in the first one.
    if F::V6 {
        let key = &headers.key;
        let addresses = sum_add(sum_diff(key.src.sum(), flow.src.sum()), sum_diff(key.dst.sum(), flow.dst.sum()));
        packet.account(sum_add(addresses, hops::<F>(headers.ttl, ttl)));
    }
    Ok(())
}

/// Gives a fragment of an IPv4 datagram another number; the header checksum follows. IPv6 has enough of them.
#[inline(always)]
pub fn renumber<F: Family, P: Packet>(packet: &mut P, move_by: u16) -> Result<(), Reason> {
    if F::V6 {
        return Ok(());
    }
    let id: [u8; 2] = packet.load(LINK + 4).ok_or(Reason::Truncated)?;
    let check: [u8; 2] = packet.load(LINK + 10).ok_or(Reason::Truncated)?;
    let now = u16::from_be_bytes(id).wrapping_add(move_by).to_be_bytes();
    let diff = sum_diff(u16::from_ne_bytes(id).into(), u16::from_ne_bytes(now).into());
    let check = checksum_update(u16::from_ne_bytes(check), diff).to_ne_bytes();
    packet.store(LINK + 4, &now).and_then(|()| packet.store(LINK + 10, &check)).ok_or(Reason::RewriteFailed)
}

/// Gives an ICMP error about a packet of a flow the addresses and ports by which its receiver knows the packet.
///
/// The error of an end of the flow comes from the address that stands for that end; a router keeps its own. A quoted checksum of TCP or UDP follows;
/// SCTP's stays as it was, for nobody who has not all of the packet can verify or correct it.
#[inline(always)]
pub fn error<F: Ip, P: Packet>(packet: &mut P, scratch: &Scratch<F>, way: Way) -> Result<(), Reason> {
    let Scratch { headers, flow, reply: itself, quoted, .. } = scratch;
    let key = &headers.key;
    let less = u8::from(!way.is_to_stack());
    let src = if itself.src == key.src { flow.src } else { itself.src };
    let uncovered = hops::<F>(headers.ttl, headers.ttl.wrapping_sub(less));
    let [a, b] = flow.dport.bytes();
    let [c, d] = flow.sport.bytes();
    let ports = sum_add(sum_diff(key.dport.word(), flow.dport.word()), sum_diff(key.sport.word(), flow.sport.word()));
    let ports = sum_add(ports, quoted_checksum(packet, scratch, ports).ok_or(Reason::RewriteFailed)?);
    let change = Change { addresses: 0, ports, udp: false, v6: F::V6, uncovered };
    readdress(packet, scratch, src, less, change).and_then(|()| packet.store(*quoted, &[a, b, c, d])).ok_or(Reason::RewriteFailed)
}

/// Corrects the quoted checksum for a change of ports, and for that of the addresses; gives what its own change is to the checksum over it.
#[inline(always)]
fn quoted_checksum<F: Ip, P: Packet>(packet: &mut P, scratch: &Scratch<F>, ports: u32) -> Option<u32> {
    let Scratch { headers: Headers { key, .. }, flow, quoted, .. } = scratch;
    let udp = key.protocol == Protocol::UDP;
    if !udp && key.protocol != Protocol::TCP {
        return Some(0);
    }
    let at = quoted + if udp { 6 } else { 16 };
    // TCP's may be cut off; of UDP, 0 means that there is none.
    let Some(check) = packet.load::<[u8; 2]>(at).map(u16::from_ne_bytes).filter(|check| !udp || *check != 0) else {
        return Some(0);
    };
    let addresses = sum_add(sum_diff(key.src.sum(), flow.src.sum()), sum_diff(key.dst.sum(), flow.dst.sum()));
    let now = checksum_update(check, sum_add(addresses, ports));
    let now = if udp && now == 0 { u16::MAX } else { now };
    packet.store(at, &now.to_ne_bytes())?;
    Some(sum_diff(check.into(), now.into()))
}

/// The outer header, the quoted one, which goes the other way, and the checksum over both.
#[inline(always)]
fn readdress<F: Ip, P: Packet>(packet: &mut P, scratch: &Scratch<F>, src: F::Addr, hops: u8, change: Change) -> Option<()> {
    let Scratch { headers, flow, reply: itself, .. } = scratch;
    let key = &headers.key;
    let addresses = F::readdress(packet, LINK, [itself.src, itself.dst], [src, flow.dst], hops)?;
    let inner = F::readdress(packet, headers.transport + ICMP, [key.dst, key.src], [flow.dst, flow.src], 0)?;
    let ports = sum_add(change.ports, inner);
    packet.fix_checksum(headers.transport + 2, Change { addresses, ports, ..change })
}

/// Corrects SCTP's checksum for a change of ports; no address counts in it.
///
/// 0 means that the device computes it, and stays: of finished checksums one in 4 billion is 0, and that packet is lost.
#[inline(always)]
fn fix_crc<F: Family, P: Packet>(packet: &mut P, headers: &Headers<F>, flow: &Flow<F::Addr>) -> Option<()> {
    let (at, len) = (headers.transport + 8, (headers.len + LINK).saturating_sub(headers.transport));
    let [crc]: [u32; 1] = packet.load(at)?;
    if crc == 0 {
        return Some(());
    }
    let change = fragment_ports(headers.key.sport, headers.key.dport) ^ fragment_ports(flow.sport, flow.dport);
    packet.store(at, &[crc ^ contribution(u32::from_le(change), len).to_le()])
}

/// Gives a frame its next hop: destination and source MAC.
#[inline(always)]
pub fn link<P: Packet>(packet: &mut P, addresses: &[u8; 12]) -> Result<(), Reason> {
    packet.store(0, addresses).ok_or(Reason::RewriteFailed)
}

/// Answers a packet that is not sent on with an ICMP error, where its source and the limit allow it.
#[inline(always)]
pub fn answer<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &Scratch<F>,
    answer: Answer,
    back: Action,
) -> Result<Action, Reason> {
    let headers = &scratch.headers;
    if !F::is_host(headers.key.src) {
        return Err(Reason::NotAnswerable);
    }
    if !tables.may_answer() {
        return Err(Reason::RejectRateLimited);
    }
    F::answer(packet, headers, answer, scratch.mtu).and_then(|()| turn_back(packet)).ok_or(Reason::RewriteFailed)?;
    tables.count_answered(scratch.reason);
    tables.count(Counter::Rejected);
    Ok(back)
}

/// Swaps the link-layer addresses.
#[inline(always)]
fn turn_back<P: Packet>(packet: &mut P) -> Option<()> {
    let [a, b, c]: [u32; 3] = packet.load(0)?;
    let (a, b, c) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    packet.store(0, &[b[2], b[3], c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1]])
}

/// What an ICMP error quotes, cut out of the packet.
struct Quote {
    /// Bytes of the quoted transport header.
    len: u32,
    /// Its partial sum, as it will be when it is sent.
    sum: u32,
}

/// Cuts the packet behind the transport header that will be quoted.
///
/// A device, or the kernel on its way there, may still have to fill in the quoted checksum (CHECKSUM_PARTIAL): the kernel then
/// refuses to cut before that field. What it will write makes the quoted header sum up to the complement of what stands there now.
#[inline(always)]
fn quote<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>) -> Option<Quote> {
    if headers.key.protocol == Protocol::UDP {
        let words: [u32; 2] = packet.load(headers.transport)?;
        let unfinished = cut(packet, headers, 6, QUOTED_UDP)?;
        if !unfinished {
            packet.store(headers.transport, &words)?;
        }
        let field = u32::from(u16::from_ne_bytes([words[1].to_ne_bytes()[2], words[1].to_ne_bytes()[3]]));
        let sum = if unfinished { !field } else { sum_add(words[0], words[1]) };
        return Some(Quote { len: QUOTED_UDP, sum });
    }
    let words: [u32; 5] = packet.load(headers.transport)?;
    // What the device will make of an SCTP packet's checksum cannot be known here.
    if headers.key.protocol == Protocol::SCTP && words[2] == 0 {
        return None;
    }
    let unfinished = cut(packet, headers, 16, QUOTED_TCP)?;
    if !unfinished {
        packet.store(headers.transport, &words)?;
    }
    let field = u32::from(u16::from_ne_bytes([words[4].to_ne_bytes()[0], words[4].to_ne_bytes()[1]]));
    let sum = if unfinished { !field } else { words.iter().fold(0, |sum, word| sum_add(sum, *word)) };
    Some(Quote { len: QUOTED_TCP, sum })
}

/// Cuts to `len` bytes of the transport header, whose checksum lies at `checksum`; tells whether that is still to be filled in.
#[inline(always)]
fn cut<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>, checksum: u32, len: u32) -> Option<bool> {
    let unfinished = packet.truncate(headers.transport + checksum).is_none();
    packet.truncate(headers.transport + len)?;
    Some(unfinished)
}

/// An IPv4 header without options, of a packet of `len` bytes with the header; `number` is the word of identification and fragments.
#[inline(always)]
fn header4([tos, protocol]: [u8; 2], len: u32, number: [u8; 4], src: Addr4, dst: Addr4) -> [u32; 5] {
    let [.., l1, l2] = len.to_be_bytes();
    let head = [
        u32::from_ne_bytes([0x45, tos, l1, l2]),
        u32::from_ne_bytes(number),
        u32::from_ne_bytes([TTL, protocol, 0, 0]),
        src.word(),
        dst.word(),
    ];
    let sum = sum_add(sum_add(head[0], head[1]), sum_add(head[2], sum_add(head[3], head[4])));
    let [c1, c2] = (!sum_fold(sum)).to_ne_bytes();
    [head[0], head[1], u32::from_ne_bytes([TTL, protocol, c1, c2]), head[3], head[4]]
}

impl Ip for V4 {
    const ICMP: Protocol = Protocol::ICMP;
    const TUNNEL: Protocol = Protocol::IPIP;
    const OVERHEAD: u32 = 20;
    const LEAST_MTU: u32 = 68;

    #[inline(always)]
    fn walk<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason> {
        walk4(packet, offset)
    }

    #[inline(always)]
    fn step<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason> {
        walk4(packet, offset)
    }

    #[inline(always)]
    fn icmp(kind: u8, _ttl: u8) -> Icmp {
        icmp4(kind)
    }

    /// 0.0.0.0, with which DHCP asks.
    #[inline(always)]
    fn is_link_local(addr: Addr4) -> bool {
        addr == Addr4::ZERO
    }

    #[inline(always)]
    fn octets(addr: Addr4) -> [u8; 4] {
        addr.bytes()
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P) -> Result<Option<Network<Self>>, Reason> {
        read4(packet)
    }

    /// Time to live, protocol, checksum and both addresses lie side by side: one store.
    #[inline(always)]
    fn write<P: Packet>(packet: &mut P, headers: &Headers<Self>, src: Addr4, dst: Addr4, ttl: u8) -> Option<()> {
        let key = &headers.key;
        let addresses = sum_add(sum_diff(key.src.sum(), src.sum()), sum_diff(key.dst.sum(), dst.sum()));
        let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, key.protocol.0]));
        let diff = sum_add(addresses, sum_diff(word(headers.ttl), word(ttl)));
        let check = u32::from(checksum_update(headers.check, diff)).to_ne_bytes();
        let first = u32::from_ne_bytes([ttl, key.protocol.0, check[0], check[1]]);
        packet.store(LINK + 8, &[first, src.word(), dst.word()])
    }

    /// The header's own checksum follows, so that what covers the header as well stays right.
    #[inline(always)]
    fn readdress<P: Packet>(
        packet: &mut P,
        at: u32,
        [src, dst]: [Addr4; 2],
        [new_src, new_dst]: [Addr4; 2],
        hops: u8,
    ) -> Option<u32> {
        let [first]: [u32; 1] = packet.load(at + 8)?;
        let [ttl, protocol, a, b] = first.to_ne_bytes();
        let ttl_now = ttl.wrapping_sub(hops);
        let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, protocol]));
        let addresses = sum_add(sum_diff(src.sum(), new_src.sum()), sum_diff(dst.sum(), new_dst.sum()));
        let check = checksum_update(u16::from_ne_bytes([a, b]), sum_add(addresses, sum_diff(word(ttl), word(ttl_now))));
        let [a, b] = check.to_ne_bytes();
        packet.store(at + 8, &[u32::from_ne_bytes([ttl_now, protocol, a, b]), new_src.word(), new_dst.word()])?;
        Some(0)
    }

    #[inline(always)]
    fn answer<P: Packet>(packet: &mut P, headers: &Headers<Self>, answer: Answer, mtu: u32) -> Option<()> {
        let quote = quote(packet, headers)?;
        let quoted = headers.transport - LINK + quote.len;
        let ([kind, code], rest) = match answer {
            Answer::PortUnreachable => ([3, 3], 0),
            Answer::Prohibited => ([3, 13], 0),
            Answer::TimeExceeded => ([11, 0], 0),
            Answer::TooBig => ([3, 4], mtu.min(0xffff).to_be()),
        };
        // The quoted IPv4 header, its checksum included, sums up to nothing.
        let icmp = sum_add(u32::from_ne_bytes([kind, code, 0, 0]), rest);
        let check = (!sum_fold(sum_add(icmp, quote.sum))).to_ne_bytes();
        packet.insert(20 + ICMP)?;
        let [a, b, c, d, e] = header4([0, 1], 20 + ICMP + quoted, [0; 4], headers.key.dst, headers.key.src);
        packet.store(LINK, &[a, b, c, d, e, u32::from_ne_bytes([kind, code, check[0], check[1]]), rest])
    }

    #[inline(always)]
    fn is_host(addr: Addr4) -> bool {
        let [first, ..] = addr.bytes();
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn masquerade(device: &Device) -> Addr4 {
        device.masquerade4
    }

    #[inline(always)]
    fn node(device: &Device) -> Addr4 {
        device.node4
    }

    /// RFC 2003, not to be fragmented: what identifies fragments is free then (RFC 6864).
    #[inline(always)]
    fn encapsulate<P: Packet>(packet: &mut P, len: u32, src: Addr4, backend: Addr4, port: Port) -> Option<()> {
        let [_, tos]: [u8; 2] = packet.load(LINK)?;
        packet.encapsulate(Self::OVERHEAD, false)?;
        let [a, b] = port.bytes();
        packet.store(LINK, &header4([tos & DSCP, Self::TUNNEL.0], Self::OVERHEAD + len, [a, b, 0x40, 0], src, backend))
    }

    #[inline(always)]
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port> {
        packet.load(LINK + 4).map(Port::from_bytes)
    }

    #[inline(always)]
    fn too_big([kind, code, .., a, b]: [u8; 8]) -> Option<u32> {
        if kind == 3 && code == 4 { Some(u16::from_be_bytes([a, b]).into()) } else { None }
    }
}

impl Ip for V6 {
    const ICMP: Protocol = Protocol::ICMP6;
    const TUNNEL: Protocol = Protocol::IPV6;
    const OVERHEAD: u32 = 40;
    const LEAST_MTU: u32 = 1280;

    #[inline(always)]
    fn walk<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason> {
        walk6(packet, offset)
    }

    #[inline(always)]
    fn step<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason> {
        step6(packet, offset)
    }

    #[inline(always)]
    fn icmp(kind: u8, ttl: u8) -> Icmp {
        icmp6(kind, ttl)
    }

    /// `::`, and fe80::/10.
    #[inline(always)]
    fn is_link_local(addr: Addr6) -> bool {
        let [first, ..] = addr.words();
        addr == Addr6::ZERO || u32::from_be(first) & 0xffc0_0000 == 0xfe80_0000
    }

    /// Its classes are not in a directory.
    #[inline(always)]
    fn octets(_addr: Addr6) -> [u8; 4] {
        [0; 4]
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P) -> Result<Option<Network<Self>>, Reason> {
        read6(packet)
    }

    /// Next header, hop limit and both addresses lie side by side.
    #[inline(always)]
    fn write<P: Packet>(packet: &mut P, _headers: &Headers<Self>, src: Addr6, dst: Addr6, ttl: u8) -> Option<()> {
        packet.store(LINK + 7, &[ttl])?;
        let ([a, b, c, d], [e, f, g, h]) = (src.words(), dst.words());
        packet.store(LINK + 8, &[a, b, c, d, e, f, g, h])
    }

    #[inline(always)]
    fn readdress<P: Packet>(
        packet: &mut P,
        at: u32,
        [src, dst]: [Addr6; 2],
        [new_src, new_dst]: [Addr6; 2],
        hops: u8,
    ) -> Option<u32> {
        if hops != 0 {
            let [ttl]: [u8; 1] = packet.load(at + 7)?;
            packet.store(at + 7, &[ttl.wrapping_sub(hops)])?;
        }
        let ([a, b, c, d], [e, f, g, h]) = (new_src.words(), new_dst.words());
        packet.store(at + 8, &[a, b, c, d, e, f, g, h])?;
        Some(sum_add(sum_diff(src.sum(), new_src.sum()), sum_diff(dst.sum(), new_dst.sum())))
    }

    #[inline(always)]
    fn answer<P: Packet>(packet: &mut P, headers: &Headers<Self>, answer: Answer, mtu: u32) -> Option<()> {
        let ([kind, code], rest) = match answer {
            Answer::PortUnreachable => ([1, 4], 0),
            Answer::Prohibited => ([1, 1], 0),
            Answer::TimeExceeded => ([3, 0], 0),
            Answer::TooBig => ([2, 0], mtu.to_be()),
        };
        let quote = quote(packet, headers)?;
        let head: [u32; 10] = packet.load(LINK)?;
        let head = head.iter().fold(0, |sum, word| sum_add(sum, *word));
        // Of what may come in between, the fragment header is quoted.
        let between = match headers.transport - LINK - 40 {
            0 => 0,
            8 => packet.load::<[u32; 2]>(LINK + 40).map(|[a, b]| sum_add(a, b))?,
            _ => return None,
        };
        let payload = ICMP + headers.transport - LINK + quote.len;
        let [l1, l2] = (payload as u16).to_be_bytes();
        let pseudo = sum_add(u32::from_ne_bytes([0, 0, l1, l2]), u32::from_ne_bytes([0, 0, 0, 58]));
        let pseudo = sum_add(pseudo, sum_add(headers.key.src.sum(), headers.key.dst.sum()));
        let icmp = sum_add(sum_add(u32::from_ne_bytes([kind, code, 0, 0]), rest), sum_add(sum_add(head, between), quote.sum));
        let [c1, c2] = (!sum_fold(sum_add(pseudo, icmp))).to_ne_bytes();
        packet.insert(40 + ICMP)?;
        packet.store(LINK, &[u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([l1, l2, 58, TTL])])?;
        let ([a, b, c, d], [e, f, g, h]) = (headers.key.dst.words(), headers.key.src.words());
        packet.store(LINK + 8, &[a, b, c, d, e, f, g, h])?;
        packet.store(LINK + 40, &[u32::from_ne_bytes([kind, code, c1, c2]), rest])
    }

    #[inline(always)]
    fn is_host(addr: Addr6) -> bool {
        let [a, b, c, d] = addr.words();
        let low = u32::from_be(d);
        a.to_ne_bytes()[0] != 0xff && (a | b | c != 0 || low > 1)
    }

    #[inline(always)]
    fn masquerade(device: &Device) -> Addr6 {
        device.masquerade6
    }

    #[inline(always)]
    fn node(device: &Device) -> Addr6 {
        device.node6
    }

    /// RFC 2473; the port is the flow label.
    #[inline(always)]
    fn encapsulate<P: Packet>(packet: &mut P, len: u32, src: Addr6, backend: Addr6, port: Port) -> Option<()> {
        let [version, class]: [u8; 2] = packet.load(LINK)?;
        packet.encapsulate(Self::OVERHEAD, true)?;
        let ([a, b], [.., l1, l2]) = (port.bytes(), len.to_be_bytes());
        let head = [[version, class & DSCP << 4, a, b], [l1, l2, Self::TUNNEL.0, TTL]].map(u32::from_ne_bytes);
        packet.store(LINK, &head)?;
        let ([a, b, c, d], [e, f, g, h]) = (src.words(), backend.words());
        packet.store(LINK + 8, &[a, b, c, d, e, f, g, h])?;
        packet.account(sum_add(sum_add(head[0], head[1]), sum_add(src.sum(), backend.sum())));
        Some(())
    }

    #[inline(always)]
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port> {
        packet.load(LINK + 2).map(Port::from_bytes)
    }

    #[inline(always)]
    fn too_big([kind, _, _, _, mtu @ ..]: [u8; 8]) -> Option<u32> {
        if kind == 2 { Some(u32::from_be_bytes(mtu)) } else { None }
    }
}
