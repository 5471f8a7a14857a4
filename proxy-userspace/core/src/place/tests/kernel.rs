//! A model of the kernel: the maps alone, and all that a packet can meet in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, RangeKind};
use proxy_common::service::{
    Config, MAGLEV_CHUNK, MaglevChunk, MaglevKey, Service, ServiceFlags, maglev_entries,
};

use crate::contents::{Contents, Frontend};
use crate::place::{Actual, EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};

/// The maps alone, without the indexes of [`Actual`].
#[derive(Clone, Default)]
pub(super) struct Kernel {
    pub(super) services: BTreeMap<Frontend, Service>,
    pub(super) backends: BTreeMap<SlotKey, Slot>,
    pub(super) endpoints: BTreeMap<EndpointAt, u32>,
    pub(super) maglev: BTreeMap<MaglevKey, MaglevChunk>,
    pub(super) sources: BTreeSet<(u32, IpNet)>,
    pub(super) ranges: BTreeMap<IpNet, RangeKind>,
    pub(super) addresses: BTreeMap<IpAddr, AddressFlags>,
    pub(super) pods: BTreeMap<IpAddr, LocalPod>,
    pub(super) devices: BTreeMap<IfIndex, Device>,
    pub(super) names: BTreeMap<u32, Arc<str>>,
    pub(super) config: Config,
}

