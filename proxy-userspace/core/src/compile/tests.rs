//! Histories: the incremental result equals that of compiling from nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proxy_common::net::{Device, IfIndex, Protocol};

use super::{Compiler, Touched, compile_reporting};
use crate::contents::{Contents, Delta};
use crate::model::{
    Algorithm, EndpointSlice, Family, Forwarding, Invalid, Node, Object, ObjectName, Phase, Pod,
    Proxied, Service, ServiceAnnotations, ServiceCidr, ServicePort, SliceEndpoint, SlicePort,
    Snapshot, TargetPort, TrafficPolicy, Update,
};
use crate::place::{Actual, place, place_delta};

/// Bytes that decide each choice. When they are used up, the first option is taken.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn below(&mut self, n: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % n)
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.below(all.len() as u8))].clone()
    }

    fn some<T>(&mut self, most: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| one(self)).collect()
    }

    fn name(&mut self) -> ObjectName {
        ObjectName::new("shop", self.pick(&["a", "b", "c", "d"]))
    }

    /// Few addresses, shared by pods, nodes, cluster IPs and load balancers, so that they collide.
    fn address(&mut self) -> IpAddr {
        let host = self.below(12);
        if self.below(4) == 0 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
        } else {
            Ipv4Addr::new(10, 244, host / 4, host % 4).into()
        }
    }

    fn node_name(&mut self) -> std::sync::Arc<str> {
        self.pick(&["here", "there"]).into()
    }
}

fn service(dice: &mut Dice) -> Service {
    let policy = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    let port = |dice: &mut Dice| ServicePort {
        name: dice.pick(&["http", "dns"]).into(),
        protocol: dice.pick(&[Protocol::TCP, Protocol::UDP]),
        port: dice.pick(&[80, 81]),
        node_port: dice.pick(&[None, Some(30080), Some(30081)]),
        target: TargetPort::Number(8080),
    };
    Service {
        proxied: dice.pick(&[
            Proxied::Yes,
            Proxied::Yes,
            Proxied::Yes,
            Proxied::OtherProxy,
            Proxied::Headless,
        ]),
        cluster_ips: dice.some(2, Dice::address),
        external_ips: dice.some(1, Dice::address).into_iter().collect(),
        load_balancer_ips: dice.some(2, Dice::address).into_iter().collect(),
        source_ranges: dice
            .some(1, |dice| {
                dice.pick(&["10.244.0.0/24", "10.0.0.0/8", "fd00::/64"])
                    .parse()
                    .expect("a prefix")
            })
            .into_iter()
            .collect(),
        ports: dice.some(2, port),
        selector: Default::default(),
        external_policy: dice.pick(&policy),
        internal_policy: dice.pick(&policy),
        affinity: dice.pick(&[0, 10]),
        annotations: ServiceAnnotations {
            algorithm: dice.pick(&[None, Some(Algorithm::Random), Some(Algorithm::Maglev)]),
            forwarding: dice.pick(&[None, Some(Forwarding::Masquerade), Some(Forwarding::Dsr)]),
        },
        health_check_node_port: None,
        publish_not_ready: false,
        created: dice.pick(&[None, Some(1), Some(2)]),
    }
}

fn slice(dice: &mut Dice) -> EndpointSlice {
    let endpoint = |dice: &mut Dice| SliceEndpoint {
        addr: dice.address(),
        ready: dice.pick(&[true, true, false]),
        serving: dice.pick(&[true, false]),
        terminating: dice.pick(&[false, true]),
        node: dice
            .pick(&[Some("here"), Some("there"), None])
            .map(Into::into),
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
    };
    let ports = dice.some(2, |dice| SlicePort {
        name: dice.pick(&["http", "dns"]).into(),
        protocol: dice.pick(&[Protocol::TCP, Protocol::UDP]),
        port: dice.pick(&[8080, 53]),
    });
    EndpointSlice {
        service: dice.name(),
        ports,
        family: Family::V4,
        endpoints: dice.some(3, endpoint),
        triggered: None,
    }
}

