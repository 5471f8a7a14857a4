//! The pod_ids of pods: the indexes of their elements in `ROWS`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::policy::MAX_PODS;

use super::resting::Resting;

/// The pod_id of all pods for which there is no other: nothing is allowed to and from them (P34).
pub(super) const NO_ROOM: u32 = MAX_PODS - 1;

/// The pod_ids in use.
#[derive(Debug)]
pub(super) struct PodIds {
    free: Vec<u32>,
    pub(super) resting: Resting<u32>,
    next: u32,
    /// The pod_ids that addresses had with an earlier agent.
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
    /// Makes them with the pod_ids that addresses had with an earlier agent.
    pub(super) fn with_earlier(before: BTreeMap<IpAddr, u32>) -> Self {
        Self {
            before,
            ..Self::default()
        }
    }

    /// Returns a free pod_id: that which one of the addresses had before, else any.
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
