//! From bytes to headers. Only this module and `rewrite` distinguish IPv4 from IPv6.

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

/// FIN in the fourteenth byte of a TCP header. SCTP chunks are mapped to the same bits: see
/// [`association`].
const FIN: u8 = 1;
/// SYN.
const SYN: u8 = 2;
/// RST.
const RST: u8 = 4;
/// ACK.
const ACK: u8 = 16;
/// In [`Headers::flags`] of other protocols: the packet is an answer, and opens no flow.
pub(crate) const ANSWER: u8 = 1;

/// An IP header: the fields that both families have.
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
    /// IPv4: the header checksum, in memory order.
    pub check: u16,
    /// Length in bytes, up to the transport header.
    pub len: u32,
    /// Length of the whole packet in bytes, without the link-layer header.
    pub total: u32,
    /// True for a fragment.
    pub fragment: bool,
}

/// The parts of parsing and rewriting that differ between the families.
pub trait Ip: Family {
    /// Protocol number of the family's ICMP.
    const ICMP: Protocol;
    /// Protocol number in the outer header of an encapsulated packet.
    const ENCAPSULATION: Protocol;
    /// Number of bytes that encapsulation adds to a packet.
    const OVERHEAD: u32;
    /// Smallest MTU that a link may have.
    const LEAST_MTU: u32;
    /// Reads the IP header at `offset` and the extension headers behind it; `Err` if the frame ends
    /// in them.
    fn walk<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason>;
    /// Reads the IP header at `offset` of a packet that an ICMP error quotes.
    fn step<P: Packet>(packet: &P, offset: u32) -> Result<Walked<Self>, Reason>;
    /// Returns the kind of an ICMP message, by its type and TTL.
    fn icmp(kind: u8, ttl: u8) -> Icmp;
    /// Returns true for a link-local or unspecified address: not a pod's own, but it may send from
    /// it (P33).
    fn is_link_local(addr: Self::Addr) -> bool;
    /// Returns the bytes of an address, for the directory of classes.
    fn octets(addr: Self::Addr) -> [u8; 4];
    /// Reads the IP header behind the link-layer header; `Err` if the frame ends in it, `None` if
    /// it is not of this family.
    fn read<P: Packet>(packet: &P) -> Result<Option<Network<Self>>, Reason>;
    /// Writes addresses and TTL, and corrects the header checksum.
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        src: Self::Addr,
        dst: Self::Addr,
        ttl: u8,
    ) -> Option<()>;
    /// Writes addresses into the IP header at `at` and subtracts `hops` from its TTL. Returns the
    /// partial sum by which a checksum over the whole header must change.
    fn readdress<P: Packet>(
        packet: &mut P,
        at: u32,
        before: [Self::Addr; 2],
        after: [Self::Addr; 2],
        hops: u8,
    ) -> Option<u32>;
    /// Turns the packet into an ICMP error to its sender, from the address that it was sent to.
    /// `mtu` is for [`Answer::TooBig`].
    fn answer<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        answer: Answer,
        mtu: u32,
    ) -> Option<()>;
    /// Returns true for a unicast address that is not loopback: an ICMP error may be sent to it.
    fn is_host(addr: Self::Addr) -> bool;
    /// Returns the address that masquerade uses for packets that leave by a device; zero if none.
    fn masquerade(device: &proxy_common::node::Device) -> Self::Addr;
    /// Returns this node's address in the cluster; zero if none.
    fn node(device: &proxy_common::node::Device) -> Self::Addr;
    /// Encapsulates the packet of `len` bytes in one from `src` to a backend. The backend's port is
    /// in a header field that the sender may choose.
    fn encapsulate<P: Packet>(
        packet: &mut P,
        len: u32,
        src: Self::Addr,
        backend: Self::Addr,
        port: Port,
    ) -> Option<()>;
    /// Returns the backend's port in the outer header of an encapsulated packet.
    fn encapsulated_port<P: Packet>(packet: &P) -> Option<Port>;
    /// Returns the MTU in the first eight bytes of an ICMP message, if it is a "too big" error.
    fn too_big(icmp: [u8; 8]) -> Option<u32>;
}

/// The headers of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers<F: Family> {
    /// The key of the packet's flow.
    pub key: FlowKey<F::Addr>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP flags; SCTP's chunk type as TCP flags; 0 for UDP.
    pub flags: u8,
    /// IPv4: the header checksum, in memory order.
    pub check: u16,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: u32,
    /// Length in bytes, without the link-layer header.
    pub len: u32,
}

impl<F: Ip> Headers<F> {
    /// Returns true if the packet may open a flow: a TCP SYN without ACK, an SCTP INIT (V16), and a
    /// packet of another protocol that is not an answer.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        if self.key.protocol.has_handshake() {
            self.flags & (SYN | ACK | RST | FIN) == SYN
        } else {
            self.flags & ANSWER == 0
        }
    }
    /// Returns true for a TCP SYN with ACK and an SCTP INIT ACK.
    #[inline(always)]
    pub fn accepts(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & (SYN | ACK) == SYN | ACK
    }
    /// Returns true for a TCP FIN.
    #[inline(always)]
    pub fn fin(&self) -> bool {
        self.key.protocol == Protocol::TCP && self.flags & FIN != 0
    }
    /// Returns true for a TCP FIN and an SCTP SHUTDOWN ACK: only acknowledgements follow it in its
    /// direction.
    #[inline(always)]
    pub fn closes(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & FIN != 0
    }
    /// Returns true for a TCP RST, an SCTP ABORT and an SCTP SHUTDOWN COMPLETE.
    #[inline(always)]
    pub fn reset(&self) -> bool {
        self.key.protocol.has_handshake() && self.flags & RST != 0
    }
    /// Returns the length in bytes, without the link-layer header, of the largest segment that this
    /// packet is cut into.
    #[inline(always)]
    pub fn largest<P: Packet>(&self, packet: &P) -> u32 {
        let segment = packet.segment();
        if segment == 0 {
            return self.len;
        }
        // SCTP is cut at the pieces that its sender, which observes the path MTU, has put together.
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

/// Returns the EtherType of a frame in host order; `None` if the frame is too short.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.load::<[u8; 2]>(12).map(u16::from_be_bytes)
}

/// Returns the TCP flags that correspond to the first chunk of an SCTP packet.
#[inline(always)]
pub(crate) const fn association(chunk: u8) -> u8 {
    match chunk {
        // INIT.
        1 => SYN,
        // INIT ACK.
        2 => SYN | ACK,
        // ABORT, SHUTDOWN COMPLETE.
        6 | 14 => RST,
        // SHUTDOWN ACK: sent by the end that did not begin the shutdown.
        8 => ACK | FIN,
        _ => ACK,
    }
}

/// Parses the headers of a TCP, UDP or SCTP packet; `None` for an exception. Counts fragments and
/// extension headers.
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
            // Up to and with the checksum, which the rewrite needs.
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

/// Returns true if a next header is an extension header: hop-by-hop, routing, authentication,
/// destination options, mobility.
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

/// Reads an IPv6 header; the protocol is that of the first extension header, if there is one.
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