fn pod(dice: &mut Dice) -> Pod {
    Pod {
        addresses: dice.some(2, Dice::address),
        node: Some(dice.node_name()),
        host_network: dice.pick(&[false, false, true]),
        phase: dice.pick(&[Phase::Running, Phase::Pending, Phase::Failed]),
        terminating: false,
        ready: true,
        unready_because: None,
        any_source: false,
        labels: Default::default(),
        ports: Vec::new(),
        created: dice.pick(&[Some(1), Some(2)]),
    }
}

fn node(dice: &mut Dice) -> Node {
    Node {
        internal_ips: dice.some(1, Dice::address),
        external_ips: Vec::new(),
        pod_cidrs: dice.some(1, |dice| {
            dice.pick(&["10.244.1.0/24", "10.244.0.0/16"])
                .parse()
                .expect("a prefix")
        }),
        zone: dice.pick(&[None, Some("east".into())]),
        leaving: false,
    }
}

/// Changes the cluster or the host, and records the change in `touched` as the agent does.
fn happen(dice: &mut Dice, snapshot: &mut Snapshot, touched: &mut Touched) {
    let reference = |object: Object| object.reference();
    let object = match dice.below(12) {
        0..4 => Object::Service(dice.name(), service(dice)),
        4..7 => Object::EndpointSlice(dice.name(), slice(dice)),
        7..9 => Object::Pod(dice.name(), pod(dice)),
        9 => Object::Node(ObjectName::cluster(&dice.node_name()), node(dice)),
        10 => {
            let prefixes = dice.some(1, |dice| {
                dice.pick(&["10.244.2.0/24", "10.244.2.1/32"])
                    .parse()
                    .expect("a prefix")
            });
            Object::ServiceCidr(
                dice.name(),
                ServiceCidr {
                    prefixes: prefixes.into_iter().collect(),
                },
            )
        }
        _ => {
            let before = snapshot.links.clone();
            snapshot.links.pods = dice
                .some(2, |dice| (dice.address(), IfIndex(dice.below(3).into())))
                .into_iter()
                .collect();
            if dice.below(3) == 0 {
                snapshot.links.host_addresses = dice
                    .some(2, |dice| (dice.address(), IfIndex(1)))
                    .into_iter()
                    .collect();
                let device = |dice: &mut Dice| {
                    (
                        IfIndex(1),
                        Device {
                            mtu: dice.pick(&[1400, 1500]),
                            ..Device::default()
                        },
                    )
                };
                snapshot.links.devices = dice.some(1, device).into_iter().collect();
            }
            touched.record_links(&before, &snapshot.links);
            return;
        }
    };
    let update = match dice.below(8) {
        0 => Update::Delete(reference(object)),
        1 => Update::Invalid(Invalid {
            object: reference(object),
            field: String::new(),
            why: String::new(),
        }),
        _ => Update::Apply(object),
    };
    touched.record(&update);
    _ = snapshot.state.apply(update);
}

fn begin() -> (Snapshot, Compiler) {
    let mut snapshot = Snapshot::default();
    snapshot.settings.node_name = "here".into();
    let mut compiler = Compiler::default();
    compiler.compile(&snapshot, &Touched::everything());
    (snapshot, compiler)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_to_the_same_as_compiling_from_nothing(
        history in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 48), 1..4), 1..24),
    ) {
        let (mut snapshot, mut compiler) = begin();
        let mut kernel = Actual::default();
        place(compiler.contents(), &kernel).into_iter().for_each(|write| kernel.apply(write));
        for batch in history {
            let (before, mut touched) = (compiler.contents().clone(), Touched::default());
            for bytes in &batch {
                happen(&mut Dice(bytes.iter()), &mut snapshot, &mut touched);
            }
            let delta = compiler.compile(&snapshot, &touched);
            let (whole, conflicts) = compile_reporting(&snapshot);
            prop_assert_eq!(compiler.contents(), &whole);
            prop_assert_eq!(compiler.conflicts().cloned().collect::<Vec<_>>(), conflicts);
            prop_assert_eq!(&delta, &Delta::between(&before, &whole));
            place_delta(&delta, &whole, &kernel).into_iter().for_each(|write| kernel.apply(write));
            prop_assert_eq!(&kernel.contents(), &whole);
        }
    }
}

