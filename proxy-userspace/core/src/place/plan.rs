//! The writes of one step, collected by kind and returned in a safe order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, RangeKind};
use proxy_common::service::{Service, ServiceFlags};

use super::actual::Actual;
use super::elements::{EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};
use super::label::label;
use super::maglev;
use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target};
use crate::model::Algorithm;

pub struct Plan<'a> {
    contents: &'a Contents,
    actual: &'a Actual,
    ids: BTreeMap<Cow<'a, str>, u32>,
    generations: BTreeMap<(u32, Side, &'a Backends), u32>,
    next_id: u32,
    next_generation: u32,
    facts: Vec<Write>,
    names: Vec<Write>,
    sources: Vec<Write>,
    slots: Vec<Write>,
    services: Vec<Write>,
    gone: Vec<Write>,
    gone_facts: Vec<Write>,
}

impl<'a> Plan<'a> {
    pub fn new(contents: &'a Contents, actual: &'a Actual) -> Self {
        Self {
            contents,
            actual,
            ids: BTreeMap::new(),
            generations: BTreeMap::new(),
            next_id: actual.next_id(),
            next_generation: actual.next_generation(),
            facts: Vec::new(),
            names: Vec::new(),
            sources: Vec::new(),
            slots: Vec::new(),
            services: Vec::new(),
            gone: Vec::new(),
            gone_facts: Vec::new(),
        }
    }

    /// Returns the writes: first facts, then elements that services refer to, then services; for
    /// removed elements in the opposite order.
    pub fn writes(self) -> Vec<Write> {
        [
            self.facts,
            self.names,
            self.sources,
            self.slots,
            self.services,
            self.gone,
            self.gone_facts,
        ]
        .concat()
    }

    /// Plans the writes for one frontend.
    pub fn frontend(&mut self, frontend: Frontend) {
        let is = self.actual.services().get(&frontend);
        let contents = self.contents;
        let Some(target) = contents.frontends.get(&frontend) else {
            if is.is_some() {
                self.gone.push(Write::Delete(Key::Service(frontend)));
            }
            return;
        };
        let ought = self.service(frontend, target);
        if is != Some(&ought) {
            self.services
                .push(Write::Put(Entry::Service(frontend, ought)));
        }
    }

    /// Plans the settings and the facts that differ.
    pub fn facts(&mut self, unlike: &Delta) {
        let contents = self.contents;
        if self.actual.config() != contents.config {
            self.facts.push(Write::Put(Entry::Config(contents.config)));
        }
        unlike
            .devices
            .iter()
            .for_each(|key| self.fact(*key, contents.devices.get(key)));
        unlike
            .pods
            .iter()
            .chain(self.actual.moved())
            .for_each(|addr| self.pod(*addr));
        unlike
            .ranges
            .iter()
            .for_each(|key| self.fact(*key, contents.ranges.get(key)));
        unlike
            .addresses
            .iter()
            .for_each(|key| self.fact(*key, contents.addresses.get(key)));
    }

    /// Plans one source range that was added or removed.
    pub fn source(&mut self, source: &'a (Arc<str>, IpNet)) {
        let (service, range) = source;
        if self.contents.sources.contains(source) {
            let id = self.id(service);
            self.sources.push(Write::Put(Entry::Source(id, *range)));
        } else if let Some(id) = self.actual.id_of(service) {
            self.gone_facts.push(Write::Delete(Key::Source(id, *range)));
        }
    }

    /// Plans the source ranges: new ones are written before the services, removed ones after them.
    pub fn sources(&mut self) {
        let contents = self.contents;
        let ought: BTreeSet<_> = contents
            .sources
            .iter()
            .map(|(service, range)| (self.id(service), *range))
            .collect();
        let is = self.actual.sources();
        self.sources.extend(
            ought
                .difference(is)
                .map(|(id, range)| Write::Put(Entry::Source(*id, *range))),
        );
        self.gone_facts.extend(
            is.difference(&ought)
                .map(|(id, range)| Write::Delete(Key::Source(*id, *range))),
        );
    }

    /// Plans a pod's address with its device and its pod_id.
    fn pod(&mut self, addr: IpAddr) {
        let ought = self.contents.pods.get(&addr).map(|device| LocalPod {
            device: *device,
            pod_id: self.actual.pod_id(addr),
        });
        if self.actual.pods().get(&addr) != ought.as_ref() {
            self.fact(addr, ought.as_ref());
        }
    }

    fn fact<K, V: Fact<K>>(&mut self, key: K, value: Option<&V>) {
        match value {
            Some(value) => self.facts.push(Write::Put(value.entry(key))),
            None => self.gone_facts.push(Write::Delete(V::key(key))),
        }
    }

