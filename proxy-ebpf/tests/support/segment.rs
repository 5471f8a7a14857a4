//! Packets made from a description, and read back. `etherparse` and `crc32c` compute and verify
//! every checksum, not the code under test.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Header, Icmpv6Header, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, NetHeaders, PacketBuilder, PacketHeaders, TcpHeader,
    TransportHeader,
};
use proxy_common::net::Protocol;

/// TCP's FIN.
pub const FIN: u8 = 1;
/// TCP's SYN.
pub const SYN: u8 = 2;
/// TCP's RST.
pub const RST: u8 = 4;
/// TCP's ACK.
pub const ACK: u8 = 16;
/// Time to live of the packets that tests make.
pub const TTL: u8 = 64;

/// Returns the length of the transport header, in bytes; for SCTP, with the header of one chunk.
pub fn overhead(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => 20,
        Protocol::SCTP => 16,
        _ => 8,
    }
}

/// A TCP, UDP or SCTP packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Destination and source of the link layer.
    pub link: [u8; 12],
    /// The source.
    pub src: SocketAddr,
    /// The destination, of the same family.
    pub dst: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// TCP's flag byte; for SCTP, the flags that stand for its chunk ([`CHUNKS`]); 0 for UDP.
    pub flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4 options.
    pub options: Vec<u8>,
    /// The bytes after the transport header, or in the one chunk of SCTP.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Returns a datagram, or a TCP segment without flags.
    pub fn new(protocol: Protocol, src: SocketAddr, dst: SocketAddr) -> Self {
        let link = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let segment = Self {
            link,
            src,
            dst,
            protocol,
            flags: 0,
            ttl: TTL,
            options: Vec::new(),
            payload: b"portway".to_vec(),
        };
        segment.flags(0)
    }
    /// Returns the packet with these flags, if it is TCP or SCTP.
    pub fn flags(self, flags: u8) -> Self {
        let flags = match self.protocol {
            Protocol::TCP => flags,
            Protocol::SCTP if flags & RST != 0 => RST,
            Protocol::SCTP if flags & SYN != 0 => flags & (SYN | ACK),
            Protocol::SCTP => flags & FIN | ACK,
            _ => 0,
        };
        Self { flags, ..self }
    }
    /// Returns the packet with this time to live.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }
    /// Returns the packet with this payload.
    pub fn payload(self, payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..self
        }
    }
    /// Returns the packet with another source.
    pub fn from(self, src: SocketAddr) -> Self {
        Self { src, ..self }
    }
    /// Returns the packet with another destination.
    pub fn to(self, dst: SocketAddr) -> Self {
        Self { dst, ..self }
    }
    /// Returns the packet one router later.
    pub fn hop(self) -> Self {
        Self {
            ttl: self.ttl - 1,
            ..self
        }
    }
    /// Returns the receiver's answer: SYN and ACK to a SYN, ACK to anything else.
    pub fn answer(&self) -> Self {
        let flags = if self.flags & SYN != 0 {
            SYN | ACK
        } else {
            ACK
        };
        Self::new(self.protocol, self.dst, self.src)
            .flags(flags)
            .payload(b"answer")
    }

    /// Returns the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = self.link;
        let step = PacketBuilder::ethernet2([s0, s1, s2, s3, s4, s5], [d0, d1, d2, d3, d4, d5])
            .ip(self.network());
        let mut bytes = Vec::new();
        let (sport, dport) = (self.src.port(), self.dst.port());
        if self.protocol == Protocol::TCP {
            step.tcp_header(tcp(sport, dport, self.flags))
                .write(&mut bytes, &self.payload)
                .expect("writes to memory");
        } else if self.protocol == Protocol::SCTP {
            let packet = sctp(sport, dport, chunk(self.flags), &self.payload);
            step.write(&mut bytes, IpNumber(Protocol::SCTP.0), &packet)
                .expect("writes to memory");
        } else {
            step.udp(sport, dport)
                .write(&mut bytes, &self.payload)
                .expect("writes to memory");
        }
        bytes
    }

    fn network(&self) -> IpHeaders {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let number = IpNumber(self.protocol.0);
                let mut ip =
                    Ipv4Header::new(0, self.ttl, number, src.octets(), dst.octets()).expect("fits");
                ip.options = Ipv4Options::try_from(&self.options[..]).expect("whole words");
                IpHeaders::Ipv4(ip, Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ip = Ipv6Header {
                    flow_label: Ipv6FlowLabel::ZERO,
                    next_header: IpNumber(self.protocol.0),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Default::default()
                };
                IpHeaders::Ipv6(ip, Ipv6Extensions::default())
            }
            _ => panic!("two families in one packet"),
        }
    }

    /// Reads a TCP, UDP or SCTP packet, and verifies all its checksums.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let packet = PacketHeaders::from_ethernet_slice(bytes).map_err(|why| why.to_string())?;
        let Some(net) = &packet.net else {
            return Err("no IP".into());
        };
        let payload = packet.payload.slice();
        let (src, dst, ttl) = ends(net)?;
        let (protocol, sport, dport, flags, payload) = match &packet.transport {
            Some(TransportHeader::Tcp(tcp)) => (
                Protocol::TCP,
                tcp.source_port,
                tcp.destination_port,
                flag_byte(tcp),
                payload,
            ),
            Some(TransportHeader::Udp(udp)) => (
                Protocol::UDP,
                udp.source_port,
                udp.destination_port,
                0,
                payload,
            ),
            None if is_sctp(net) => read_sctp(payload)?,
            other => return Err(format!("{other:?}")),
        };
        if let Some(transport) = &packet.transport {
            verify(net, transport, payload)?;
        }
        let mut link = [0; 12];
        link.copy_from_slice(&bytes[..12]);
        let options = net
            .ipv4_ref()
            .map(|(ip, _)| ip.options.to_vec())
            .unwrap_or_default();
        let (src, dst) = (SocketAddr::new(src, sport), SocketAddr::new(dst, dport));
        Ok(Self {
            link,
            src,
            dst,
            protocol,
            flags,
            ttl,
            options,
            payload: payload.to_vec(),
        })
    }
}

