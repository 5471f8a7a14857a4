//! The pinned maps, typed: elements in and out, in the words of `place`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::maps::{self, PerFamily};
use proxy_common::net::{
    Addr4, Addr6, Address, AddressFlags, Device, IfIndex, LocalPod, Port, RangeKind,
};
use proxy_common::reason::COUNTERS;
use proxy_common::service::{
    Backend, BackendKey, Config, EndpointKey, MaglevChunk, MaglevKey, Name, SOURCE_KEY_BITS,
    Service, ServiceKey, SourceKey,
};
use proxy_common::socket::{Peer, PeerKey};

use super::batch;
use super::statedir::StateDir;
use crate::contents::Frontend;
use crate::place::{Actual, EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};

/// A hash map that this value has open.
pub type Hash<K, V> = HashMap<MapData, K, V>;

/// A map of prefixes that this value has open; the values say nothing.
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

/// Runs `$body` with the address and the maps of its family.
macro_rules! family {
    ($self:ident, $addr:expr, |$a:ident, $maps:ident| $body:expr) => {
        match $addr {
            IpAddr::V4(addr) => {
                let ($a, $maps) = (Addr4::from(addr), &mut $self.v4);
                $body
            }
            IpAddr::V6(addr) => {
                let ($a, $maps) = (Addr6::from(addr), &mut $self.v6);
                $body
            }
        }
    };
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

    fn read(&self, side: Side) -> Result<Vec<Entry>> {
        let frontend = |key: &ServiceKey<A>| Frontend {
            addr: key.addr.ip(),
            port: key.port.number(),
            protocol: key.protocol,
        };
        let services = batch::all(&self.services).context("read SERVICES")?;
        let backends = batch::all(&self.backends).context("read BACKENDS")?;
        let slots = batch::all(&self.slots).context("read SLOTS")?;
        let addresses = batch::all(&self.addresses).context("read ADDRESSES")?;
        let pods = batch::all(&self.pods).context("read PODS")?;
        let sources = prefixes(&self.sources).context("read SOURCES")?;
        let ranges = prefixes(&self.ranges).context("read RANGES")?;
        let sources = sources.into_iter().filter_map(|(bits, key, _)| {
            Some(Entry::Source(
                key.service,
                network(key.addr.ip(), bits.checked_sub(SOURCE_KEY_BITS)?)?,
            ))
        });
        let ranges = ranges
            .into_iter()
            .filter_map(|(bits, addr, kind)| Some(Entry::Range(network(addr.ip(), bits)?, kind)));
        let services = services
            .iter()
            .map(|(key, service)| Entry::Service(frontend(key), *service));
        let backends = backends
            .iter()
            .map(|(key, backend)| slot_entry(side, key, backend));
        let slots = slots.iter().map(|(key, slot)| {
            let addr = SocketAddr::new(key.addr.ip(), key.port.number());
            Entry::Endpoint(
                EndpointAt {
                    generation: key.generation,
                    addr,
                },
                *slot,
            )
        });
        let addresses = addresses
            .iter()
            .map(|(addr, flags)| Entry::Address(addr.ip(), *flags));
        let pods = pods.iter().map(|(addr, pod)| Entry::Pod(addr.ip(), *pod));
        Ok(services
            .chain(backends)
            .chain(slots)
            .chain(sources)
            .chain(ranges)
            .chain(addresses)
            .chain(pods)
            .collect())
    }

    /// The highest id of a service port that a flow names.
    fn highest_id(&self) -> Result<u32> {
        let (mut walk, mut highest) = (batch::Walk::default(), 0);
        while let Some(flows) = walk.next(&self.flows).context("read FLOWS")? {
            highest = flows
                .iter()
                .map(|(_, flow)| flow.service)
                .fold(highest, u32::max);
        }
        Ok(highest)
    }
}

fn slot_entry<A: Address>(side: Side, key: &BackendKey, backend: &Backend<A>) -> Entry {
    let addr = SocketAddr::new(backend.addr.ip(), backend.port.number());
    let slot = Slot {
        addr,
        flags: backend.flags,
        generation: backend.generation,
    };
    Entry::Backend(
        SlotKey {
            side,
            generation: key.generation,
            slot: key.slot,
        },
        slot,
    )
}

