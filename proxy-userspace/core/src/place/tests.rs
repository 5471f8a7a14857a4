//! Random histories against a model of the kernel without ids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, Protocol, RangeKind};
use proxy_common::service::{
    Config, MAGLEV_CHUNK, MaglevChunk, MaglevKey, Service, ServiceFlags, maglev_entries,
};

use super::{
    Actual, EndpointAt, Entry, Key, Side, Slot, SlotKey, Write, place, place_delta, retire,
};
use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target};
use crate::model::Algorithm;

/// The maps alone, without the indexes of [`Actual`].
#[derive(Clone, Default)]
struct Kernel {
    services: BTreeMap<Frontend, Service>,
    backends: BTreeMap<SlotKey, Slot>,
    endpoints: BTreeMap<EndpointAt, u32>,
    maglev: BTreeMap<MaglevKey, MaglevChunk>,
    sources: BTreeSet<(u32, IpNet)>,
    ranges: BTreeMap<IpNet, RangeKind>,
    addresses: BTreeMap<IpAddr, AddressFlags>,
    pods: BTreeMap<IpAddr, LocalPod>,
    devices: BTreeMap<IfIndex, Device>,
    names: BTreeMap<u32, Arc<str>>,
    config: Config,
}

impl Kernel {
    fn apply(&mut self, write: &Write) {
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
    fn read(&self) -> Actual {
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
    fn check(&self) {
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
    fn check_tables(&self, frontend: &Frontend, service: &Service, side: Side) {
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
    fn follow(&mut self, writes: &[Write], new: &Contents) {
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

fn address(side: Side, host: u8) -> IpAddr {
    match side {
        Side::V4 => Ipv4Addr::new(10, 0, 0, host).into(),
        Side::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn endpoints(side: Side) -> impl Strategy<Value = Vec<Endpoint>> {
    let endpoint = move |host| Endpoint {
        addr: SocketAddr::new(address(side, host), 80),
        flags: u16::from(host % 2),
    };
    prop::collection::btree_set(0u8..6, 0..4)
        .prop_map(move |hosts| hosts.into_iter().map(endpoint).collect())
}

fn backends(side: Side) -> impl Strategy<Value = Arc<Backends>> {
    let algorithm = prop_oneof![3 => Just(Algorithm::Random), 1 => Just(Algorithm::Maglev)];
    (endpoints(side), endpoints(side), endpoints(side), algorithm).prop_map(
        |(local_only, both, cluster_only, algorithm)| {
            Arc::new(Backends {
                local_only,
                both,
                cluster_only,
                algorithm,
            })
        },
    )
}

fn frontends() -> impl Strategy<Value = BTreeMap<Frontend, Target>> {
    let side = prop_oneof![Just(Side::V4), Just(Side::V6)];
    let group = side.prop_flat_map(|side| {
        let ports = prop::collection::btree_set(1u8..6, 1..4);
        (
            Just(side),
            0u8..3,
            ports,
            backends(side),
            backends(side),
            0u32..2,
        )
    });
    prop::collection::vec(group, 0..5).prop_map(|groups| {
        let mut all = BTreeMap::new();
        for (side, service, ports, common, odd, affinity) in groups {
            for port in ports {
                let frontend = Frontend {
                    addr: address(side, port % 2),
                    port: port.into(),
                    protocol: Protocol::TCP,
                };
                let backends = if port == 5 {
                    odd.clone()
                } else {
                    common.clone()
                };
                let service = format!("ns/service-{service}:http").into();
                all.insert(
                    frontend,
                    Target {
                        service,
                        flags: port.into(),
                        affinity,
                        backends,
                    },
                );
            }
        }
        all
    })
}

fn prefix(bits: u8) -> IpNet {
    IpNet::new(Ipv4Addr::new(10, 0, 0, 0).into(), bits).expect("a prefix")
}

prop_compose! {
    fn contents()(
        frontends in frontends(),
        addresses in prop::collection::btree_map(0u8..5, 0u32..3, 0..4),
        pods in prop::collection::btree_map(0u8..5, 0u32..3, 0..4),
        devices in prop::collection::btree_map(1u32..4, 1400u32..1402, 0..3),
        secret in 0u64..2,
        served in prop::collection::btree_set((0usize..6, 8u8..11), 0..4),
        ranges in prop::collection::btree_map(8u8..12, 0u32..3, 0..3),
    ) -> Contents {
        let services: Vec<_> = frontends.values().map(|target| target.service.clone()).collect();
        let source = |(service, bits): (usize, u8)| Some((services.get(service)?.clone(), prefix(bits)));
        Contents {
            sources: served.into_iter().filter_map(source).collect(),
            ranges: ranges.into_iter().map(|(bits, kind)| (prefix(bits), RangeKind(kind))).collect(),
            frontends,
            addresses: addresses.into_iter().map(|(a, flags)| (address(Side::V4, a), AddressFlags(flags))).collect(),
            pods: pods.into_iter().map(|(a, device)| (address(Side::V6, a), IfIndex(device))).collect(),
            devices: devices.into_iter().map(|(i, mtu)| (IfIndex(i), Device { mtu, ..Device::default() })).collect(),
            config: Config { secret, ..Config::default() },
        }
    }
}

/// The state of the agent before its next step.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It knows its last writes.
    Onwards,
    /// It was restarted.
    Restart,
    /// It was restarted after it had died in the middle of the last writes.
    Crash(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Onwards),
        Just(Step::Restart),
        any::<prop::sample::Index>().prop_map(Step::Crash)
    ]
}

/// One step of an agent's life: it plans, applies all or a part, and retires idle elements.
fn live(kernel: &mut Kernel, mirror: &mut Actual, before: &Contents, next: &Contents, step: Step) {
    let writes = match step {
        Step::Onwards => place_delta(&Delta::between(before, next), next, mirror),
        Step::Restart | Step::Crash(_) => place(next, mirror),
    };
    if let Step::Crash(at) = step
        && !writes.is_empty()
    {
        kernel.follow(&writes[..at.index(writes.len())], next);
        *mirror = kernel.read();
        let rest = place(next, mirror);
        return finish(kernel, mirror, next, &rest);
    }
    finish(kernel, mirror, next, &writes);
}

fn finish(kernel: &mut Kernel, mirror: &mut Actual, next: &Contents, writes: &[Write]) {
    kernel.follow(writes, next);
    writes.iter().for_each(|write| mirror.apply(write.clone()));
    let idle = retire(mirror);
    kernel.follow(&idle, next);
    idle.iter().for_each(|write| mirror.apply(write.clone()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_safe_after_each_write_and_ends_as_the_contents_say(history in prop::collection::vec((contents(), step()), 1..6)) {
        let (mut kernel, mut before) = (Kernel::default(), Contents::default());
        let mut mirror = kernel.read();
        for (next, step) in history {
            live(&mut kernel, &mut mirror, &before, &next, step);
            prop_assert_eq!(&kernel.read().contents(), &next);
            prop_assert_eq!(&mirror.contents(), &next);
            prop_assert_eq!(place(&next, &kernel.read()), Vec::new(), "a restart writes nothing");
            prop_assert_eq!(retire(&kernel.read()), Vec::new());
            let used: std::collections::BTreeSet<_> = kernel.services.values().map(|s| s.generation).collect();
            prop_assert!(kernel.backends.keys().all(|k| used.contains(&k.generation)), "slots are left over");
            prop_assert!(kernel.maglev.keys().all(|k| used.contains(&k.generation)), "tables are left over");
            before = next;
        }
    }

    #[test]
    fn damage_is_repaired(next in contents(), lost in any::<prop::sample::Index>(), unfound in any::<prop::sample::Index>()) {
        let mut kernel = Kernel::default();
        place(&next, &kernel.read()).iter().for_each(|write| kernel.apply(write));
        if !kernel.backends.is_empty() {
            let key = *kernel.backends.keys().nth(lost.index(kernel.backends.len())).expect("the index is within");
            kernel.backends.remove(&key);
        }
        if !kernel.endpoints.is_empty() {
            let key = *kernel.endpoints.keys().nth(unfound.index(kernel.endpoints.len())).expect("the index is within");
            kernel.endpoints.remove(&key);
        }
        if !kernel.maglev.is_empty() {
            let key = *kernel.maglev.keys().nth(lost.index(kernel.maglev.len())).expect("the index is within");
            kernel.maglev.remove(&key);
        }
        place(&next, &kernel.read()).iter().for_each(|write| kernel.apply(write));
        kernel.check();
        prop_assert_eq!(kernel.read().contents(), next);
    }
}

/// A newer agent adopts the maps of one that wrote no endpoints.
#[test]
fn endpoints_that_were_never_written_are_added() {
    let mut kernel = Kernel::default();
    place(&one_service(&[1, 2]), &kernel.read())
        .iter()
        .for_each(|write| kernel.apply(write));
    kernel.endpoints.clear();
    place(&one_service(&[1, 2]), &kernel.read())
        .iter()
        .for_each(|write| kernel.apply(write));
    kernel.check();
}

fn one_service(hosts: &[u8]) -> Contents {
    let addr = |host| Endpoint {
        addr: SocketAddr::new(address(Side::V4, host), 80),
        flags: 1,
    };
    let backends = Arc::new(Backends {
        both: hosts.iter().copied().map(addr).collect(),
        ..Backends::default()
    });
    let target = |flags| Target {
        service: "ns/web:http".into(),
        flags,
        affinity: 0,
        backends: backends.clone(),
    };
    let frontend = |host, port| Frontend {
        addr: address(Side::V4, host),
        port,
        protocol: Protocol::TCP,
    };
    Contents {
        frontends: BTreeMap::from([
            (frontend(0, 30080), target(2)),
            (frontend(9, 80), target(1)),
        ]),
        ..Contents::default()
    }
}

#[test]
fn frontends_of_a_service_port_share_one_list_and_a_change_gets_a_list_of_its_own() {
    let mut actual = Actual::default();
    place(&one_service(&[1, 2]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let first: Vec<_> = actual.services().values().copied().collect();
    assert_eq!(
        (first[0].generation, first[0].id),
        (first[1].generation, first[1].id)
    );
    let (before, after) = (one_service(&[1, 2]), one_service(&[1, 2, 3]));
    let writes = place_delta(&Delta::between(&before, &after), &after, &actual);
    let slots = writes
        .iter()
        .filter(|w| matches!(w, Write::Put(Entry::Backend(..))))
        .count();
    let services = writes
        .iter()
        .filter(|w| matches!(w, Write::Put(Entry::Service(..))))
        .count();
    assert_eq!(
        (slots, services, writes.len()),
        (3, 2, 8),
        "three slots once, and how to find them, then both frontends: {writes:?}"
    );
    writes.into_iter().for_each(|write| actual.apply(write));
    assert!(
        actual
            .services()
            .values()
            .all(|s| s.generation != first[0].generation && s.id == first[0].id)
    );
    assert_eq!(
        retire(&actual).len(),
        4,
        "the two slots of the old list, and how they were found"
    );
}

#[test]
fn numbers_that_were_given_back_or_reserved_are_not_given_out_again() {
    let mut actual = Actual::default();
    actual.reserve_id(41);
    for hosts in [&[1][..], &[2], &[3]] {
        place(&one_service(hosts), &actual)
            .into_iter()
            .for_each(|write| actual.apply(write));
        retire(&actual)
            .into_iter()
            .for_each(|write| actual.apply(write));
    }
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (42, 3));
    place(&Contents::default(), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    retire(&actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    place(&one_service(&[3]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (43, 4));
}

#[test]
fn the_counters_go_round_at_the_end_and_skip_what_is_in_use() {
    let frontend = Frontend {
        addr: address(Side::V4, 7),
        port: 1,
        protocol: Protocol::UDP,
    };
    let low = Frontend {
        port: 2,
        ..frontend
    };
    let service = |id, generation| Service {
        id,
        generation,
        ..Service::default()
    };
    let mut actual: Actual = [
        Entry::Service(frontend, service(u32::MAX, u32::MAX)),
        Entry::Service(low, service(1, 1)),
    ]
    .into_iter()
    .collect();
    place(&one_service(&[1]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (2, 2));
}

#[test]
fn names_too_long_for_the_kernel_stay_apart() {
    let long = |end: &str| format!("{}{end}", "x".repeat(200));
    let (a, b) = (long("a"), long("b"));
    assert_ne!(super::label::label(&a), super::label::label(&b));
    assert!(super::label::label(&a).len() <= 188);
    assert_eq!(super::label::label("ns/web:http"), "ns/web:http");
}
