//! The first packet of a connection, and its outcome.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, anyhow, ensure};
use proxy_common::net::Protocol;
use proxy_common::reason::Reason;
use proxy_ebpf::Action;

use crate::segment::{Icmp, SYN, Segment};

/// A protocol by its name.
pub fn protocol(name: &str) -> Result<Protocol> {
    let known = [Protocol::TCP, Protocol::UDP, Protocol::SCTP]
        .into_iter()
        .find(|protocol| protocol.name() == name);
    known.with_context(|| format!("`{name}` is no protocol that Services have"))
}

/// The first packet of a connection.
pub fn first(protocol: Protocol, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    Segment::new(protocol, src, dst).flags(SYN).bytes()
}

/// The outcome of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It goes on unchanged to the next program.
    Pass,
    /// Dropped, for a reason.
    Drop(Reason),
    /// An ICMP port unreachable was sent to its source.
    Reject,
    /// On its way to an endpoint.
    Forward {
        /// Its destination.
        to: SocketAddr,
        /// True if its source was rewritten.
        masqueraded: bool,
    },
}

/// Returns the outcome of a packet from `src`, from the verdict and the bytes after it.
pub fn outcome(
    said: Result<Action, Reason>,
    src: SocketAddr,
    before: &[u8],
    after: &[u8],
) -> Result<Outcome> {
    match said {
        Err(reason) => Ok(Outcome::Drop(reason)),
        Ok(Action::Untouched) => {
            ensure!(before == after, "what goes on as it came was written to");
            Ok(Outcome::Pass)
        }
        Ok(Action::Transmit(_) | Action::Return(_) | Action::Enter(_)) => rejected(src.ip(), after),
        Ok(Action::Stack | Action::Pod(_) | Action::Neighbour(_)) => {
            let (from, to) = ends(after)?;
            Ok(Outcome::Forward {
                to,
                masqueraded: from.ip() != src.ip(),
            })
        }
    }
}

fn rejected(client: IpAddr, bytes: &[u8]) -> Result<Outcome> {
    let icmp = Icmp::read(bytes).map_err(|why| anyhow!("what was sent back is no ICMP: {why}"))?;
    let port_unreachable = if client.is_ipv4() { (3, 3) } else { (1, 4) };
    ensure!(
        (icmp.kind, icmp.code) == port_unreachable,
        "ICMP type {} code {} was sent back",
        icmp.kind,
        icmp.code
    );
    ensure!(icmp.dst == client, "the refusal went to {}", icmp.dst);
    Ok(Outcome::Reject)
}

/// Returns source and destination of a packet with right checksums.
fn ends(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let segment =
        Segment::read(bytes).map_err(|why| anyhow!("what was sent on is broken: {why}"))?;
    Ok((segment.src, segment.dst))
}
