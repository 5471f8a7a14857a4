//! The elements of `ROWS` that pods have: each pod's pod_id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::policy::MAX_PODS;

use super::resting::Resting;

/// The slot of the pods for which there is none: nothing is let through to and from them (P34).
pub(super) const NO_ROOM: u32 = MAX_PODS - 1;

/// Which elements of `ROWS` are in use.
#[derive(Debug)]
pub(super) struct PodIds {
    free: Vec<u32>,
    pub(super) resting: Resting<u32>,
    next: u32,
    /// Which pod_ids addresses had with an earlier agent.
    before: BTreeMap<IpAddr, u32>,
    taken: BTreeSet<u32>,
}

impl Default for PodIds {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            resting: Resting::default(),
            next: 1,
            before: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }
}

impl PodIds {
    /// Returns the pod_ids with those that addresses had with an earlier agent.
    pub(super) fn with_earlier(before: BTreeMap<IpAddr, u32>) -> Self {
        Self {
            before,
            ..Self::default()
        }
    }

    /// A pod_id for a pod, if there is one: that which one of its addresses had before, else any.
    pub(super) fn take(&mut self, addresses: &BTreeSet<IpAddr>) -> Option<u32> {
        let had = addresses.iter().find_map(|addr| self.before.remove(addr));
        let pod_id = had
            .filter(|pod_id| (1..NO_ROOM).contains(pod_id) && !self.taken.contains(pod_id))
            .or_else(|| {
                let reserved: BTreeSet<_> = self.before.values().copied().collect();
                let fresh = (self.next..NO_ROOM)
                    .find(|pod_id| !self.taken.contains(pod_id) && !reserved.contains(pod_id));
                self.free.pop().or(fresh)
            })?;
        self.next = self.next.max(pod_id + 1).min(NO_ROOM);
        self.taken.insert(pod_id);
        Some(pod_id)
    }

    pub(super) fn rest(&mut self) {
        let rested = self.resting.rested();
        rested
            .iter()
            .for_each(|pod_id| _ = self.taken.remove(pod_id));
        self.free.extend(rested);
    }
}