/// A cluster of so many Services with two frontends and four endpoints each.
fn large(services: u32) -> Snapshot {
    let (mut snapshot, _) = begin();
    for n in 0..services {
        let name = ObjectName::new("shop", &format!("service-{n}"));
        _ = snapshot
            .state
            .apply(Update::Apply(Object::Service(name.clone(), one_of_many(n))));
        _ = snapshot.state.apply(Update::Apply(Object::EndpointSlice(
            name.clone(),
            slice_of(&name, n, 4),
        )));
    }
    snapshot
}

fn one_of_many(n: u32) -> Service {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::TCP,
        port: 80,
        node_port: Some(u16::try_from(20_000 + n).expect("few Services")),
        target: TargetPort::Number(8080),
    };
    Service {
        proxied: Proxied::Yes,
        cluster_ips: vec![Ipv4Addr::from_bits(0x0a60_0000 + n).into()],
        external_ips: BTreeSet::new(),
        load_balancer_ips: BTreeSet::new(),
        source_ranges: BTreeSet::new(),
        ports: vec![port],
        selector: Default::default(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: 0,
        annotations: ServiceAnnotations::default(),
        health_check_node_port: None,
        publish_not_ready: false,
        created: None,
    }
}

fn slice_of(service: &ObjectName, n: u32, count: u32) -> EndpointSlice {
    let endpoint = |i| SliceEndpoint {
        addr: Ipv4Addr::from_bits(0x0af4_0000 + 4 * n + i).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("there".into()),
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
    };
    let ports = vec![SlicePort {
        name: "http".into(),
        protocol: Protocol::TCP,
        port: 8080,
    }];
    let endpoints = (0..count).map(endpoint).collect();
    EndpointSlice {
        service: service.clone(),
        ports,
        family: Family::V4,
        endpoints,
        triggered: None,
    }
}

/// One changed Service among 10,000: two frontends are computed and written, in a small part of the
/// time of all.
#[test]
fn one_changed_service_of_10_000_costs_only_itself() {
    const SERVICES: u32 = 10_000;
    let mut snapshot = large(SERVICES);
    let (mut compiler, mut kernel) = (Compiler::default(), Actual::default());
    let begun = Instant::now();
    compiler.compile(&snapshot, &Touched::everything());
    let whole = begun.elapsed();
    place(compiler.contents(), &kernel)
        .into_iter()
        .for_each(|write| kernel.apply(write));
    let mut times: Vec<Duration> = Vec::new();
    for (round, n) in (0..100u32).map(|round| (round, round * 97 % SERVICES)) {
        let name = ObjectName::new("shop", &format!("service-{n}"));
        let slice = Update::Apply(Object::EndpointSlice(name.clone(), slice_of(&name, n, 3)));
        let mut touched = Touched::default();
        touched.record(&slice);
        _ = snapshot.state.apply(slice);
        let begun = Instant::now();
        let delta = compiler.compile(&snapshot, &touched);
        let writes = place_delta(&delta, compiler.contents(), &kernel);
        times.push(begun.elapsed());
        assert_eq!(delta.frontends.len(), 2, "round {round}");
        assert_eq!(
            delta,
            Delta {
                frontends: delta.frontends.clone(),
                ..Delta::default()
            }
        );
        // Three backends with their endpoints, and two frontends.
        assert_eq!(writes.len(), 3 * 2 + 2, "{writes:?}");
        writes.into_iter().for_each(|write| kernel.apply(write));
    }
    times.sort();
    println!(
        "all of {SERVICES} Services: {whole:.1?}; one of them: median {:.1?}, longest {:.1?}",
        times[50], times[99]
    );
    assert!(
        times[50] * 100 < whole,
        "one Service took {:?}, all of them {whole:?}",
        times[50]
    );
    assert_eq!(compiler.contents(), &compile_reporting(&snapshot).0);
    assert_ne!(compiler.contents(), &Contents::default());
}