/// Gives maps by name that are pinned where `path` says.
pub fn pinned(path: impl Fn(&str) -> PathBuf) -> impl FnMut(&str) -> Result<Map> {
    move |name| {
        let path = path(name);
        let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        Map::from_map_data(data).with_context(|| format!("open {}", path.display()))
    }
}

/// Opens a hash map that `take` gives by name.
pub fn open<K: Pod, V: Pod>(
    name: &str,
    take: &mut impl FnMut(&str) -> Result<Map>,
) -> Result<Hash<K, V>> {
    Hash::try_from(take(name)?).with_context(|| format!("open the map {name}"))
}

impl Maps {
    /// The maps that `take` gives by name.
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

    /// The maps that an agent has pinned, whether or not it lives.
    pub fn from_pins(dir: &StateDir) -> Result<Self> {
        Self::from_paths(|name| dir.map(name))
    }

    /// The maps that are pinned where `path` says by name.
    pub fn from_paths(path: impl Fn(&str) -> PathBuf) -> Result<Self> {
        Self::open(pinned(path))
    }

    /// Everything that the maps hold, but flows.
    pub fn read(&self) -> Result<Actual> {
        let devices = batch::all(&self.devices).context("read DEVICES")?;
        let names = batch::all(&self.names).context("read NAMES")?;
        let maglev = batch::all(&self.maglev).context("read MAGLEV")?;
        let config = self.config.get(&0, 0).context("read CONFIG")?;
        let shared = devices
            .into_iter()
            .map(|(index, device)| Entry::Device(index, device));
        let named = names
            .iter()
            .map(|(id, name)| Entry::Name(*id, name.as_str().into()));
        let families = self
            .v4
            .read(Side::V4)
            .context("IPv4")?
            .into_iter()
            .chain(self.v6.read(Side::V6).context("IPv6")?);
        let chunks = maglev
            .into_iter()
            .map(|(key, chunk)| Entry::Maglev(key, Box::new(chunk)));
        let mut actual: Actual = families
            .chain(chunks)
            .chain(shared)
            .chain(named)
            .chain([Entry::Config(config)])
            .collect();
        actual.reserve_id(self.v4.highest_id()?.max(self.v6.highest_id()?));
        Ok(actual)
    }

