//! From bytes to headers: the only file beside `rewrite` that knows IPv4 from IPv6.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use proxy_common::flow::FlowKey;
use proxy_common::net::{Addr4, Addr6, Family, Port, Protocol, V4, V6};
use proxy_common::reason::{Answer, Counter, Reason};

use crate::{Packet, Tables};

pub mod others;
use others::{Icmp, Walked};

/// Bytes of the link-layer header: Ethernet without tags.
pub const LINK: u32 = EthHdr::LEN as u32;

/// FIN in the fourteenth byte of a TCP header. What of SCTP means the same is told by the same bits: see [`association`].
const FIN: u8 = 1;
/// SYN.
const SYN: u8 = 2;
/// RST.
const RST: u8 = 4;
/// ACK.
const ACK: u8 = 16;
/// In [`Headers::flags`] of what is neither TCP nor SCTP: it answers, and so opens no flow.
pub(crate) const ANSWER: u8 = 1;

/// A family's header, read: what both have in common.
#[derive(Clone, Copy)]
pub struct Network<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The bytes around time to live that a rewrite needs: for IPv4 the header checksum in memory order.
    pub check: u16,
    /// Bytes from the link-layer header's end to the transport header.
    pub len: u32,
    /// Bytes of the whole packet without the link-layer header, as the header says.
    pub total: u32,
    /// Part of a fragmented datagram.
    pub fragment: bool,
}

/// What only parsing and rewriting know of a family.
pub trait Ip: Family {
    /// The number of the family's ICMP.
    const ICMP: Protocol;
    /// The protocol of a packet that carries one of the family.
    const ENCAPSULATION: Protocol;
    /// Bytes that encapsulation adds to a packet.
    const OVERHEAD: u32;
    /// The least MTU that a link has to have.
    const LEAST_MTU: u32;
    /// Reads the header at `offset`, and what follows it until the transport header; `Err` if the frame ends in it.
    fn walk<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason>;
    /// The same of a packet that an ICMP error quotes.
    fn step<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason>;
    /// What a message of the family's ICMP is, by its type and its time to live.
    fn icmp(kind: u8, ttl: u8) -> Icmp;
    /// Whether an address is of one link only, or none at all: not a pod's own, but what it may send with (P33).
    fn is_link_local(addr: Self::Addr) -> bool;
    /// The bytes of an address, for the directory of classes.
    fn octets(addr: Self::Addr) -> [u8; 4];
    /// Reads the header behind the link-layer header; `Err` if the frame ends in it, `None` if it is none of this family.
    fn read<P: Packet>(packet: &P) -> Result<Option<Network<Self>>, Reason>;
    /// Writes addresses and time to live; the header checksum follows.
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: Self::Addr,
        dst: Self::Addr,
        ttl: u8,
    ) -> Option<()>;
    /// Writes other addresses into the header at `at`, and takes `hops` from its time to live; gives the partial sum of what a checksum over
    /// the whole header misses now.
    fn readdress<P: Packet>(
        packet: &mut P,
        at: u32,
        before: [Self::Addr; 2],
        after: [Self::Addr; 2],
        hops: u8,
    ) -> Option<u32>;
    /// Turns the packet into an ICMP error to its sender, from the address that it was sent to; `mtu` is for [`Answer::TooBig`].
    fn answer<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        answer: Answer,
        mtu: u32,
    ) -> Option<()>;
    /// Whether an address is one host's, so that an ICMP error may be sent to it.
    fn is_host(addr: Self::Addr) -> bool;
    /// The address of a device that masquerade gives what leaves by it; zero if none.
    fn masquerade(device: &proxy_common::node::Device) -> Self::Addr;
    /// The address that the cluster knows this node by; zero if none.
    fn node(device: &proxy_common::node::Device) -> Self::Addr;
    /// Puts the packet of `len` bytes into one of this node's to a backend, whose port stands where the header has room for a number of the sender's choice.
    fn encapsulate<P: Packet>(
        packet: &mut P,
        len: u32,
        src: Self::Addr,
        backend: Self::Addr,
        port: Port,
    ) -> Option<()>;
    /// The port in the header of such a packet.
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port>;
    /// The MTU that an ICMP message tells, by its first eight bytes, if that is what it is about.
    fn too_big(icmp: [u8; 8]) -> Option<u32>;
}

/// An unfragmented TCP, UDP or SCTP packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers<F: Family> {
    /// The connection that it belongs to.
    pub key: FlowKey<F::Addr>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP flags, the header's thirteenth byte; 0 for UDP.
    pub flags: u8,
    /// IPv4: the header checksum in memory order.
    pub check: u16,
    /// Offset of the transport header from the start of the frame.
    pub transport: u32,
    /// Bytes without the link-layer header.
    pub len: u32,
}

