//! What reading and writing an IPv4 header, and an IPv6 header, have to themselves.

use proxy_common::checksum::{checksum_update, sum_add, sum_diff, sum_fold};
use proxy_common::net::{Addr4, Addr6, Address, Port, Protocol, V4, V6};
use proxy_common::node::Device;
use proxy_common::reason::{Answer, Reason};

use super::{ICMP, TTL, quote};
use crate::Packet;
use crate::parse::others::{Icmp, Walked, icmp4, icmp6, step6, walk4, walk6};
use crate::parse::{Headers, Ip, LINK, Network, read4, read6};

/// The bits of a traffic class that encapsulation keeps. Congestion is told by loss: who decapsulates hands no mark on (RFC 6040, 4.3).
const DSCP: u8 = 0xfc;

/// An IPv4 header without options, of a packet of `len` bytes with the header; `number` is the word of identification and fragments.
#[inline(always)]
fn header4(
    [tos, protocol]: [u8; 2],
    len: u32,
    number: [u8; 4],
    src: Addr4,
    dst: Addr4,
) -> [u32; 5] {
    let [.., l1, l2] = len.to_be_bytes();
    let head = [
        u32::from_ne_bytes([0x45, tos, l1, l2]),
        u32::from_ne_bytes(number),
        u32::from_ne_bytes([TTL, protocol, 0, 0]),
        src.word(),
        dst.word(),
    ];
    let sum = sum_add(
        sum_add(head[0], head[1]),
        sum_add(head[2], sum_add(head[3], head[4])),
    );
    let [c1, c2] = (!sum_fold(sum)).to_ne_bytes();
    [
        head[0],
        head[1],
        u32::from_ne_bytes([TTL, protocol, c1, c2]),
        head[3],
        head[4],
    ]
}

impl Ip for V4 {
    const ICMP: Protocol = Protocol::ICMP;
    const ENCAPSULATION: Protocol = Protocol::IPIP;
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
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: Addr4,
        dst: Addr4,
        ttl: u8,
    ) -> Option<()> {
        let key = &headers.key;
        let addresses = sum_add(
            sum_diff(key.src.sum(), src.sum()),
            sum_diff(key.dst.sum(), dst.sum()),
        );
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
        let addresses = sum_add(
            sum_diff(src.sum(), new_src.sum()),
            sum_diff(dst.sum(), new_dst.sum()),
        );
        let check = checksum_update(
            u16::from_ne_bytes([a, b]),
            sum_add(addresses, sum_diff(word(ttl), word(ttl_now))),
        );
        let [a, b] = check.to_ne_bytes();
        packet.store(
            at + 8,
            &[
                u32::from_ne_bytes([ttl_now, protocol, a, b]),
                new_src.word(),
                new_dst.word(),
            ],
        )?;
        Some(0)
    }

    #[inline(always)]
    fn answer<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        answer: Answer,
        mtu: u32,
    ) -> Option<()> {
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
        let [a, b, c, d, e] = header4(
            [0, 1],
            20 + ICMP + quoted,
            [0; 4],
            headers.key.dst,
            headers.key.src,
        );
        packet.store(
            LINK,
            &[
                a,
                b,
                c,
                d,
                e,
                u32::from_ne_bytes([kind, code, check[0], check[1]]),
                rest,
            ],
        )
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
    fn encapsulate<P: Packet>(
        packet: &mut P,
        len: u32,
        src: Addr4,
        backend: Addr4,
        port: Port,
    ) -> Option<()> {
        let [_, tos]: [u8; 2] = packet.load(LINK)?;
        packet.encapsulate(Self::OVERHEAD, false)?;
        let [a, b] = port.bytes();
        packet.store(
            LINK,
            &header4(
                [tos & DSCP, Self::ENCAPSULATION.0],
                Self::OVERHEAD + len,
                [a, b, 0x40, 0],
                src,
                backend,
            ),
        )
    }

    #[inline(always)]
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port> {
        packet.load(LINK + 4).map(Port::from_bytes)
    }

    #[inline(always)]
    fn too_big([kind, code, .., a, b]: [u8; 8]) -> Option<u32> {
        if kind == 3 && code == 4 {
            Some(u16::from_be_bytes([a, b]).into())
        } else {
            None
        }
    }
}

impl Ip for V6 {
    const ICMP: Protocol = Protocol::ICMP6;
    const ENCAPSULATION: Protocol = Protocol::IPV6;
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
    fn write<P: Packet>(
        packet: &mut P,
        _headers: &Headers<Self>,
        src: Addr6,
        dst: Addr6,
        ttl: u8,
    ) -> Option<()> {
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
        Some(sum_add(
            sum_diff(src.sum(), new_src.sum()),
            sum_diff(dst.sum(), new_dst.sum()),
        ))
    }

    #[inline(always)]
    fn answer<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        answer: Answer,
        mtu: u32,
    ) -> Option<()> {
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
            8 => packet
                .load::<[u32; 2]>(LINK + 40)
                .map(|[a, b]| sum_add(a, b))?,
            _ => return None,
        };
        let payload = ICMP + headers.transport - LINK + quote.len;
        let [l1, l2] = (payload as u16).to_be_bytes();
        let pseudo = sum_add(
            u32::from_ne_bytes([0, 0, l1, l2]),
            u32::from_ne_bytes([0, 0, 0, 58]),
        );
        let pseudo = sum_add(
            pseudo,
            sum_add(headers.key.src.sum(), headers.key.dst.sum()),
        );
        let icmp = sum_add(
            sum_add(u32::from_ne_bytes([kind, code, 0, 0]), rest),
            sum_add(sum_add(head, between), quote.sum),
        );
        let [c1, c2] = (!sum_fold(sum_add(pseudo, icmp))).to_ne_bytes();
        packet.insert(40 + ICMP)?;
        packet.store(
            LINK,
            &[
                u32::from_ne_bytes([0x60, 0, 0, 0]),
                u32::from_ne_bytes([l1, l2, 58, TTL]),
            ],
        )?;
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
    fn encapsulate<P: Packet>(
        packet: &mut P,
        len: u32,
        src: Addr6,
        backend: Addr6,
        port: Port,
    ) -> Option<()> {
        let [version, class]: [u8; 2] = packet.load(LINK)?;
        packet.encapsulate(Self::OVERHEAD, true)?;
        let ([a, b], [.., l1, l2]) = (port.bytes(), len.to_be_bytes());
        let head = [
            [version, class & DSCP << 4, a, b],
            [l1, l2, Self::ENCAPSULATION.0, TTL],
        ]
        .map(u32::from_ne_bytes);
        packet.store(LINK, &head)?;
        let ([a, b, c, d], [e, f, g, h]) = (src.words(), backend.words());
        packet.store(LINK + 8, &[a, b, c, d, e, f, g, h])?;
        packet.account(sum_add(
            sum_add(head[0], head[1]),
            sum_add(src.sum(), backend.sum()),
        ));
        Some(())
    }

    #[inline(always)]
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port> {
        packet.load(LINK + 2).map(Port::from_bytes)
    }

    #[inline(always)]
    fn too_big([kind, _, _, _, mtu @ ..]: [u8; 8]) -> Option<u32> {
        if kind == 2 {
            Some(u32::from_be_bytes(mtu))
        } else {
            None
        }
    }
}
