//! IPv4 headers: reading and writing.

use proxy_common::checksum::{checksum_update, sum_add, sum_diff, sum_fold};
use proxy_common::net::{Addr4, Address as _, Port, Protocol, V4};
use proxy_common::node::Device;
use proxy_common::reason::{Answer, Reason};

use super::{DSCP, ICMP, TTL, quote};
use crate::Packet;
use crate::parse::others::{Icmp, Walked, icmp4, walk4};
use crate::parse::{Headers, Ip, LINK, Network, read4};

/// Returns an IPv4 header without options. `len` is the length of the packet in bytes, with the
/// header; `number` is the word of identification and fragment fields.
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

    /// Returns true for 0.0.0.0, which DHCP clients send from.
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

    /// TTL, protocol, checksum and both addresses are neighbours: one store.
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

    /// The header checksum compensates the change, so that other checksums over the header stay
    /// right.
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
        // The quoted IPv4 header with its checksum sums up to zero.
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

    /// RFC 2003, with "don't fragment" set: the identification is then free (RFC 6864), and has the
    /// port.
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