impl<F: Ip> Headers<F> {
    /// Whether the packet may open a flow: a TCP SYN without ACK or an SCTP INIT (V16), and anything else that is no answer.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        if self.key.protocol.has_handshake() {
            self.flags & (SYN | ACK | RST | FIN) == SYN
        } else {
            self.flags & ANSWER == 0
        }
    }
    /// A TCP SYN with ACK, an SCTP INIT ACK: the answer to one that opened a connection.
    #[inline(always)]
    pub fn accepts(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & (SYN | ACK) == SYN | ACK
    }
    /// A TCP FIN.
    #[inline(always)]
    pub fn fin(&self) -> bool {
        self.key.protocol == Protocol::TCP && self.flags & FIN != 0
    }
    /// The last word of a TCP or SCTP client but for acknowledgements, if the other end is never heard.
    #[inline(always)]
    pub fn closes(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & FIN != 0
    }
    /// A TCP RST; of SCTP an ABORT or SHUTDOWN COMPLETE.
    #[inline(always)]
    pub fn reset(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & RST != 0
    }
    /// Bytes without the link-layer header of the largest packet that this one is cut into.
    #[inline(always)]
    pub fn largest<P: Packet>(&self, packet: &P) -> u32 {
        let segment = packet.segment();
        if segment == 0 {
            return self.len;
        }
        // SCTP is cut where its sender has put pieces together, which knows the way.
        if self.key.protocol == Protocol::SCTP {
            return 0;
        }
        let transport = match self.key.protocol {
            Protocol::TCP => packet
                .load::<[u8; 1]>(self.transport + 12)
                .map_or(60, |[offset]| u32::from(offset >> 4) * 4),
            _ => 8,
        };
        self.transport - LINK + transport + segment
    }
}

/// The EtherType of a frame in host order; `None` if it is too short to have one.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.load::<[u8; 2]>(12).map(u16::from_be_bytes)
}

/// What an SCTP packet does to its association, by the type of its first chunk, in the words of TCP.
#[inline(always)]
pub(crate) const fn association(chunk: u8) -> u8 {
    match chunk {
        // INIT.
        1 => SYN,
        // INIT ACK.
        2 => SYN | ACK,
        // ABORT, SHUTDOWN COMPLETE.
        6 | 14 => RST,
        // SHUTDOWN ACK: the last word of who did not begin the end.
        8 => ACK | FIN,
        _ => ACK,
    }
}

/// Reads the headers of a TCP, UDP or SCTP packet of family `F`; `None` for anything else; fragments and extension
/// headers are counted.
#[inline(always)]
pub fn headers<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
) -> Result<Option<Headers<F>>, Reason> {
    let Some(network) = F::read(packet)? else {
        return Ok(None);
    };
    if network.fragment {
        tables.count(Counter::Fragment);
        return Ok(None);
    }
    let transport = LINK + network.len;
    let (sport, dport, flags) = match network.protocol {
        Protocol::TCP => {
            // Through the checksum, which the rewrite needs.
            let tcp: [u8; 18] = packet.load(transport).ok_or(Reason::Truncated)?;
            (
                Port::from_bytes([tcp[0], tcp[1]]),
                Port::from_bytes([tcp[2], tcp[3]]),
                tcp[13],
            )
        }
        Protocol::UDP => {
            let udp: [u8; 8] = packet.load(transport).ok_or(Reason::Truncated)?;
            (
                Port::from_bytes([udp[0], udp[1]]),
                Port::from_bytes([udp[2], udp[3]]),
                0,
            )
        }
        Protocol::SCTP => {
            // The common header and the first chunk's type.
            let sctp: [u8; 13] = packet.load(transport).ok_or(Reason::Truncated)?;
            (
                Port::from_bytes([sctp[0], sctp[1]]),
                Port::from_bytes([sctp[2], sctp[3]]),
                association(sctp[12]),
            )
        }
        _ => {
            if F::V6 && extension(network.protocol) {
                tables.count(Counter::ExtensionHeader);
            }
            return Ok(None);
        }
    };
    let key = FlowKey::new(network.protocol, network.src, sport, network.dst, dport);
    Ok(Some(Headers {
        key,
        ttl: network.ttl,
        flags,
        check: network.check,
        transport,
        len: network.total,
    }))
}

/// Whether an IPv6 header's next header is one before the transport's: hop-by-hop, routing, authentication, destination options, mobility.
#[inline(always)]
const fn extension(next: Protocol) -> bool {
    matches!(next.0, 0 | 43 | 51 | 60 | 135)
}

/// Reads an IPv4 header; options are skipped.
#[inline(always)]
pub(crate) fn read4<P: Packet>(packet: &P) -> Result<Option<Network<V4>>, Reason> {
    let ip: Ipv4Hdr = packet.load(LINK).ok_or(Reason::Truncated)?;
    let len = u32::from(ip.vihl & 15) * 4;
    if ip.vihl >> 4 != 4 || len < 20 {
        return Ok(None);
    }
    Ok(Some(Network {
        src: Addr4::from_bytes(ip.src_addr),
        dst: Addr4::from_bytes(ip.dst_addr),
        protocol: Protocol(ip.proto),
        ttl: ip.ttl,
        check: u16::from_ne_bytes(ip.check),
        len,
        total: u32::from(u16::from_be_bytes(ip.tot_len)),
        // More fragments, or an offset.
        fragment: u16::from_be_bytes(ip.frags) & 0x3fff != 0,
    }))
}

/// Reads an IPv6 header; a packet with extension headers shows their number as protocol, and so is none of ours.
#[inline(always)]
pub(crate) fn read6<P: Packet>(packet: &P) -> Result<Option<Network<V6>>, Reason> {
    /// The fragment header's number.
    const FRAGMENT: u8 = 44;
    let ip: Ipv6Hdr = packet.load(LINK).ok_or(Reason::Truncated)?;
    if ip.vcf[0] >> 4 != 6 {
        return Ok(None);
    }
    Ok(Some(Network {
        src: Addr6::from_bytes(ip.src_addr),
        dst: Addr6::from_bytes(ip.dst_addr),
        protocol: Protocol(ip.next_hdr),
        ttl: ip.hop_limit,
        check: 0,
        len: Ipv6Hdr::LEN as u32,
        total: u32::from(u16::from_be_bytes(ip.payload_len)) + Ipv6Hdr::LEN as u32,
        fragment: ip.next_hdr == FRAGMENT,
    }))
}
