//! The first packet of a connection, and what can be told from what becomes of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetHeaders, PacketBuilder, PacketHeaders};
use proxy_common::event::Reason;
use proxy_common::net::Protocol;
use proxy_ebpf::Action;

use crate::segment::{Icmp, SYN, Segment};

/// A protocol by its name.
pub fn protocol(name: &str) -> Result<Protocol> {
    let known = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].into_iter().find(|protocol| protocol.name() == name);
    known.with_context(|| format!("`{name}` is no protocol that Services have"))
}

/// The first packet of a connection.
pub fn first(protocol: Protocol, src: SocketAddr, dst: SocketAddr) -> Result<Vec<u8>> {
    if protocol == Protocol::SCTP { init(src, dst) } else { Ok(Segment::new(protocol, src, dst).flags(SYN).bytes()) }
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// As it came, to whoever comes next.
    Pass,
    /// Dropped, for a reason.
    Drop(Reason),
    /// Its sender was told so by an ICMP port unreachable.
    Reject,
    /// On its way to an endpoint.
    Forward {
        /// Where it goes.
        to: SocketAddr,
        /// Whether its source is another than it was.
        masqueraded: bool,
    },
}

/// Understands what was said of a packet from `src`, and what it is then.
pub fn outcome(said: Result<Action, Reason>, src: SocketAddr, before: &[u8], after: &[u8]) -> Result<Outcome> {
    match said {
        Err(reason) => Ok(Outcome::Drop(reason)),
        Ok(Action::Untouched) => {
            ensure!(before == after, "what goes on as it came was written to");
            Ok(Outcome::Pass)
        }
        Ok(Action::Transmit(_) | Action::Return(_)) => rejected(src.ip(), after),
        Ok(Action::Stack | Action::Pod(_) | Action::Neighbour(_)) => {
            let (from, to) = ends(after)?;
            Ok(Outcome::Forward { to, masqueraded: from.ip() != src.ip() })
        }
    }
}

fn rejected(client: IpAddr, bytes: &[u8]) -> Result<Outcome> {
    let icmp = Icmp::read(bytes).map_err(|why| anyhow!("what was sent back is no ICMP: {why}"))?;
    let port_unreachable = if client.is_ipv4() { (3, 3) } else { (1, 4) };
    ensure!((icmp.kind, icmp.code) == port_unreachable, "ICMP type {} code {} was sent back", icmp.kind, icmp.code);
    ensure!(icmp.dst == client, "the refusal went to {}", icmp.dst);
    Ok(Outcome::Reject)
}

/// An SCTP INIT, of which only the ports are looked at.
fn init(src: SocketAddr, dst: SocketAddr) -> Result<Vec<u8>> {
    let mut bytes = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    // Verification tag and checksum, then the chunk: type 1, 20 bytes.
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20]);
    bytes.extend([0; 16]);
    let number = IpNumber(Protocol::SCTP.0);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(bytes.len() as u16, 64, number, src.octets(), dst.octets()).context("make a header")?;
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let header = Ipv6Header { next_header: number, hop_limit: 64, source, destination, ..Default::default() };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => bail!("two families in one packet"),
    };
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ip(ip);
    step.write(&mut frame, number, &bytes).context("make a packet")?;
    Ok(frame)
}

/// Where a packet comes from and goes to; TCP and UDP with right checksums.
fn ends(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let packet = PacketHeaders::from_ethernet_slice(bytes).context("read the packet")?;
    let (src, dst, number) = match &packet.net {
        Some(NetHeaders::Ipv4(ip, _)) => (IpAddr::from(ip.source), IpAddr::from(ip.destination), ip.protocol),
        Some(NetHeaders::Ipv6(ip, _)) => (IpAddr::from(ip.source), IpAddr::from(ip.destination), ip.next_header),
        _ => bail!("what was sent on is no IP"),
    };
    if number != IpNumber(Protocol::SCTP.0) {
        let segment = Segment::read(bytes).map_err(|why| anyhow!("what was sent on is broken: {why}"))?;
        return Ok((segment.src, segment.dst));
    }
    let payload = packet.payload.slice();
    ensure!(payload.len() >= 4, "the SCTP header is cut short");
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    Ok((SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2))))
}
