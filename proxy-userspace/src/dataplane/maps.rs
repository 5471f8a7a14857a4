//! The pinned maps, typed.

mod read;
mod write;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::maps::{self, PerFamily};
use proxy_common::net::{
    Addr4, Addr6, Address, AddressFlags, Device, IfIndex, LocalPod, RangeKind,
};
use proxy_common::reason::COUNTERS;
use proxy_common::service::{
    Backend, BackendKey, Config, EndpointKey, MaglevChunk, MaglevKey, Name, Service, ServiceKey,
    SourceKey,
};
use proxy_common::socket::{Peer, PeerKey};

use super::statedir::StateDir;

/// An open hash map.
pub type Hash<K, V> = HashMap<MapData, K, V>;

/// An open trie of prefixes; the values have no meaning.
type Trie<K, V> = LpmTrie<MapData, K, V>;

/// The maps of one address family.
pub struct FamilyMaps<A> {
    services: Hash<ServiceKey<A>, Service>,
    backends: Hash<BackendKey, Backend<A>>,
    slots: Hash<EndpointKey<A>, u32>,
    sources: Trie<SourceKey<A>, u32>,
    ranges: Trie<A, RangeKind>,
    addresses: Hash<A, AddressFlags>,
    pods: Hash<A, LocalPod>,
    /// Answered flows.
    pub flows: Hash<FlowKey<A>, Flow<A>>,
    /// Half-open flows.
    pub opening: Hash<FlowKey<A>, Flow<A>>,
    pub(super) peers: Hash<PeerKey<A>, Peer<A>>,
}

/// All maps.
pub struct Maps {
    /// The maps of IPv4.
    pub v4: FamilyMaps<Addr4>,
    /// The maps of IPv6.
    pub v6: FamilyMaps<Addr6>,
    devices: Hash<IfIndex, Device>,
    names: Hash<u32, Name>,
    maglev: Hash<MaglevKey, MaglevChunk>,
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, u64>,
}

impl<A: Address> FamilyMaps<A>
where
    A: Pod,
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
    EndpointKey<A>: Pod,
    SourceKey<A>: Pod,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    PeerKey<A>: Pod,
    Peer<A>: Pod,
{
    fn open(
        name: impl Fn(PerFamily) -> &'static str,
        take: &mut impl FnMut(&str) -> Result<Map>,
    ) -> Result<Self> {
        Ok(Self {
            services: open(name(maps::SERVICES), take)?,
            backends: open(name(maps::BACKENDS), take)?,
            slots: open(name(maps::SLOTS), take)?,
            sources: open_trie(name(maps::SOURCES), take)?,
            ranges: open_trie(name(maps::RANGES), take)?,
            addresses: open(name(maps::ADDRESSES), take)?,
            pods: open(name(maps::PODS), take)?,
            flows: open(name(maps::FLOWS), take)?,
            opening: open(name(maps::OPENING), take)?,
            peers: open(name(maps::PEERS), take)?,
        })
    }
}

/// Returns a function that opens pinned maps by name, at the paths that `path` returns.
pub fn pinned(path: impl Fn(&str) -> PathBuf) -> impl FnMut(&str) -> Result<Map> {
    move |name| {
        let path = path(name);
        let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        Map::from_map_data(data).with_context(|| format!("open {}", path.display()))
    }
}

/// Opens a hash map that `take` returns by name.
pub fn open<K: Pod, V: Pod>(
    name: &str,
    take: &mut impl FnMut(&str) -> Result<Map>,
) -> Result<Hash<K, V>> {
    Hash::try_from(take(name)?).with_context(|| format!("open the map {name}"))
}

impl Maps {
    /// Opens the maps that `take` returns by name.
    pub fn open(mut take: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            v4: FamilyMaps::open(|names| names.v4, &mut take)?,
            v6: FamilyMaps::open(|names| names.v6, &mut take)?,
            devices: open(maps::DEVICES, &mut take)?,
            names: open(maps::NAMES, &mut take)?,
            maglev: open(maps::MAGLEV, &mut take)?,
            config: Array::try_from(take(maps::CONFIG)?).context("open the map CONFIG")?,
            counters: PerCpuArray::try_from(take(maps::COUNTERS)?)
                .context("open the map COUNTERS")?,
        })
    }

    /// Opens the maps that an agent has pinned, whether or not it runs.
    pub fn from_pins(dir: &StateDir) -> Result<Self> {
        Self::from_paths(|name| dir.map(name))
    }

    /// Opens the maps that are pinned at the paths that `path` returns by name.
    pub fn from_paths(path: impl Fn(&str) -> PathBuf) -> Result<Self> {
        Self::open(pinned(path))
    }

    /// Returns the counters, summed over the processors, in the order of `Reason::ALL` and
    /// `Counter::ALL`.
    pub fn counters(&self) -> Result<Vec<u64>> {
        (0..COUNTERS)
            .map(|index| Ok(self.counters.get(&index, 0)?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .context("read COUNTERS")
    }
}

/// Opens a trie that `take` returns by name.
pub fn open_trie<K: Pod, V: Pod>(
    name: &str,
    take: &mut impl FnMut(&str) -> Result<Map>,
) -> Result<Trie<K, V>> {
    Trie::try_from(take(name)?).with_context(|| format!("open the map {name}"))
}

/// Deletes an element. Succeeds if it does not exist.
pub fn delete<K: Pod, V: Pod>(map: &mut Hash<K, V>, key: K) -> Result<()> {
    gone(map.remove(&key))
}

/// Turns the error that an element to be removed does not exist into success.
pub fn gone(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}
