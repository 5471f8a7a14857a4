//! What the kernel holds, with ids, generations and slots: a mirror that each applied write keeps true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, RangeKind};
use proxy_common::service::{Config, MaglevChunk, MaglevKey, Service, ServiceFlags};

use super::plan::label;
use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target, unlike};
use crate::model::Algorithm;

/// An address family: each has maps of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for Side {
    fn from(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl From<&MaglevKey> for Side {
    fn from(key: &MaglevKey) -> Self {
        if key.set & MaglevKey::V6 == 0 {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Where a backend lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// Whose map.
    pub side: Side,
    /// Unique across services and families.
    pub generation: u32,
    /// 0-based.
    pub slot: u32,
}

/// What lies in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Where the backend listens.
    pub addr: SocketAddr,
    /// Bits of `BackendFlags`.
    pub flags: u16,
    /// The key's generation again; a reader notices by it that the element was reused.
    pub generation: u32,
}

/// A backend of a generation, to find its slot by: the inverse of [`SlotKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointAt {
    /// Unique across services and families.
    pub generation: u32,
    /// Where the backend listens.
    pub addr: SocketAddr,
}

/// One element of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Of `SERVICES*`.
    Service(Frontend, Service),
    /// Of `BACKENDS*`.
    Backend(SlotKey, Slot),
    /// Of `SLOTS*`.
    Endpoint(EndpointAt, u32),
    /// Of `MAGLEV`.
    Maglev(MaglevKey, Box<MaglevChunk>),
    /// Of `SOURCES*`: a prefix of the sources that the service port of an id serves.
    Source(u32, IpNet),
    /// Of `RANGES*`.
    Range(IpNet, RangeKind),
    /// Of `ADDRESSES*`.
    Address(IpAddr, AddressFlags),
    /// Of `PODS*`.
    Pod(IpAddr, LocalPod),
    /// Of `DEVICES`.
    Device(IfIndex, Device),
    /// Of `NAMES`.
    Name(u32, Arc<str>),
    /// The one of `CONFIG`.
    Config(Config),
}

/// The key of an element that can be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// Of `SERVICES*`.
    Service(Frontend),
    /// Of `BACKENDS*`.
    Backend(SlotKey),
    /// Of `SLOTS*`.
    Endpoint(EndpointAt),
    /// Of `MAGLEV`.
    Maglev(MaglevKey),
    /// Of `SOURCES*`.
    Source(u32, IpNet),
    /// Of `RANGES*`.
    Range(IpNet),
    /// Of `ADDRESSES*`.
    Address(IpAddr),
    /// Of `PODS*`.
    Pod(IpAddr),
    /// Of `DEVICES`.
    Device(IfIndex),
    /// Of `NAMES`.
    Name(u32),
}

/// One change of one element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Insert or replace.
    Put(Entry),
    /// Remove.
    Delete(Key),
}

/// What the kernel holds.
#[derive(Clone, Default, Debug)]
pub struct Actual {
    services: BTreeMap<Frontend, Service>,
    backends: BTreeMap<SlotKey, Slot>,
    endpoints: BTreeMap<EndpointAt, u32>,
    maglev: BTreeMap<MaglevKey, MaglevChunk>,
    sources: BTreeSet<(u32, IpNet)>,
    ranges: BTreeMap<IpNet, RangeKind>,
    addresses: BTreeMap<IpAddr, AddressFlags>,
    pods: BTreeMap<IpAddr, LocalPod>,
    /// Which element of `ROWS` each pod's address is to name.
    slots: BTreeMap<IpAddr, u32>,
    /// Addresses whose slot has changed and is not written yet.
    moved: BTreeSet<IpAddr>,
    devices: BTreeMap<IfIndex, Device>,
    names: BTreeMap<u32, Arc<str>>,
    config: Config,
    /// The frontends of each service port.
    frontends: BTreeMap<u32, BTreeSet<Frontend>>,
    /// The inverse of `names`.
    ids: BTreeMap<Arc<str>, u32>,
    /// How many frontends refer to a generation; it is absent if none does.
    users: BTreeMap<(Side, u32), u32>,
    /// Generations with slots or endpoints to which no frontend refers.
    idle: BTreeSet<(Side, u32)>,
    /// Above every id seen so far.
    next_id: u32,
    /// Above every generation seen so far.
    next_generation: u32,
}

/// Generations and names that nothing referred to at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    generations: BTreeSet<(Side, u32)>,
    pub(super) names: BTreeSet<u32>,
}

