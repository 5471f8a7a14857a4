//! Parses exceptions: fragments, extension headers, ICMP and other protocols (P25-P27).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use proxy_common::flow::{FlowKey, FragmentKey, fragment_ports};
use proxy_common::net::{Addr4, Addr6, Family, Port, Protocol, V4, V6};
use proxy_common::reason::Reason;

use super::{ANSWER, Headers, Ip, LINK, association};
use crate::{Packet, Scratch, Tables};

/// Maximum number of extension headers; a packet with more is dropped.
const EXTENSIONS: u32 = 8;

/// The kind of an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Other {
    /// A whole packet; the key has its connection.
    Packet = 0,
    /// An ICMP error; the key is that of the quoted packet, reversed, so that it is the key of
    /// packets that go in the error's direction.
    Error = 1,
    /// Neighbour or multicast listener discovery, which policies do not concern (P26).
    Exempt = 2,
    /// A fragment whose first one was not seen; the key has no ports.
    LostFragment = 3,
    /// The first fragment of a packet.
    First = 4,
    /// Another fragment of a packet.
    Later = 5,
}

/// An IP header and its extension headers.
#[derive(Clone, Copy)]
pub struct Walked<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4: the header checksum in memory order.
    pub check: u16,
    /// True for a fragment.
    pub fragment: bool,
    /// True for a fragment that is not the first.
    pub later: bool,
    /// The identification of a fragmented datagram, in memory order; else 0.
    pub id: u32,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: u32,
    /// Length of the whole packet in bytes, without the link-layer header.
    pub len: u32,
}

/// Parses a packet for which [`super::headers`] returns `None`. The own key of an ICMP error goes
/// to [`Scratch::reply`].
#[inline(always)]
pub fn others<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Result<Other, Reason> {
    let Scratch {
        headers,
        reply: itself,
        quoted,
        ..
    } = scratch;
    *quoted = 0;
    let walked = F::walk(packet, LINK)?;
    headers.ttl = walked.ttl;
    headers.flags = 0;
    headers.check = walked.check;
    headers.transport = walked.transport;
    headers.len = walked.len;
    let none = Port::default();
    headers.key = FlowKey::new(walked.protocol, walked.src, none, walked.dst, none);
    *itself = headers.key;
    if walked.later {
        let Some(ports) = tables.fragment(&fragment_key(&walked)) else {
            return Ok(Other::LostFragment);
        };
        set_ports(headers, ports);
        return Ok(Other::Later);
    }
    let kind = transport(packet, headers, quoted)?;
    if walked.fragment && kind == Other::Packet {
        tables.record_fragment(
            &fragment_key(&walked),
            fragment_ports(headers.key.sport, headers.key.dport),
        );
        return Ok(Other::First);
    }
    Ok(kind)
}

#[inline(always)]
fn fragment_key<F: Family>(walked: &Walked<F>) -> FragmentKey<F::Addr> {
    FragmentKey {
        src: walked.src,
        dst: walked.dst,
        id: walked.id,
        protocol: walked.protocol,
        zero: [0; 3],
    }
}

#[inline(always)]
fn set_ports<F: Family>(headers: &mut Headers<F>, ports: u32) {
    let [a, b, c, d] = ports.to_ne_bytes();
    headers.key.sport = Port::from_bytes([a, b]);
    headers.key.dport = Port::from_bytes([c, d]);
}

/// Reads the transport header's ports, or numbers that serve as ports.
#[inline(always)]
fn transport<F: Ip, P: Packet>(
    packet: &P,
    headers: &mut Headers<F>,
    quoted: &mut u32,
) -> Result<Other, Reason> {
    match headers.key.protocol {
        Protocol::TCP => {
            let tcp: [u8; 14] = packet.load(headers.transport).ok_or(Reason::Truncated)?;
            set_ports(
                headers,
                u32::from_ne_bytes([tcp[0], tcp[1], tcp[2], tcp[3]]),
            );
            headers.flags = tcp[13];
        }
        Protocol::UDP => {
            let ports: [u8; 4] = packet.load(headers.transport).ok_or(Reason::Truncated)?;
            set_ports(headers, u32::from_ne_bytes(ports));
        }
        Protocol::SCTP => {
            let sctp: [u8; 13] = packet.load(headers.transport).ok_or(Reason::Truncated)?;
            set_ports(
                headers,
                u32::from_ne_bytes([sctp[0], sctp[1], sctp[2], sctp[3]]),
            );
            headers.flags = association(sctp[12]);
        }
        protocol if protocol == F::ICMP => return icmp(packet, headers, quoted),
        _ => {}
    }
    Ok(Other::Packet)
}