/// Returns the chunk type for these flags.
fn chunk(flags: u8) -> u8 {
    CHUNKS
        .iter()
        .find(|(part, _)| *part == flags)
        .map_or(0, |(_, chunk)| *chunk)
}

/// SCTP chunk types by the TCP flags that stand for them: INIT, INIT ACK, ABORT, SHUTDOWN, DATA.
const CHUNKS: [(u8, u8); 5] = [(SYN, 1), (SYN | ACK, 2), (RST, 6), (FIN | ACK, 7), (ACK, 0)];

/// An SCTP packet with one chunk.
fn sctp(sport: u16, dport: u16, chunk: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    // The verification tag, and room for the checksum.
    bytes.extend([if chunk == 1 { 0 } else { 9 }; 4]);
    bytes.extend([0; 4]);
    bytes.extend([chunk, 0]);
    bytes.extend((4 + payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let crc = crc32c::crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn is_sctp(net: &NetHeaders) -> bool {
    let number = match net {
        NetHeaders::Ipv4(ip, _) => ip.protocol,
        NetHeaders::Ipv6(ip, _) => ip.next_header,
        NetHeaders::Arp(_) => return false,
    };
    number == IpNumber(Protocol::SCTP.0)
}

fn read_sctp(bytes: &[u8]) -> Result<(Protocol, u16, u16, u8, &[u8]), String> {
    if bytes.len() < 16 {
        return Err("SCTP is cut short".into());
    }
    let mut unfinished = bytes.to_vec();
    unfinished[8..12].fill(0);
    let (found, right) = (
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        crc32c::crc32c(&unfinished),
    );
    if found != right {
        return Err(format!("checksum {found:#010x}, right is {right:#010x}"));
    }
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let flags = CHUNKS
        .iter()
        .find(|(_, chunk)| *chunk == bytes[12])
        .ok_or("an unknown chunk")?
        .0;
    let payload = bytes
        .get(16..12 + usize::from(number(14)))
        .ok_or("the chunk is cut short")?;
    Ok((Protocol::SCTP, number(0), number(2), flags, payload))
}

fn tcp(sport: u16, dport: u16, flags: u8) -> TcpHeader {
    let mut tcp = TcpHeader::new(sport, dport, 0x0102_0304, 0xffff);
    (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (
        flags & 1 != 0,
        flags & 2 != 0,
        flags & 4 != 0,
        flags & 8 != 0,
    );
    (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (
        flags & 16 != 0,
        flags & 32 != 0,
        flags & 64 != 0,
        flags & 128 != 0,
    );
    tcp
}

fn flag_byte(tcp: &TcpHeader) -> u8 {
    let bits = [
        tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack, tcp.urg, tcp.ece, tcp.cwr,
    ];
    bits.iter()
        .enumerate()
        .map(|(bit, set)| u8::from(*set) << bit)
        .sum()
}

/// Returns source, destination and TTL; verifies an IPv4 header's checksum.
fn ends(net: &NetHeaders) -> Result<(IpAddr, IpAddr, u8), String> {
    match net {
        NetHeaders::Ipv4(ip, _) if ip.header_checksum != ip.calc_header_checksum() => {
            Err("wrong IPv4 header checksum".into())
        }
        NetHeaders::Ipv4(ip, _) => Ok((ip.source.into(), ip.destination.into(), ip.time_to_live)),
        NetHeaders::Ipv6(ip, _) => Ok((ip.source.into(), ip.destination.into(), ip.hop_limit)),
        NetHeaders::Arp(_) => Err("ARP".into()),
    }
}

/// Verifies the transport's checksum; UDP over IPv4 may have none.
fn verify(net: &NetHeaders, transport: &TransportHeader, payload: &[u8]) -> Result<(), String> {
    let (found, right) = match (net, transport) {
        (NetHeaders::Ipv4(..), TransportHeader::Udp(udp)) if udp.checksum == 0 => return Ok(()),
        (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).ok())
        }
        (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
            (udp.checksum, udp.calc_checksum_ipv4(ip, payload).ok())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv6(ip, payload).ok())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
            (udp.checksum, udp.calc_checksum_ipv6(ip, payload).ok())
        }
        (NetHeaders::Ipv4(..), TransportHeader::Icmpv4(icmp)) => {
            (icmp.checksum, Some(icmp.icmp_type.calc_checksum(payload)))
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(icmp)) => (
            icmp.checksum,
            icmp.icmp_type
                .calc_checksum(ip.source, ip.destination, payload)
                .ok(),
        ),
        other => return Err(format!("{other:?}")),
    };
    if right == Some(found) {
        Ok(())
    } else {
        Err(format!("checksum {found:#06x}, right is {right:#06x?}"))
    }
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Icmp {
    /// Destination and source of the link layer.
    pub link: [u8; 12],
    /// The source.
    pub src: IpAddr,
    /// The destination.
    pub dst: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The four bytes before the quote: an MTU, or zeros.
    pub rest: [u8; 4],
    /// The quote: a packet from its IP header on.
    pub quote: Vec<u8>,
}

impl Icmp {
    /// Reads an ICMP message, and verifies all its checksums.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let packet = PacketHeaders::from_ethernet_slice(bytes).map_err(|why| why.to_string())?;
        let Some(net) = &packet.net else {
            return Err("no IP".into());
        };
        let Some(transport) = &packet.transport else {
            return Err("no transport".into());
        };
        let quote = packet.payload.slice().to_vec();
        let (src, dst, ttl) = ends(net)?;
        verify(net, transport, &quote)?;
        let head = match transport {
            TransportHeader::Icmpv4(icmp) => Icmpv4Header::to_bytes(icmp).to_vec(),
            TransportHeader::Icmpv6(icmp) => Icmpv6Header::to_bytes(icmp).to_vec(),
            other @ (TransportHeader::Udp(_) | TransportHeader::Tcp(_)) => {
                return Err(format!("{other:?}"));
            }
        };
        let mut link = [0; 12];
        link.copy_from_slice(&bytes[..12]);
        Ok(Self {
            link,
            src,
            dst,
            ttl,
            kind: head[0],
            code: head[1],
            rest: [head[4], head[5], head[6], head[7]],
            quote,
        })
    }
}