    /// The counters, summed over the processors, in the order of `Reason::ALL` and `Counter::ALL`.
    pub fn counters(&self) -> Result<Vec<u64>> {
        (0..COUNTERS)
            .map(|index| Ok(self.counters.get(&index, 0)?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .context("read COUNTERS")
    }

    /// Applies one write. An element that is to be deleted and is not there is well too.
    pub fn write(&mut self, write: &Write) -> Result<()> {
        match write {
            Write::Put(entry) => self.put(entry),
            Write::Delete(key) => self.delete(key),
        }
    }

    fn put(&mut self, entry: &Entry) -> Result<()> {
        match entry {
            Entry::Service(frontend, service) => {
                family!(self, frontend.addr, |addr, maps| put(
                    &mut maps.services,
                    service_key(frontend, addr),
                    *service
                ))
            }
            Entry::Backend(key, slot) => self.put_backend(key, slot),
            Entry::Endpoint(EndpointAt { generation, addr }, slot) => {
                family!(self, addr.ip(), |key, maps| {
                    put(
                        &mut maps.slots,
                        EndpointKey::new(*generation, key, Port::new(addr.port())),
                        *slot,
                    )
                })
            }
            Entry::Maglev(key, chunk) => put(&mut self.maglev, *key, **chunk),
            Entry::Source(id, range) => {
                family!(self, range.addr(), |key, maps| Ok(maps.sources.insert(
                    &source_key(*id, key, *range),
                    1,
                    0
                )?))
            }
            Entry::Range(range, kind) => family!(self, range.addr(), |key, maps| {
                Ok(maps.ranges.insert(
                    &Prefix::new(u32::from(range.prefix_len()), key),
                    *kind,
                    0,
                )?)
            }),
            Entry::Address(addr, flags) => family!(self, *addr, |key, maps| put(
                &mut maps.addresses,
                key,
                *flags
            )),
            Entry::Pod(addr, pod) => {
                family!(self, *addr, |key, maps| put(&mut maps.pods, key, *pod))
            }
            Entry::Device(index, device) => put(&mut self.devices, *index, *device),
            Entry::Name(id, name) => put(&mut self.names, *id, Name::new(name)),
            Entry::Config(config) => self.config.set(0, *config, 0).map_err(Into::into),
        }
        .with_context(|| format!("write {entry:?}"))
    }

    fn put_backend(&mut self, key: &SlotKey, slot: &Slot) -> Result<()> {
        if Side::from(slot.addr.ip()) != key.side {
            bail!("an address of the other family");
        }
        let port = Port::new(slot.addr.port());
        family!(self, slot.addr.ip(), |addr, maps| {
            let backend = Backend {
                addr,
                port,
                flags: slot.flags,
                generation: slot.generation,
            };
            put(
                &mut maps.backends,
                BackendKey {
                    generation: key.generation,
                    slot: key.slot,
                },
                backend,
            )
        })
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        match key {
            Key::Service(frontend) => {
                family!(self, frontend.addr, |addr, maps| delete(
                    &mut maps.services,
                    service_key(frontend, addr)
                ))
            }
            Key::Backend(SlotKey {
                side,
                generation,
                slot,
            }) => {
                let key = BackendKey {
                    generation: *generation,
                    slot: *slot,
                };
                match side {
                    Side::V4 => delete(&mut self.v4.backends, key),
                    Side::V6 => delete(&mut self.v6.backends, key),
                }
            }
            Key::Endpoint(EndpointAt { generation, addr }) => {
                family!(self, addr.ip(), |key, maps| {
                    delete(
                        &mut maps.slots,
                        EndpointKey::new(*generation, key, Port::new(addr.port())),
                    )
                })
            }
            Key::Maglev(key) => delete(&mut self.maglev, *key),
            Key::Source(id, range) => {
                family!(self, range.addr(), |key, maps| gone(
                    maps.sources.remove(&source_key(*id, key, *range))
                ))
            }
            Key::Range(range) => {
                family!(self, range.addr(), |key, maps| gone(
                    maps.ranges
                        .remove(&Prefix::new(u32::from(range.prefix_len()), key))
                ))
            }
            Key::Address(addr) => {
                family!(self, *addr, |key, maps| delete(&mut maps.addresses, key))
            }
            Key::Pod(addr) => family!(self, *addr, |key, maps| delete(&mut maps.pods, key)),
            Key::Device(index) => delete(&mut self.devices, *index),
            Key::Name(id) => delete(&mut self.names, *id),
        }
        .with_context(|| format!("delete {key:?}"))
    }
}

fn service_key<A>(frontend: &Frontend, addr: A) -> ServiceKey<A> {
    ServiceKey::new(addr, Port::new(frontend.port), frontend.protocol)
}

fn put<K: Pod, V: Pod>(map: &mut Hash<K, V>, key: K, value: V) -> Result<()> {
    Ok(map.insert(key, value, 0)?)
}

/// Opens a trie that `take` gives by name.
pub fn open_trie<K: Pod, V: Pod>(
    name: &str,
    take: &mut impl FnMut(&str) -> Result<Map>,
) -> Result<Trie<K, V>> {
    Trie::try_from(take(name)?).with_context(|| format!("open the map {name}"))
}

/// The elements of a trie: bits, what they are bits of, and what is said of it.
fn prefixes<K: Pod, V: Pod>(trie: &Trie<K, V>) -> Result<Vec<(u32, K, V)>> {
    let all: Result<Vec<_>, MapError> = trie.iter().collect();
    Ok(all?
        .into_iter()
        .map(|(key, value)| (key.prefix_len(), key.data(), value))
        .collect())
}

fn source_key<A: Pod>(service: u32, addr: A, range: IpNet) -> Prefix<SourceKey<A>>
where
    SourceKey<A>: Pod,
{
    Prefix::new(
        SOURCE_KEY_BITS + u32::from(range.prefix_len()),
        SourceKey { service, addr },
    )
}

fn network(addr: IpAddr, bits: u32) -> Option<IpNet> {
    IpNet::new(addr, u8::try_from(bits).ok()?).ok()
}

/// Deletes an element; one that is gone already is well.
pub fn delete<K: Pod, V: Pod>(map: &mut Hash<K, V>, key: K) -> Result<()> {
    gone(map.remove(&key))
}

/// An element that was to be removed and was not there is well.
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