/// Reads an ICMP header. The identifier of an echo serves as the requester's port, so that the
/// reply is the other direction of the same flow.
#[inline(always)]
fn icmp<F: Ip, P: Packet>(
    packet: &P,
    headers: &mut Headers<F>,
    quoted: &mut u32,
) -> Result<Other, Reason> {
    let icmp: [u8; 8] = packet.load(headers.transport).ok_or(Reason::Truncated)?;
    let number = Port::from_bytes([icmp[4], icmp[5]]);
    match F::icmp(icmp[0], headers.ttl) {
        Icmp::Request => headers.key.sport = number,
        Icmp::Answer => {
            headers.key.dport = number;
            headers.flags = ANSWER;
        }
        Icmp::Error => {
            headers.flags = ANSWER;
            // Without a readable quote it belongs to no flow.
            let Ok(inner) = F::step(packet, headers.transport + 8) else {
                return Ok(Other::Packet);
            };
            let none = Port::default();
            headers.key = FlowKey::new(inner.protocol, inner.dst, none, inner.src, none);
            if !inner.later {
                *quoted = quoted_ports(packet, &inner, headers);
            }
            return Ok(Other::Error);
        }
        Icmp::Neighbour => return Ok(Other::Exempt),
        Icmp::Other => {}
    }
    Ok(Other::Packet)
}

/// Reads the ports of a quoted packet, reversed. Returns their offset; 0 if there are none, or the
/// quote is too short.
#[inline(always)]
fn quoted_ports<F: Ip, P: Packet>(packet: &P, quoted: &Walked<F>, headers: &mut Headers<F>) -> u32 {
    if quoted.protocol == F::ICMP {
        let Some(echo) = packet.load::<[u8; 8]>(quoted.transport) else {
            return 0;
        };
        let number = Port::from_bytes([echo[4], echo[5]]);
        match F::icmp(echo[0], 0) {
            Icmp::Request => headers.key.dport = number,
            Icmp::Answer => headers.key.sport = number,
            Icmp::Error | Icmp::Neighbour | Icmp::Other => {}
        }
    } else if matches!(
        quoted.protocol,
        Protocol::TCP | Protocol::UDP | Protocol::SCTP
    ) {
        let Some([a, b, c, d]) = packet.load::<[u8; 4]>(quoted.transport) else {
            return 0;
        };
        headers.key.sport = Port::from_bytes([c, d]);
        headers.key.dport = Port::from_bytes([a, b]);
        return quoted.transport;
    }
    0
}

/// The kind of an ICMP or ICMPv6 message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Icmp {
    /// An echo request.
    Request,
    /// An echo reply.
    Answer,
    /// An error, which quotes another packet.
    Error,
    /// Neighbour or multicast listener discovery (P26).
    Neighbour,
    /// Anything else.
    Other,
}

/// Returns the kind of an ICMP type.
#[inline(always)]
pub(crate) const fn icmp4(kind: u8) -> Icmp {
    match kind {
        8 => Icmp::Request,
        0 => Icmp::Answer,
        3 | 4 | 11 | 12 => Icmp::Error,
        _ => Icmp::Other,
    }
}

/// Returns the kind of an ICMPv6 type. Neighbour discovery has hop limit 255, which shows that no
/// router has forwarded it.
#[inline(always)]
pub(crate) const fn icmp6(kind: u8, ttl: u8) -> Icmp {
    match kind {
        128 => Icmp::Request,
        129 => Icmp::Answer,
        1..=4 => Icmp::Error,
        133..=137 if ttl == 255 => Icmp::Neighbour,
        130..=132 | 143 => Icmp::Neighbour,
        _ => Icmp::Other,
    }
}

