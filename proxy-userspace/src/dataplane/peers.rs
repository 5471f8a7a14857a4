//! The programs' records of sockets, as a trait that hides how a map is reached.

use anyhow::{Context as _, Result};
use aya::Pod;
use proxy_common::net::Address;
use proxy_common::socket::{Peer, PeerKey};

use super::batch;
use super::maps::{FamilyMaps, delete};

/// The recorded peers of one family.
pub trait PeerTable<A: Address> {
    /// Returns all entries.
    fn peers(&self) -> Result<Vec<(PeerKey<A>, Peer<A>)>>;
    /// Deletes an entry. Succeeds if it does not exist.
    fn forget(&mut self, key: PeerKey<A>) -> Result<()>;
}

impl<A: Address> PeerTable<A> for FamilyMaps<A>
where
    PeerKey<A>: Pod,
    Peer<A>: Pod,
{
    fn peers(&self) -> Result<Vec<(PeerKey<A>, Peer<A>)>> {
        batch::all(&self.peers).context("read PEERS")
    }

    fn forget(&mut self, key: PeerKey<A>) -> Result<()> {
        delete(&mut self.peers, key).context("delete of PEERS")
    }
}
