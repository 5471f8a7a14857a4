//! Generations and names that no frontend refers to, and their elements.

use proxy_common::service::MaglevKey;

use super::{Actual, Idle};
use crate::place::elements::{EndpointAt, SlotKey};

impl Actual {
    /// Returns the generations and names that no frontend refers to now.
    pub fn idle(&self) -> Idle {
        Idle {
            generations: self.idle.clone(),
            names: self.idle_names().collect(),
        }
    }

    pub(in crate::place) fn idle_slots<'a>(
        &'a self,
        of: &'a Idle,
    ) -> impl Iterator<Item = SlotKey> + 'a {
        self.idle
            .intersection(&of.generations)
            .flat_map(|&(side, generation)| {
                self.slots(side, generation).map(move |(slot, _)| SlotKey {
                    side,
                    generation,
                    slot,
                })
            })
    }

    pub(in crate::place) fn idle_chunks<'a>(
        &'a self,
        of: &'a Idle,
    ) -> impl Iterator<Item = MaglevKey> + 'a {
        self.idle
            .intersection(&of.generations)
            .flat_map(|&(side, generation)| self.chunks(side, generation).map(|(key, _)| *key))
    }

    pub(in crate::place) fn idle_endpoints<'a>(
        &'a self,
        of: &'a Idle,
    ) -> impl Iterator<Item = EndpointAt> + 'a {
        self.idle
            .intersection(&of.generations)
            .flat_map(|&(side, generation)| self.endpoints_of(side, generation))
    }

    pub(in crate::place) fn idle_names(&self) -> impl Iterator<Item = u32> + '_ {
        self.names
            .keys()
            .copied()
            .filter(|id| !self.frontends.contains_key(id))
    }
}