impl Kernel {
    pub(super) fn apply(&mut self, write: &Write) {
        match write.clone() {
            Write::Put(Entry::Service(k, v)) => drop(self.services.insert(k, v)),
            Write::Put(Entry::Backend(k, v)) => drop(self.backends.insert(k, v)),
            Write::Put(Entry::Endpoint(k, v)) => drop(self.endpoints.insert(k, v)),
            Write::Put(Entry::Maglev(k, v)) => drop(self.maglev.insert(k, *v)),
            Write::Put(Entry::Source(id, range)) => _ = self.sources.insert((id, range)),
            Write::Put(Entry::Range(range, kind)) => _ = self.ranges.insert(range, kind),
            Write::Put(Entry::Address(k, v)) => drop(self.addresses.insert(k, v)),
            Write::Put(Entry::Pod(k, v)) => drop(self.pods.insert(k, v)),
            Write::Put(Entry::Device(k, v)) => drop(self.devices.insert(k, v)),
            Write::Put(Entry::Name(k, v)) => drop(self.names.insert(k, v)),
            Write::Put(Entry::Config(v)) => self.config = v,
            Write::Delete(Key::Service(k)) => assert!(
                self.services.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Backend(k)) => assert!(
                self.backends.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Endpoint(k)) => assert!(
                self.endpoints.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Maglev(k)) => assert!(
                self.maglev.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Source(id, k)) => assert!(
                self.sources.remove(&(id, k)),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Range(k)) => assert!(
                self.ranges.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Address(k)) => assert!(
                self.addresses.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Pod(k)) => assert!(
                self.pods.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Device(k)) => assert!(
                self.devices.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
            Write::Delete(Key::Name(k)) => assert!(
                self.names.remove(&k).is_some(),
                "deletes {k:?} that is not there"
            ),
        }
    }

    /// Returns the state that a restarted agent reads.
    pub(super) fn read(&self) -> Actual {
        let services = self.services.iter().map(|(k, v)| Entry::Service(*k, *v));
        let backends = self.backends.iter().map(|(k, v)| Entry::Backend(*k, *v));
        let endpoints = self.endpoints.iter().map(|(k, v)| Entry::Endpoint(*k, *v));
        let maglev = self
            .maglev
            .iter()
            .map(|(k, v)| Entry::Maglev(*k, Box::new(*v)));
        let sources = self
            .sources
            .iter()
            .map(|(id, range)| Entry::Source(*id, *range));
        let ranges = self
            .ranges
            .iter()
            .map(|(range, kind)| Entry::Range(*range, *kind));
        let addresses = self.addresses.iter().map(|(k, v)| Entry::Address(*k, *v));
        let pods = self.pods.iter().map(|(k, v)| Entry::Pod(*k, *v));
        let devices = self.devices.iter().map(|(k, v)| Entry::Device(*k, *v));
        let names = self.names.iter().map(|(k, v)| Entry::Name(*k, v.clone()));
        let facts = addresses
            .chain(pods)
            .chain(devices)
            .chain([Entry::Config(self.config)]);
        services
            .chain(backends)
            .chain(endpoints)
            .chain(maglev)
            .chain(sources)
            .chain(ranges)
            .chain(names)
            .chain(facts)
            .collect()
    }

    /// Checks all that a packet can meet: each service's slots exist and belong to it alone, and
    /// its name is known.
    pub(super) fn check(&self) {
        let mut owners = BTreeMap::new();
        for (frontend, service) in &self.services {
            let side = Side::from(frontend.addr);
            for slot in 0..service
                .local_len
                .max(service.cluster_first + service.cluster_len)
            {
                let key = SlotKey {
                    side,
                    generation: service.generation,
                    slot,
                };
                let found = self
                    .backends
                    .get(&key)
                    .unwrap_or_else(|| panic!("{frontend:?} lacks {key:?}"));
                assert_eq!(
                    found.generation, key.generation,
                    "{key:?} says that it is another generation's"
                );
                let back = self.endpoints.get(&EndpointAt {
                    generation: key.generation,
                    addr: found.addr,
                });
                let back = back.and_then(|slot| self.backends.get(&SlotKey { slot: *slot, ..key }));
                assert_eq!(
                    back.map(|slot| slot.addr),
                    Some(found.addr),
                    "{key:?} is not found by its endpoint"
                );
            }
            self.check_tables(frontend, service, side);
            assert!(
                self.names.contains_key(&service.id),
                "{frontend:?} has no name"
            );
            assert_eq!(
                *owners
                    .entry(service.generation)
                    .or_insert((service.id, side)),
                (service.id, side)
            );
        }
    }

    /// Checks that the Maglev tables of both sets, if any, are whole and name backends of the set.
    pub(super) fn check_tables(&self, frontend: &Frontend, service: &Service, side: Side) {
        let Service {
            generation,
            local_len,
            cluster_first,
            cluster_len,
            ..
        } = *service;
        let mut sets = vec![(MaglevKey::CLUSTER, cluster_len)];
        if (0, local_len) != (cluster_first, cluster_len) {
            sets.push((0, local_len));
        }
        for (set, len) in sets {
            let set = if side == Side::V6 {
                set | MaglevKey::V6
            } else {
                set
            };
            let chunks = maglev_entries(len).div_ceil(MAGLEV_CHUNK as u32) as u16;
            for chunk in 0..if service.has(ServiceFlags::MAGLEV) {
                chunks
            } else {
                0
            } {
                let found = self.maglev.get(&MaglevKey {
                    generation,
                    set,
                    chunk,
                });
                let found =
                    found.unwrap_or_else(|| panic!("{frontend:?} lacks part {chunk} of set {set}"));
                assert!(
                    found.iter().all(|index| u32::from(*index) < len),
                    "{frontend:?}: {found:?}"
                );
            }
        }
    }

    /// Applies the writes one by one. At any time each frontend has its old or its new backends.
    pub(super) fn follow(&mut self, writes: &[Write], new: &Contents) {
        let old = self.read().contents();
        for write in writes {
            self.apply(write);
            self.check();
            for (frontend, target) in self.read().contents().frontends {
                let known = [old.frontends.get(&frontend), new.frontends.get(&frontend)];
                assert!(
                    known.contains(&Some(&target)),
                    "{frontend:?} leads to a mixture: {target:?}"
                );
            }
        }
    }
}

pub(super) fn address(side: Side, host: u8) -> IpAddr {
    match side {
        Side::V4 => Ipv4Addr::new(10, 0, 0, host).into(),
        Side::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}
