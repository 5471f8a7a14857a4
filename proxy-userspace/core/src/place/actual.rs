//! A mirror of the kernel's Service maps, with ids, generations and slots.

mod apply;
mod idle;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, RangeKind};
use proxy_common::service::{Config, MaglevChunk, MaglevKey, Service, ServiceFlags};

use super::elements::{EndpointAt, Side, Slot, SlotKey};
use super::label::label;
use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target, unlike};
use crate::model::Algorithm;

/// The contents of the kernel's Service maps.
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
    /// The pod_id that each pod's address is to have: the index of the pod's element in `ROWS`.
    pod_ids: BTreeMap<IpAddr, u32>,
    /// Addresses with a changed pod_id that is not written yet.
    moved: BTreeSet<IpAddr>,
    devices: BTreeMap<IfIndex, Device>,
    names: BTreeMap<u32, Arc<str>>,
    config: Config,
    /// The frontends of each service port.
    frontends: BTreeMap<u32, BTreeSet<Frontend>>,
    /// The inverse of `names`.
    ids: BTreeMap<Arc<str>, u32>,
    /// Number of frontends of each generation. Generations without any are absent.
    users: BTreeMap<(Side, u32), u32>,
    /// Generations with slots or endpoints, but without frontends.
    idle: BTreeSet<(Side, u32)>,
    /// Greater than every id seen so far.
    next_id: u32,
    /// Greater than every generation seen so far.
    next_generation: u32,
}

/// Generations and names without frontends at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    generations: BTreeSet<(Side, u32)>,
    pub(super) names: BTreeSet<u32>,
}

impl Actual {
    /// Returns the elements of `SERVICES*`.
    pub fn services(&self) -> &BTreeMap<Frontend, Service> {
        &self.services
    }

    /// Returns the elements of `PODS*`.
    pub fn pods(&self) -> &BTreeMap<IpAddr, LocalPod> {
        &self.pods
    }

    /// Returns the element of `CONFIG`.
    pub fn config(&self) -> Config {
        self.config
    }

    /// Returns the name of a service port, by its id.
    pub fn name(&self, id: u32) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    /// Returns the id of a service port, by its name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.id(&label(name))
    }

    /// Returns the slots of a generation in order.
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

    /// Returns the chunks of a generation's Maglev tables.
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

    /// Returns the contents in symbols. A missing slot is left out, so that damaged maps do not
    /// compare equal to intended ones.
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

    /// Sets the pod_id for an address; it is written with the address.
    pub fn assign(&mut self, addr: IpAddr, pod_id: u32) {
        let before = if pod_id == 0 {
            self.pod_ids.remove(&addr)
        } else {
            self.pod_ids.insert(addr, pod_id)
        };
        if before.unwrap_or_default() != pod_id {
            self.moved.insert(addr);
        }
    }

    pub(super) fn pod_id(&self, addr: IpAddr) -> u32 {
        self.pod_ids.get(&addr).copied().unwrap_or_default()
    }

    /// Returns the addresses with a changed pod_id that is not written yet.
    pub(super) fn moved(&self) -> impl Iterator<Item = &IpAddr> {
        self.moved.iter()
    }

    pub(super) fn sources(&self) -> &BTreeSet<(u32, IpNet)> {
        &self.sources
    }

    /// Returns the differences of facts, which have the same form in symbols and in the kernel.
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

    /// Returns the generations that a service port uses for one family.
    pub(super) fn generations(&self, id: u32, side: Side) -> impl Iterator<Item = u32> + '_ {
        let frontends = self.frontends.get(&id).into_iter().flatten();
        frontends
            .filter(move |f| Side::from(f.addr) == side)
            .filter_map(|f| self.services.get(f))
            .map(|s| s.generation)
    }

    /// Returns true if a generation's endpoint refers to a slot with this backend.
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

    /// Returns the least id above all that were used.
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
}
