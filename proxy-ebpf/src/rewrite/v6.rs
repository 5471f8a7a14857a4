//! IPv6 headers: reading and writing.

use proxy_common::checksum::{sum_add, sum_diff, sum_fold};
use proxy_common::net::{Addr6, Address as _, Port, Protocol, V6};
use proxy_common::node::Device;
use proxy_common::reason::{Answer, Reason};

use super::{DSCP, ICMP, TTL, quote};
use crate::Packet;
use crate::parse::others::{Icmp, Walked, icmp6, step6, walk6};
use crate::parse::{Headers, Ip, LINK, Network, read6};

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

    /// Returns true for `::` and fe80::/10.
    #[inline(always)]
    fn is_link_local(addr: Addr6) -> bool {
        let [first, ..] = addr.words();
        addr == Addr6::ZERO || u32::from_be(first) & 0xffc0_0000 == 0xfe80_0000
    }

    /// IPv6's classes are not in a directory.
    #[inline(always)]
    fn octets(_addr: Addr6) -> [u8; 4] {
        [0; 4]
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P) -> Result<Option<Network<Self>>, Reason> {
        read6(packet)
    }

    /// Hop limit and both addresses are neighbours.
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
        // Of the extension headers only a fragment header is quoted.
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

    /// RFC 2473; the flow label has the port.
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
