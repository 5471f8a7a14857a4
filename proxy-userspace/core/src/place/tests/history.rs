//! Random histories: safe after each write, and as the contents are in the end.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::net::{AddressFlags, Device, IfIndex, Protocol, RangeKind};
use proxy_common::service::Config;

use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target};
use crate::model::Algorithm;
use crate::place::{Actual, Side, Write, place, place_delta, retire};

use super::kernel::{Kernel, address};

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