impl FromIterator<Entry> for Actual {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut actual = Self::default();
        entries.into_iter().for_each(|entry| actual.put(entry));
        actual
    }
}

impl Actual {
    /// Notes a write that the kernel has taken.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Put(entry) => self.put(entry),
            Write::Delete(key) => self.delete(key),
        }
    }

    /// Keeps ids up to `id` from being given out: something outside the service maps still refers to them.
    pub fn reserve_id(&mut self, id: u32) {
        self.next_id = after(self.next_id, id);
    }

    /// The elements of `SERVICES*`.
    pub fn services(&self) -> &BTreeMap<Frontend, Service> {
        &self.services
    }

    /// The elements of `PODS*`.
    pub fn pods(&self) -> &BTreeMap<IpAddr, LocalPod> {
        &self.pods
    }

    /// The element of `CONFIG`.
    pub fn config(&self) -> Config {
        self.config
    }

    /// The name of a service port's id.
    pub fn name(&self, id: u32) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    /// The id of a service port by its name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.id(&label(name))
    }

    /// The slots of a generation in order.
    pub fn slots(&self, side: Side, generation: u32) -> impl Iterator<Item = (u32, Slot)> + '_ {
        let key = |slot| SlotKey {
            side,
            generation,
            slot,
        };
        self.backends
            .range(key(0)..=key(u32::MAX))
            .map(|(key, slot)| (key.slot, *slot))
    }

    /// The parts of a generation's tables of Maglev.
    pub(super) fn chunks(
        &self,
        side: Side,
        generation: u32,
    ) -> impl Iterator<Item = (&MaglevKey, &MaglevChunk)> {
        let key = |set, chunk| MaglevKey {
            generation,
            set,
            chunk,
        };
        self.maglev
            .range(key(0, 0)..=key(u16::MAX, u16::MAX))
            .filter(move |(key, _)| Side::from(*key) == side)
    }

    /// The same in symbols. A slot that is missing is left out, so that damage does not compare equal to what ought to be.
    pub fn contents(&self) -> Contents {
        Contents {
            frontends: self
                .services
                .iter()
                .map(|(f, s)| (*f, self.target(*f, s)))
                .collect(),
            sources: self
                .sources
                .iter()
                .map(|(id, range)| (self.name_or_number(*id), *range))
                .collect(),
            ranges: self.ranges.clone(),
            addresses: self.addresses.clone(),
            pods: self.devices_of_pods(),
            devices: self.devices.clone(),
            config: self.config,
        }
    }

    fn devices_of_pods(&self) -> BTreeMap<IpAddr, IfIndex> {
        self.pods
            .iter()
            .map(|(addr, pod)| (*addr, pod.device))
            .collect()
    }

    /// Says which policy the pod at an address is to have; it is written with the address.
    pub fn assign(&mut self, addr: IpAddr, slot: u32) {
        let before = if slot == 0 {
            self.slots.remove(&addr)
        } else {
            self.slots.insert(addr, slot)
        };
        if before.unwrap_or_default() != slot {
            self.moved.insert(addr);
        }
    }

    pub(super) fn slot(&self, addr: IpAddr) -> u32 {
        self.slots.get(&addr).copied().unwrap_or_default()
    }

    /// Addresses whose policy was assigned anew since they were written.
    pub(super) fn moved(&self) -> impl Iterator<Item = &IpAddr> {
        self.moved.iter()
    }

    pub(super) fn sources(&self) -> &BTreeSet<(u32, IpNet)> {
        &self.sources
    }

    /// The facts, which have the same form in symbols and in the kernel, that are not as in the contents.
    pub(super) fn facts_unlike(&self, contents: &Contents) -> Delta {
        Delta {
            ranges: unlike(&self.ranges, &contents.ranges),
            addresses: unlike(&self.addresses, &contents.addresses),
            pods: unlike(&self.devices_of_pods(), &contents.pods),
            devices: unlike(&self.devices, &contents.devices),
            ..Delta::default()
        }
    }

    pub(super) fn id(&self, label: &str) -> Option<u32> {
        self.ids.get(label).copied()
    }

    /// The generations that a service port uses for one family.
    pub(super) fn generations(&self, id: u32, side: Side) -> impl Iterator<Item = u32> + '_ {
        let frontends = self.frontends.get(&id).into_iter().flatten();
        frontends
            .filter(move |f| Side::from(f.addr) == side)
            .filter_map(|f| self.services.get(f))
            .map(|s| s.generation)
    }

    /// What no frontend refers to now.
    pub fn idle(&self) -> Idle {
        Idle {
            generations: self.idle.clone(),
            names: self.idle_names().collect(),
        }
    }

    pub(super) fn idle_slots<'a>(&'a self, of: &'a Idle) -> impl Iterator<Item = SlotKey> + 'a {
        let slots = |&(side, generation)| {
            self.slots(side, generation).map(move |(slot, _)| SlotKey {
                side,
                generation,
                slot,
            })
        };
        self.idle.intersection(&of.generations).flat_map(slots)
    }

    pub(super) fn idle_chunks<'a>(&'a self, of: &'a Idle) -> impl Iterator<Item = MaglevKey> + 'a {
        let chunks = |&(side, generation)| self.chunks(side, generation).map(|(key, _)| *key);
        self.idle.intersection(&of.generations).flat_map(chunks)
    }

    pub(super) fn idle_endpoints<'a>(
        &'a self,
        of: &'a Idle,
    ) -> impl Iterator<Item = EndpointAt> + 'a {
        self.idle
            .intersection(&of.generations)
            .flat_map(|&(side, generation)| self.endpoints_of(side, generation))
    }

    /// Whether a generation's endpoint leads to a slot that holds it.
    pub(super) fn finds(&self, side: Side, generation: u32, addr: SocketAddr) -> bool {
        let Some(&slot) = self.endpoints.get(&EndpointAt { generation, addr }) else {
            return false;
        };
        self.backends
            .get(&SlotKey {
                side,
                generation,
                slot,
            })
            .is_some_and(|backend| backend.addr == addr)
    }

    fn endpoints_of(&self, side: Side, generation: u32) -> impl Iterator<Item = EndpointAt> + '_ {
        let first: IpAddr = match side {
            Side::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Side::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let from = EndpointAt {
            generation,
            addr: SocketAddr::new(first, 0),
        };
        let all = self.endpoints.range(from..).map(|(endpoint, _)| *endpoint);
        all.take_while(move |endpoint| {
            endpoint.generation == generation && Side::from(endpoint.addr.ip()) == side
        })
    }

    pub(super) fn idle_names(&self) -> impl Iterator<Item = u32> + '_ {
        self.names
            .keys()
            .copied()
            .filter(|id| !self.frontends.contains_key(id))
    }

    /// Ids from here on have not been given out.
    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    pub(super) fn next_generation(&self) -> u32 {
        self.next_generation
    }

    pub(super) fn id_is_used(&self, id: u32) -> bool {
        self.names.contains_key(&id) || self.frontends.contains_key(&id)
    }

    pub(super) fn generation_is_used(&self, generation: u32) -> bool {
        let used = |side| {
            self.users.contains_key(&(side, generation)) || self.idle.contains(&(side, generation))
        };
        used(Side::V4) || used(Side::V6)
    }

    fn target(&self, frontend: Frontend, service: &Service) -> Target {
        let algorithm = if service.has(ServiceFlags::MAGLEV) {
            Algorithm::Maglev
        } else {
            Algorithm::Random
        };
        let mut backends = Backends {
            algorithm,
            ..Backends::default()
        };
        for (slot, Slot { addr, flags, .. }) in self.slots(frontend.addr.into(), service.generation)
        {
            let local = slot < service.local_len;
            let cluster = (service.cluster_first
                ..service.cluster_first.saturating_add(service.cluster_len))
                .contains(&slot);
            let list = match (local, cluster) {
                (true, true) => &mut backends.both,
                (true, false) => &mut backends.local_only,
                (false, true) => &mut backends.cluster_only,
                (false, false) => continue,
            };
            list.push(Endpoint { addr, flags });
        }
        Target {
            service: self.name_or_number(service.id),
            flags: service.flags & !ServiceFlags::MAGLEV,
            affinity: service.affinity,
            backends: Arc::new(backends),
        }
    }

    fn name_or_number(&self, id: u32) -> Arc<str> {
        self.names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("#{id}").into())
    }

    fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Service(frontend, service) => self.put_service(frontend, service),
            Entry::Backend(key, slot) => self.put_backend(key, slot),
            Entry::Endpoint(endpoint, slot) => self.put_endpoint(endpoint, slot),
            Entry::Maglev(key, chunk) => {
                self.note_generation((Side::from(&key), key.generation));
                self.maglev.insert(key, *chunk);
            }
            Entry::Source(id, range) => _ = self.sources.insert((id, range)),
            Entry::Range(range, kind) => _ = self.ranges.insert(range, kind),
            Entry::Address(addr, flags) => drop(self.addresses.insert(addr, flags)),
            Entry::Pod(addr, pod) => {
                self.moved.remove(&addr);
                self.pods.insert(addr, pod);
            }
            Entry::Device(index, device) => drop(self.devices.insert(index, device)),
            Entry::Name(id, name) => self.put_name(id, name),
            Entry::Config(config) => self.config = config,
        }
    }

    fn delete(&mut self, key: Key) {
        match key {
            Key::Service(frontend) => self.delete_service(&frontend),
            Key::Backend(key) => self.delete_backend(key),
            Key::Endpoint(endpoint) => self.delete_endpoint(endpoint),
            Key::Maglev(key) => {
                self.maglev.remove(&key);
                self.forget_generation((Side::from(&key), key.generation));
            }
            Key::Source(id, range) => _ = self.sources.remove(&(id, range)),
            Key::Range(range) => _ = self.ranges.remove(&range),
            Key::Address(addr) => drop(self.addresses.remove(&addr)),
            Key::Pod(addr) => {
                self.moved.remove(&addr);
                self.pods.remove(&addr);
            }
            Key::Device(index) => drop(self.devices.remove(&index)),
            Key::Name(id) => self.delete_name(id),
        }
    }

    fn put_service(&mut self, frontend: Frontend, service: Service) {
        self.delete_service(&frontend);
        let generation = (Side::from(frontend.addr), service.generation);
        *self.users.entry(generation).or_default() += 1;
        self.idle.remove(&generation);
        self.frontends
            .entry(service.id)
            .or_default()
            .insert(frontend);
        self.next_id = after(self.next_id, service.id);
        self.next_generation = after(self.next_generation, service.generation);
        self.services.insert(frontend, service);
    }

    fn delete_service(&mut self, frontend: &Frontend) {
        let Some(old) = self.services.remove(frontend) else {
            return;
        };
        if let Some(frontends) = self.frontends.get_mut(&old.id) {
            frontends.remove(frontend);
            if frontends.is_empty() {
                self.frontends.remove(&old.id);
            }
        }
        let generation = (Side::from(frontend.addr), old.generation);
        let users = self.users.entry(generation).or_default();
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.users.remove(&generation);
            if !self.is_empty(generation) {
                self.idle.insert(generation);
            }
        }
    }

    fn put_backend(&mut self, key: SlotKey, slot: Slot) {
        self.backends.insert(key, slot);
        self.note_generation((key.side, key.generation));
    }

    fn put_endpoint(&mut self, endpoint: EndpointAt, slot: u32) {
        self.endpoints.insert(endpoint, slot);
        self.note_generation((endpoint.addr.ip().into(), endpoint.generation));
    }

    fn note_generation(&mut self, generation: (Side, u32)) {
        self.next_generation = after(self.next_generation, generation.1);
        if !self.users.contains_key(&generation) {
            self.idle.insert(generation);
        }
    }

    fn delete_backend(&mut self, key: SlotKey) {
        self.backends.remove(&key);
        self.forget_generation((key.side, key.generation));
    }

    fn delete_endpoint(&mut self, endpoint: EndpointAt) {
        self.endpoints.remove(&endpoint);
        self.forget_generation((endpoint.addr.ip().into(), endpoint.generation));
    }

    fn forget_generation(&mut self, generation: (Side, u32)) {
        if self.is_empty(generation) {
            self.idle.remove(&generation);
        }
    }

    fn is_empty(&self, (side, generation): (Side, u32)) -> bool {
        self.slots(side, generation).next().is_none()
            && self.endpoints_of(side, generation).next().is_none()
            && self.chunks(side, generation).next().is_none()
    }

    fn put_name(&mut self, id: u32, name: Arc<str>) {
        self.delete_name(id);
        self.next_id = after(self.next_id, id);
        self.ids.insert(name.clone(), id);
        self.names.insert(id, name);
    }

    fn delete_name(&mut self, id: u32) {
        if let Some(name) = self.names.remove(&id)
            && self.ids.get(&name) == Some(&id)
        {
            self.ids.remove(&name);
        }
    }
}

/// The next number to give out, once `seen` is known to be in use; 0 stands for "wrapped around".
fn after(next: u32, seen: u32) -> u32 {
    if seen >= next {
        seen.wrapping_add(1)
    } else {
        next
    }
}
