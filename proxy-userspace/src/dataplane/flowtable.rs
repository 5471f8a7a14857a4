//! Tables of flows, as a trait that hides how a map is reached.

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapError;
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::Address;

use super::batch::Walk;
use super::maps::{Hash, delete};

/// Some entries of a flow table.
pub type Entries<A> = Vec<(FlowKey<A>, Flow<A>)>;

/// A table of flows of one family.
pub trait FlowTable<A: Address> {
    /// Returns the next entries of a walk, none at its end.
    fn next(&self, walk: &mut Walk) -> Result<Option<Entries<A>>>;
    /// Returns an entry, if it exists.
    fn get(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>>;
    /// Deletes an entry. Succeeds if it does not exist.
    fn delete(&mut self, key: &FlowKey<A>) -> Result<()>;

    /// Returns all entries.
    fn all(&self) -> Result<Entries<A>> {
        let (mut walk, mut found) = (Walk::default(), Vec::new());
        while let Some(flows) = self.next(&mut walk)? {
            found.extend(flows);
        }
        Ok(found)
    }
}

impl<A: Address> FlowTable<A> for Hash<FlowKey<A>, Flow<A>>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    fn next(&self, walk: &mut Walk) -> Result<Option<Entries<A>>> {
        walk.next(self).context("read flows")
    }

    fn get(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>> {
        match Hash::get(self, key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("read a flow"),
        }
    }

    fn delete(&mut self, key: &FlowKey<A>) -> Result<()> {
        delete(self, *key).context("delete a flow")
    }
}
