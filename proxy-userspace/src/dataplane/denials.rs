//! Reports of the packet path about connections that NetworkPolicy denies: one for each client,
//! server and port in ten seconds, with the number of those that were left out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use proxy_common::maps;
use proxy_common::net::Protocol;
use proxy_common::reason::{Denial, Reason};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::object;

/// A connection that was denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied {
    /// The client; port 0 where an answer was met, or the protocol has no ports.
    pub client: SocketAddr,
    /// The server, after translation.
    pub server: SocketAddr,
    /// The IP protocol.
    pub protocol: Protocol,
    /// The direction in which it was denied: by the server's ingress, or by the client's egress.
    pub reason: Reason,
    /// Number of denials of the same ends and port that were left out since the last report.
    pub silent: u32,
}

/// The stream of denials.
pub struct Denials(RingBuf<MapData>);

impl Denials {
    /// Opens the ring buffer of loaded programs.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        let map = object::take(ebpf, maps::DENIALS)?;
        RingBuf::try_from(map)
            .map(Self)
            .context("open the ring buffer DENIALS")
    }

    /// Sends denials until the agent ends. If the channel is full they are dropped; the packet path
    /// has counted them.
    pub async fn run(self, denied_tx: mpsc::Sender<Denied>) -> Result<()> {
        let waits = "wait for denials";
        // SAFETY: the descriptor is open for as long as the ring buffer, which this moves in.
        let ring = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) };
        let mut ring = ring.context(waits)?;
        loop {
            let mut ready = ring.readable_mut().await.context(waits)?;
            while let Some(item) = ready.get_inner_mut().next() {
                if let Some(denied) = read(&item) {
                    _ = denied_tx.try_send(denied);
                }
            }
            ready.clear_ready();
        }
    }
}

/// A [`Denial`] as the packet path writes it.
fn read(bytes: &[u8]) -> Option<Denied> {
    if bytes.len() < size_of::<Denial>() {
        return None;
    }
    // SAFETY: as many bytes as a denial has, and any bytes are one.
    let Denial {
        src,
        dst,
        sport,
        dport,
        protocol,
        reason,
        silent,
    } = unsafe { bytes.as_ptr().cast::<Denial>().read_unaligned() };
    let end = |bytes: [u8; 16], port| {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port)
    };
    Some(Denied {
        client: end(src, sport),
        server: end(dst, dport),
        protocol: Protocol(protocol as u8),
        reason: *Reason::ALL.get(reason as usize)?,
        silent,
    })
}
