//! Ends UDP sockets of this node's processes that are connected to a backend that is gone (V14):
//! without an error they would go on sending to it.
//!
//! Unconnected sockets need no end: their next datagram goes to another backend. The records of
//! both kinds are deleted.

mod diag;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use proxy_common::net::{Address, Protocol};
use proxy_common::socket::PeerKey;
use tracing::{debug, info, warn};

use crate::dataplane::{Maps, PeerTable};
use crate::ended::Ended;
use crate::metrics::Metrics;
use crate::serving::Serving;

/// Ends sockets, and logs once if the kernel refuses.
#[derive(Debug, Default)]
pub struct Sockets {
    refused: bool,
}

/// A socket of a process that was sent to a backend, by its cookie.
type Sent = BTreeMap<u64, SocketAddr>;

impl Sockets {
    /// Ends the connected UDP sockets of this network namespace with a backend that `serving` does
    /// not allow. Returns their number.
    ///
    /// # Errors
    /// If the records of sockets cannot be read. If the kernel refuses to end sockets, that is
    /// logged, and the number is 0.
    pub fn end(&mut self, maps: &mut Maps, serving: &Serving, metrics: &Metrics) -> Result<usize> {
        let mut sent = forget(&mut maps.v4, serving).context("IPv4")?;
        sent.extend(forget(&mut maps.v6, serving).context("IPv6")?);
        if sent.is_empty() {
            return Ok(0);
        }
        let ended = diag::destroy_udp(&sent).unwrap_or_else(|error| {
            self.refuse(&error);
            0
        });
        (0..ended).for_each(|_| metrics.flow_ended(Ended::BackendGone));
        debug!(
            forgotten = sent.len(),
            ended, "ended UDP sockets: their backends are gone"
        );
        Ok(ended)
    }

    /// Returns true if the kernel has refused to end a socket.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    fn refuse(&mut self, error: &anyhow::Error) {
        let why = format!("{error:#}");
        if std::mem::replace(&mut self.refused, true) {
            info!(
                why,
                "cannot end connected UDP sockets with a backend that is gone"
            );
        } else {
            warn!(
                why,
                "this kernel cannot end connected UDP sockets with a backend that is gone (CONFIG_INET_DIAG_DESTROY)"
            );
        }
    }
}

/// Deletes the records of UDP sockets with backends that are not allowed, and returns these
/// sockets.
fn forget<A: Address>(maps: &mut impl PeerTable<A>, serving: &Serving) -> Result<Sent> {
    let mut sent = Sent::new();
    for (key, peer) in maps.peers()? {
        if key.side != PeerKey::<A>::BACKEND || peer.protocol != u16::from(Protocol::UDP.0) {
            continue;
        }
        let backend = SocketAddr::new(key.addr.ip(), key.port.number());
        if serving.allows(peer.service, backend) {
            continue;
        }
        maps.forget(PeerKey::asked(key.cookie, peer.addr, peer.port))?;
        maps.forget(key)?;
        let [low, high] = key.cookie.map(u64::from);
        sent.insert(high << 32 | low, backend);
    }
    Ok(sent)
}
