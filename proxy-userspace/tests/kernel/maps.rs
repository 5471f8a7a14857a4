//! The kernel's maps of one family, filled from a fake and read back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::{Array, HashMap};
use proxy_common::flow::FlowKey;
use proxy_common::net::{Addr4, LocalPod, V4, V6};
use proxy_common::policy::{Chunk, Node};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Config, SOURCE_KEY_BITS};
use proxy_ebpf::Table;
use proxy_ebpf::fake::{Flows, Memory};

use crate::family::Net;
use crate::policies;
use crate::programs::Loaded;

/// A family with maps in the kernel.
pub trait Maps: Net {
    /// Makes the kernel's tables equal to the fake's.
    fn fill(loaded: &mut Loaded, memory: &Memory<Self>) -> Result<()>;
    /// Reads a table of flows.
    fn flows(loaded: &Loaded, table: Table) -> Result<Flows<Self>>;
    /// Forgets a flow, as the LRU or the sweep does.
    fn forget(loaded: &mut Loaded, table: Table, key: &FlowKey<Self::Addr>) -> Result<()>;
    /// Sets back the time of a flow's last packet.
    fn age(loaded: &mut Loaded, table: Table, key: &FlowKey<Self::Addr>, seen: u32) -> Result<()>;
}

macro_rules! maps {
    ($family:ty, $services:literal, $backends:literal, $slots:literal, $sources:literal, $ranges:literal, $affinity:literal, $addresses:literal, $pods:literal, $flows:literal, $opening:literal,
     $prefixes:literal, $fragments:literal, $more:ident) => {
        impl Maps for $family {
            fn fill(loaded: &mut Loaded, memory: &Memory<Self>) -> Result<()> {
                equal(loaded, $services, &memory.services)?;
                equal(loaded, $backends, &memory.backends)?;
                equal(loaded, $slots, &memory.slots())?;
                let sources = memory
                    .sources
                    .iter()
                    .map(|(key, bits)| (SOURCE_KEY_BITS + bits, *key));
                prefixes(
                    loaded,
                    $sources,
                    sources.map(|(bits, key)| (bits, key, 1u32)).collect(),
                )?;
                prefixes(
                    loaded,
                    $ranges,
                    memory
                        .ranges
                        .iter()
                        .map(|((addr, bits), kind)| (*bits, *addr, *kind))
                        .collect(),
                )?;
                equal(loaded, $affinity, &memory.affinity.borrow())?;
                equal(loaded, $addresses, &memory.addresses)?;
                equal(loaded, $pods, &memory.pods)?;
                equal(loaded, $flows, &memory.established.borrow())?;
                equal(loaded, $opening, &memory.opening.borrow())?;
                prefixes(
                    loaded,
                    $prefixes,
                    memory
                        .prefixes
                        .iter()
                        .map(|((addr, bits), class)| (*bits, *addr, *class))
                        .collect(),
                )?;
                equal(loaded, $fragments, &memory.fragments.borrow())?;
                $more(loaded, memory)?;
                policies(loaded, memory)?;
                equal(loaded, "DEVICES", &memory.devices)?;
                configure(loaded, memory.config)
            }
            fn flows(loaded: &Loaded, table: Table) -> Result<Flows<Self>> {
                read(loaded, name(table, $flows, $opening))
            }
            fn forget(loaded: &mut Loaded, table: Table, key: &FlowKey<Self::Addr>) -> Result<()> {
                let mut map = open::<_, proxy_common::flow::Flow<Self::Addr>>(
                    loaded,
                    name(table, $flows, $opening),
                )?;
                map.remove(key).context("remove a flow")
            }
            fn age(
                loaded: &mut Loaded,
                table: Table,
                key: &FlowKey<Self::Addr>,
                seen: u32,
            ) -> Result<()> {
                let mut map = open::<_, proxy_common::flow::Flow<Self::Addr>>(
                    loaded,
                    name(table, $flows, $opening),
                )?;
                let flow = map.get(key, 0).context("read a flow")?;
                map.insert(key, proxy_common::flow::Flow { seen, ..flow }, 0)
                    .context("make a flow old")
            }
        }
    };
}

maps!(
    V4,
    "SERVICES4",
    "BACKENDS4",
    "SLOTS4",
    "SOURCES4",
    "RANGES4",
    "AFFINITY4",
    "ADDRESSES4",
    "PODS4",
    "FLOWS4",
    "OPENING4",
    "PREFIXES4",
    "FRAGMENTS4",
    directory
);
maps!(
    V6,
    "SERVICES6",
    "BACKENDS6",
    "SLOTS6",
    "SOURCES6",
    "RANGES6",
    "AFFINITY6",
    "ADDRESSES6",
    "PODS6",
    "FLOWS6",
    "OPENING6",
    "PREFIXES6",
    "FRAGMENTS6",
    exact
);