    fn service(&mut self, frontend: Frontend, target: &'a Target) -> Service {
        let side = Side::from(frontend.addr);
        let id = self.id(&target.service);
        let count = |list: &Vec<Endpoint>| u32::try_from(list.len()).unwrap_or(u32::MAX);
        let Backends {
            local_only,
            both,
            cluster_only,
            algorithm,
        } = &*target.backends;
        let flags = target.flags
            | if *algorithm == Algorithm::Maglev {
                ServiceFlags::MAGLEV
            } else {
                0
            };
        Service {
            flags,
            id,
            generation: self.generation(frontend, id, side, &target.backends),
            affinity: target.affinity,
            local_len: count(local_only) + count(both),
            cluster_first: count(local_only),
            cluster_len: count(both) + count(cluster_only),
        }
    }

    /// Returns the id of a service port: that of its name in the kernel, else a new one.
    fn id(&mut self, service: &'a str) -> u32 {
        let label = label(service);
        if let Some(id) = self
            .ids
            .get(&label)
            .copied()
            .or_else(|| self.actual.id(&label))
        {
            return id;
        }
        let id = fresh(&mut self.next_id, |id| self.actual.id_is_used(id));
        self.names
            .push(Write::Put(Entry::Name(id, (&*label).into())));
        self.ids.insert(label, id);
        id
    }

    /// Returns a generation that holds `backends`: one that the service port has already, else new
    /// slots.
    fn generation(
        &mut self,
        frontend: Frontend,
        id: u32,
        side: Side,
        backends: &'a Backends,
    ) -> u32 {
        if let Some(generation) = self.generations.get(&(id, side, backends)) {
            return *generation;
        }
        let own = self
            .actual
            .services()
            .get(&frontend)
            .filter(|s| s.id == id)
            .map(|s| s.generation);
        let mut known = own.into_iter().chain(self.actual.generations(id, side));
        let generation = match known.find(|generation| self.holds(side, *generation, backends)) {
            Some(generation) => generation,
            None => self.fill(side, backends),
        };
        self.generations.insert((id, side, backends), generation);
        generation
    }

    fn holds(&self, side: Side, generation: u32, backends: &Backends) -> bool {
        let chunks = maglev::chunks(side, generation, backends);
        self.actual
            .slots(side, generation)
            .map(|(_, slot)| slot)
            .eq(slots(backends, generation))
            && self
                .actual
                .slots(side, generation)
                .enumerate()
                .all(|(i, (slot, backend))| {
                    i as u32 == slot && self.actual.finds(side, generation, backend.addr)
                })
            && self.actual.chunks(side, generation).eq(chunks.iter())
    }

    fn fill(&mut self, side: Side, backends: &Backends) -> u32 {
        let generation = fresh(&mut self.next_generation, |g| {
            self.actual.generation_is_used(g)
        });
        for (index, slot) in slots(backends, generation).enumerate() {
            let key = SlotKey {
                side,
                generation,
                slot: index as u32,
            };
            self.slots.push(Write::Put(Entry::Endpoint(
                EndpointAt {
                    generation,
                    addr: slot.addr,
                },
                key.slot,
            )));
            self.slots.push(Write::Put(Entry::Backend(key, slot)));
        }
        let chunks = maglev::chunks(side, generation, backends);
        self.slots.extend(
            chunks
                .into_iter()
                .map(|(key, chunk)| Write::Put(Entry::Maglev(key, Box::new(chunk)))),
        );
        generation
    }
}

/// Returns the slots of a list: local-only, both, cluster-only (V7).
fn slots(backends: &Backends, generation: u32) -> impl Iterator<Item = Slot> + '_ {
    let Backends {
        local_only,
        both,
        cluster_only,
        ..
    } = backends;
    local_only
        .iter()
        .chain(both)
        .chain(cluster_only)
        .map(move |endpoint| Slot {
            addr: endpoint.addr,
            flags: endpoint.flags,
            generation,
        })
}

/// Returns a number that is neither 0 nor in use. Freed numbers are not reused before the counter
/// wraps around.
fn fresh(next: &mut u32, used: impl Fn(u32) -> bool) -> u32 {
    loop {
        let number = *next;
        *next = next.wrapping_add(1);
        if number != 0 && !used(number) {
            return number;
        }
    }
}

/// A value that has the same form in symbols and in the kernel.
trait Fact<K>: Copy {
    fn entry(&self, key: K) -> Entry;
    fn key(key: K) -> Key;
}

impl Fact<IpNet> for RangeKind {
    fn entry(&self, key: IpNet) -> Entry {
        Entry::Range(key, *self)
    }
    fn key(key: IpNet) -> Key {
        Key::Range(key)
    }
}

impl Fact<IpAddr> for AddressFlags {
    fn entry(&self, key: IpAddr) -> Entry {
        Entry::Address(key, *self)
    }
    fn key(key: IpAddr) -> Key {
        Key::Address(key)
    }
}

impl Fact<IpAddr> for LocalPod {
    fn entry(&self, key: IpAddr) -> Entry {
        Entry::Pod(key, *self)
    }
    fn key(key: IpAddr) -> Key {
        Key::Pod(key)
    }
}

impl Fact<IfIndex> for Device {
    fn entry(&self, key: IfIndex) -> Entry {
        Entry::Device(key, *self)
    }
    fn key(key: IfIndex) -> Key {
        Key::Device(key)
    }
}