/// Reads an IPv4 header.
#[inline(always)]
pub(crate) fn walk4<P: Packet>(packet: &P, at: u32) -> Result<Walked<V4>, Reason> {
    let ip: Ipv4Hdr = packet.load(at).ok_or(Reason::Truncated)?;
    let len = u32::from(ip.vihl & 15) * 4;
    if ip.vihl >> 4 != 4 || len < 20 {
        return Err(Reason::Truncated);
    }
    let frags = u16::from_be_bytes(ip.frags);
    let fragment = frags & 0x3fff != 0;
    Ok(Walked {
        src: Addr4::from_bytes(ip.src_addr),
        dst: Addr4::from_bytes(ip.dst_addr),
        protocol: Protocol(ip.proto),
        ttl: ip.ttl,
        check: u16::from_ne_bytes(ip.check),
        fragment,
        later: frags & 0x1fff != 0,
        id: if fragment {
            u32::from(u16::from_ne_bytes(ip.id))
        } else {
            0
        },
        transport: at + len,
        len: u32::from(u16::from_be_bytes(ip.tot_len)),
    })
}

/// Reads the header of a quoted packet and a fragment header, but no other extension header: the
/// verifier accepts only one walk.
#[inline(always)]
pub(crate) fn step6<P: Packet>(packet: &P, at: u32) -> Result<Walked<V6>, Reason> {
    let mut walked = base6(packet, at)?;
    if walked.protocol.0 == FRAGMENT {
        fragment6(packet, &mut walked)?;
    }
    Ok(walked)
}

/// Reads an IPv6 header and its extension headers.
#[inline(always)]
pub(crate) fn walk6<P: Packet>(packet: &P, at: u32) -> Result<Walked<V6>, Reason> {
    let mut walked = base6(packet, at)?;
    let mut headers = 0;
    while headers < EXTENSIONS {
        match walked.protocol.0 {
            // Hop-by-hop, routing, destination options, mobility, host identity, shim.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let [next, len]: [u8; 2] =
                    packet.load(walked.transport).ok_or(Reason::Truncated)?;
                walked.protocol = Protocol(next);
                walked.transport += (u32::from(len) + 1) * 8;
            }
            // Authentication.
            51 => {
                let [next, len]: [u8; 2] =
                    packet.load(walked.transport).ok_or(Reason::Truncated)?;
                walked.protocol = Protocol(next);
                walked.transport += (u32::from(len) + 2) * 4;
            }
            FRAGMENT => {
                fragment6(packet, &mut walked)?;
                // A later fragment has no further headers.
                if walked.later {
                    return Ok(walked);
                }
            }
            _ => return Ok(walked),
        }
        headers += 1;
    }
    Err(Reason::Truncated)
}

/// The fragment header's number.
const FRAGMENT: u8 = 44;

#[inline(always)]
fn fragment6<P: Packet>(packet: &P, walked: &mut Walked<V6>) -> Result<(), Reason> {
    let head: [u8; 8] = packet.load(walked.transport).ok_or(Reason::Truncated)?;
    walked.protocol = Protocol(head[0]);
    walked.transport += 8;
    walked.fragment = u16::from_be_bytes([head[2], head[3]]) & 0xfff9 != 0;
    walked.later = u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0;
    walked.id = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    Ok(())
}

#[inline(always)]
fn base6<P: Packet>(packet: &P, at: u32) -> Result<Walked<V6>, Reason> {
    let ip: Ipv6Hdr = packet.load(at).ok_or(Reason::Truncated)?;
    if ip.vcf[0] >> 4 != 6 {
        return Err(Reason::Truncated);
    }
    Ok(Walked {
        src: Addr6::from_bytes(ip.src_addr),
        dst: Addr6::from_bytes(ip.dst_addr),
        protocol: Protocol(ip.next_hdr),
        ttl: ip.hop_limit,
        check: 0,
        fragment: false,
        later: false,
        id: 0,
        transport: at + Ipv6Hdr::LEN as u32,
        len: u32::from(u16::from_be_bytes(ip.payload_len)) + Ipv6Hdr::LEN as u32,
    })
}