/// Writes the policy tables that both families share.
fn policies<F: Net>(loaded: &mut Loaded, memory: &Memory<F>) -> Result<()> {
    equal(loaded, "VETHS", &memory.veths)?;
    prefixes(
        loaded,
        "VERDICTS",
        memory
            .verdicts
            .iter()
            .map(|(key, set)| (64, *key, *set))
            .collect(),
    )?;
    array(loaded, "ROWS", policies::PODS, |pod_id| {
        memory.rows.get(&pod_id).copied().unwrap_or_default()
    })?;
    array(loaded, "PORTSETS", policies::SETS, |set| {
        memory.port_sets.get(&set).copied().unwrap_or_default()
    })?;
    array(loaded, "MATRIX", policies::CHUNKS, |chunk| -> Chunk {
        std::array::from_fn(|class| {
            memory
                .matrix
                .get(&(chunk, class as u32))
                .copied()
                .unwrap_or_default()
        })
    })
}

fn directory(loaded: &mut Loaded, memory: &Memory<V4>) -> Result<()> {
    array(loaded, "CLASSES4", policies::NODES, |node| -> Node {
        std::array::from_fn(|byte| {
            memory
                .directory
                .get(&(node, byte as u8))
                .copied()
                .unwrap_or_default()
        })
    })
}

fn exact(loaded: &mut Loaded, memory: &Memory<V6>) -> Result<()> {
    equal(loaded, "CLASSES6", &memory.exact)
}

/// Writes the first elements of an array.
fn array<V: Pod>(
    loaded: &mut Loaded,
    name: &str,
    len: u32,
    value: impl Fn(u32) -> V,
) -> Result<()> {
    let map = loaded
        .ebpf
        .map_mut(name)
        .with_context(|| format!("find {name}"))?;
    let mut map: Array<_, V> = map.try_into().with_context(|| format!("open {name}"))?;
    (0..len)
        .try_for_each(|index| map.set(index, value(index), 0))
        .with_context(|| format!("write {name}"))
}

fn name(table: Table, flows: &'static str, opening: &'static str) -> &'static str {
    match table {
        Table::Established => flows,
        Table::Opening => opening,
    }
}

fn open<'a, K: Pod, V: Pod>(
    loaded: &'a mut Loaded,
    name: &str,
) -> Result<HashMap<&'a mut aya::maps::MapData, K, V>> {
    loaded
        .ebpf
        .map_mut(name)
        .with_context(|| format!("find {name}"))?
        .try_into()
        .with_context(|| format!("open {name}"))
}

fn read<K: Pod + Ord, V: Pod>(loaded: &Loaded, name: &str) -> Result<BTreeMap<K, V>> {
    let map = loaded
        .ebpf
        .map(name)
        .with_context(|| format!("find {name}"))?;
    let map: HashMap<_, K, V> = map.try_into().with_context(|| format!("open {name}"))?;
    map.iter()
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {name}"))
}

/// Makes a map hold just these entries.
fn equal<K: Pod + Ord, V: Pod>(
    loaded: &mut Loaded,
    name: &str,
    wanted: &BTreeMap<K, V>,
) -> Result<()> {
    let found: BTreeMap<K, V> = read(loaded, name)?;
    let mut map = open::<K, V>(loaded, name)?;
    for key in found.keys().filter(|key| !wanted.contains_key(key)) {
        map.remove(key)
            .with_context(|| format!("remove from {name}"))?;
    }
    wanted
        .iter()
        .try_for_each(|(key, value)| map.insert(key, value, 0))
        .with_context(|| format!("write {name}"))
}

/// Makes a trie hold just these prefixes.
fn prefixes<K: Pod, V: Pod>(
    loaded: &mut Loaded,
    name: &str,
    wanted: Vec<(u32, K, V)>,
) -> Result<()> {
    let map = loaded
        .ebpf
        .map_mut(name)
        .with_context(|| format!("find {name}"))?;
    let mut map: LpmTrie<_, K, V> = map.try_into().with_context(|| format!("open {name}"))?;
    let found = map
        .keys()
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("read {name}"))?;
    found
        .iter()
        .try_for_each(|key| map.remove(key))
        .with_context(|| format!("empty {name}"))?;
    let mut put = wanted
        .into_iter()
        .map(|(bits, key, value)| (Prefix::new(bits, key), value));
    put.try_for_each(|(key, value)| map.insert(&key, value, 0))
        .with_context(|| format!("write {name}"))
}

/// Writes the entry of a local pod.
pub fn put_pod(loaded: &mut Loaded, addr: std::net::Ipv4Addr, pod: LocalPod) -> Result<()> {
    open(loaded, "PODS4")?
        .insert(Addr4::from(addr), pod, 0)
        .context("write PODS4")
}

/// Writes the settings.
pub fn configure(loaded: &mut Loaded, config: Config) -> Result<()> {
    let mut array: Array<_, Config> = loaded
        .ebpf
        .map_mut("CONFIG")
        .context("find CONFIG")?
        .try_into()?;
    array.set(0, config, 0).context("write CONFIG")
}

/// All counters by name.
pub fn counters(loaded: &Loaded) -> Result<BTreeMap<&'static str, u64>> {
    let reasons = Reason::ALL
        .iter()
        .map(|reason| (reason.name(), reason.index()));
    let others = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), counter.index()));
    reasons
        .chain(others)
        .map(|(name, index)| Ok((name, loaded.counter(index)?)))
        .collect()
}
