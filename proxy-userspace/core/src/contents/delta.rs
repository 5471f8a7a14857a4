//! Differences of two contents, by the keys of their elements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::IfIndex;

use super::diff::changes;
use super::{Contents, Frontend};

/// Elements that were added, removed or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Of `frontends`.
    pub frontends: BTreeSet<Frontend>,
    /// Of `sources`.
    pub sources: BTreeSet<(Arc<str>, IpNet)>,
    /// Of `ranges`.
    pub ranges: BTreeSet<IpNet>,
    /// Of `addresses`.
    pub addresses: BTreeSet<IpAddr>,
    /// Of `pods`.
    pub pods: BTreeSet<IpAddr>,
    /// Of `devices`.
    pub devices: BTreeSet<IfIndex>,
}

impl Delta {
    /// Returns the difference of two contents.
    pub fn between(before: &Contents, after: &Contents) -> Self {
        Self {
            frontends: unlike(&before.frontends, &after.frontends),
            sources: before
                .sources
                .symmetric_difference(&after.sources)
                .cloned()
                .collect(),
            ranges: unlike(&before.ranges, &after.ranges),
            addresses: unlike(&before.addresses, &after.addresses),
            pods: unlike(&before.pods, &after.pods),
            devices: unlike(&before.devices, &after.devices),
        }
    }
}

/// Returns the keys of the elements that differ between two maps.
pub fn unlike<K: Ord + Clone, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeSet<K> {
    changes(before, after).map(|(key, _)| key.clone()).collect()
}

/// Sets an element, or removes it, and adds its key to `changed` if that changed the map.
pub fn set<K: Ord + Copy, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: Option<V>,
    changed: &mut BTreeSet<K>,
) {
    if map.get(&key) == value.as_ref() {
        return;
    }
    changed.insert(key);
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
}
