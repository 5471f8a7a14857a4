//! What the programs remember of sockets, read and forgotten.

use anyhow::{Context as _, Result};
use aya::Pod;
use proxy_common::net::Address;
use proxy_common::socket::{Peer, PeerKey};

use super::batch;
use super::maps::{FamilyMaps, delete};

impl<A: Address> FamilyMaps<A>
where
    PeerKey<A>: Pod,
    Peer<A>: Pod,
{
    /// All that is remembered.
    pub fn peers(&self) -> Result<Vec<(PeerKey<A>, Peer<A>)>> {
        batch::all(&self.peers).context("read PEERS")
    }

    /// Forgets something; what is gone already is well.
    pub fn forget(&mut self, key: PeerKey<A>) -> Result<()> {
        delete(&mut self.peers, key).context("delete of PEERS")
    }
}
