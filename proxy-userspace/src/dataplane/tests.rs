//! The data plane against the running kernel, with the real object, in namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, IterableMap as _, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::{Addr4, AddressFlags, Device, IfIndex, Port, Protocol, RangeKind};
use proxy_common::service::{Config, Service, ServiceKey};

use super::{
    AttachPoint, CgroupChoice, Clock, Dataplane, Maps, Options, StateDir, Walk, XdpChoice, hz,
    unload,
};
use crate::contents::{Backends, Contents, Endpoint, Frontend, Target};
use crate::devices::{Devices, Driver};
use crate::place::{Actual, place, retire};
use crate::testing::Namespace;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn open(dir: &Path, xdp: XdpChoice) -> Dataplane {
    Dataplane::open(&Options {
        state_dir: dir.to_owned(),
        xdp,
        cgroup: CgroupChoice::Off,
    })
    .expect("open the data plane")
}

/// Some of everything, in both families.
fn contents() -> Contents {
    let endpoint = |text: &str| Endpoint {
        addr: text.parse::<SocketAddr>().expect("an endpoint"),
        flags: 1,
    };
    let backends = |all: &[&str]| {
        Arc::new(Backends {
            both: all.iter().map(|e| endpoint(e)).collect(),
            ..Backends::default()
        })
    };
    let target = |flags, backends| Target {
        service: "default/web:http".into(),
        flags,
        affinity: 0,
        backends,
    };
    let frontend = |text: &str, port| Frontend {
        addr: addr(text),
        port,
        protocol: Protocol::TCP,
    };
    let (v4, v6) = (
        backends(&["10.244.1.2:80", "10.244.2.2:80"]),
        backends(&["[fd00::2]:80"]),
    );
    Contents {
        frontends: BTreeMap::from([
            (frontend("0.0.0.0", 30080), target(2, v4.clone())),
            (frontend("10.96.0.7", 80), target(1, v4)),
            (frontend("::", 30080), target(2, v6.clone())),
            (frontend("fd00:96::7", 80), target(1, v6)),
        ]),
        sources: ["198.51.100.0/24", "2001:db8::/32"]
            .map(|range| ("default/web:http".into(), range.parse().expect("a prefix")))
            .into(),
        ranges: [
            ("10.96.0.0/12", RangeKind::SERVICES),
            ("fd00::/64", RangeKind::PODS),
        ]
        .map(|(range, kind)| (range.parse().expect("a prefix"), kind))
        .into(),
        addresses: BTreeMap::from([
            (addr("192.0.2.1"), AddressFlags(3)),
            (addr("2001:db8::1"), AddressFlags(1)),
        ]),
        pods: BTreeMap::from([
            (addr("10.244.1.2"), IfIndex(7)),
            (addr("fd00::2"), IfIndex::NONE),
        ]),
        devices: BTreeMap::from([(
            IfIndex(2),
            Device {
                mtu: 1500,
                ..Device::default()
            },
        )]),
        config: Config {
            secret: 5,
            hz: 250,
            ..Config::default()
        },
    }
}

fn flow(port: u16) -> (FlowKey<Addr4>, Flow<Addr4>) {
    let (src, dst, port) = (
        Addr4::from_bytes([198, 51, 100, 1]),
        Addr4::from_bytes([192, 0, 2, 1]),
        Port::new(port),
    );
    let flow = Flow {
        src,
        dst,
        sport: port,
        dport: port,
        device: IfIndex(1),
        seen: 1,
        service: 9,
        way: 0,
        hooks: 1,
        state: 1,
        role: 1,
    };
    (FlowKey::new(Protocol::TCP, src, port, dst, port), flow)
}

#[test]
fn what_was_written_is_read_back_and_a_restart_writes_nothing() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Auto);
        let mut actual = plane.read().expect("read");
        assert_eq!(actual.contents(), Contents::default());
        let errors = plane.apply(place(&contents(), &actual), &mut actual);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(plane.read().expect("read").contents(), contents());
        drop(plane);
        let plane = open(&dir, XdpChoice::Auto);
        assert_eq!(place(&contents(), &plane.read().expect("read")), []);
        assert_eq!(retire(&plane.read().expect("read")), []);
    });
}

#[test]
fn ids_that_flows_still_name_are_not_given_out_again() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Off);
        let (key, flow) = flow(1);
        plane
            .maps
            .v4
            .flows
            .insert(key, flow, 0)
            .expect("insert a flow");
        let mut actual = plane.read().expect("read");
        plane.apply(place(&contents(), &actual), &mut actual);
        assert!(
            actual.services().values().all(|service| service.id == 10),
            "the flow names service 9"
        );
    });
}

#[test]
fn a_directory_has_one_agent_at_a_time() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let plane = open(&dir, XdpChoice::Off);
        let second = Dataplane::open(&Options {
            state_dir: dir.clone(),
            xdp: XdpChoice::Off,
            cgroup: CgroupChoice::Off,
        });
        assert!(
            second
                .err()
                .expect("it is refused")
                .to_string()
                .contains("another agent")
        );
        assert!(StateDir::at(&dir).is_locked().expect("look"));
        drop(plane);
        assert!(!StateDir::at(&dir).is_locked().expect("look"));
    });
}

#[test]
fn the_clock_goes_as_fast_as_hz_says() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let _plane = open(&dir, XdpChoice::Off);
        let clock = Clock::from_pins(&StateDir::at(&dir)).expect("the clock is pinned");
        let (start, first) = (Instant::now(), clock.now().expect("now"));
        std::thread::sleep(Duration::from_millis(400));
        let jiffies = f64::from(clock.now().expect("now").wrapping_sub(first));
        let expected = start.elapsed().as_secs_f64() * f64::from(hz().expect("hz"));
        assert!(
            (jiffies - expected).abs() <= 2.0 + expected * 0.05,
            "{jiffies} jiffies instead of {expected}"
        );
    });
}

#[test]
fn a_walk_sees_each_element_of_a_large_map_once() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Off);
        for port in 1..=5000 {
            let (key, flow) = flow(port);
            plane
                .maps
                .v4
                .flows
                .insert(key, flow, 0)
                .expect("insert a flow");
        }
        let other = Maps::from_pins(&StateDir::at(&dir)).expect("open the pins");
        let (mut walk, mut ports, mut batches) = (Walk::default(), BTreeSet::new(), 0);
        while let Some(flows) = walk.next(&other.v4.flows).expect("read a batch") {
            batches += 1;
            flows.iter().for_each(|(key, value)| {
                assert_eq!(key.sport, value.sport, "key and value belong together");
                assert!(ports.insert(key.sport.number()), "seen twice");
            });
        }
        assert_eq!(ports.len(), 5000);
        assert!(batches > 1, "in slices");
    });
}

/// Makes a map as an earlier version might have, and pins it.
fn pin_older(dir: &Path, name: &str, entries: u32) -> HashMap<MapData, ServiceKey<Addr4>, Service> {
    let map =
        HashMap::<MapData, ServiceKey<Addr4>, Service>::create(entries, 0).expect("make a map");
    map.map().pin(StateDir::at(dir).map(name)).expect("pin it");
    map
}

#[test]
fn a_pinned_map_of_another_size_is_replaced_and_keeps_its_elements() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        StateDir::create(&dir).expect("make the directory");
        let mut older = pin_older(&dir, "SERVICES4", 100);
        let key = |port| ServiceKey::new(Addr4::default(), Port::new(port), Protocol::TCP);
        older
            .insert(
                key(1),
                Service {
                    id: 1,
                    ..Service::default()
                },
                0,
            )
            .expect("insert");
        let mut plane = open(&dir, XdpChoice::Off);
        assert_eq!(
            plane.read().expect("read").services().len(),
            1,
            "copied at start"
        );
        older
            .insert(
                key(2),
                Service {
                    id: 2,
                    ..Service::default()
                },
                0,
            )
            .expect("insert");
        plane.attach(&Devices::default()).expect("attach nothing");
        assert_eq!(
            plane.read().expect("read").services().len(),
            2,
            "and what came meanwhile"
        );
        let pinned = Maps::from_pins(&StateDir::at(&dir)).expect("open the pins");
        assert_eq!(
            pinned.read().expect("read").services().len(),
            2,
            "the new map is in its place"
        );
    });
}

#[test]
fn a_pinned_map_of_another_form_is_replaced_by_an_empty_one() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        StateDir::create(&dir).expect("make the directory");
        let mut older = HashMap::<MapData, u32, u32>::create(10, 0).expect("make a map");
        older
            .map()
            .pin(StateDir::at(&dir).map("SERVICES4"))
            .expect("pin it");
        older.insert(1, 1, 0).expect("insert");
        let mut plane = open(&dir, XdpChoice::Off);
        plane.attach(&Devices::default()).expect("attach nothing");
        assert!(plane.read().expect("read").services().is_empty());
        drop(plane);
        open(&dir, XdpChoice::Off);
    });
}

/// Until the new agent has listed the cluster, new connections are masqueraded by the settings of
/// the old one.
#[test]
fn devices_of_an_earlier_version_are_known_at_once_although_they_have_grown() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        StateDir::create(&dir).expect("make the directory");
        let known = Device {
            masquerade4: Ipv4Addr::new(192, 0, 2, 1).into(),
            mtu: 1450,
            flags: 2,
            ..Device::default()
        };
        // As far as the flags: what the node's addresses came behind.
        let mut before = [0_u8; 28];
        before[16..20].copy_from_slice(&known.masquerade4.bytes());
        before[20..24].copy_from_slice(&known.mtu.to_ne_bytes());
        before[24..].copy_from_slice(&known.flags.to_ne_bytes());
        let mut older = HashMap::<MapData, u32, [u8; 28]>::create(1024, 1).expect("make a map");
        older
            .map()
            .pin(StateDir::at(&dir).map("DEVICES"))
            .expect("pin it");
        older.insert(7, before, 0).expect("insert");
        let plane = open(&dir, XdpChoice::Off);
        assert_eq!(
            plane.read().expect("read").contents().devices,
            BTreeMap::from([(IfIndex(7), known)])
        );
    });
}

/// V15: the key by which backends are chosen stays the same.
#[test]
fn settings_of_an_earlier_version_are_known_at_once_although_they_have_grown() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        StateDir::create(&dir).expect("make the directory");
        let known = Config {
            secret: 0x0123_4567_89ab_cdef,
            masquerade_first: 1024,
            masquerade_len: 28976,
            flags: 2,
            ..Config::default()
        };
        // As far as the flags: what the gate came behind.
        let mut before = [0_u8; 32];
        before[..8].copy_from_slice(&known.secret.to_ne_bytes());
        before[8..10].copy_from_slice(&known.masquerade_first.to_ne_bytes());
        before[10..12].copy_from_slice(&known.masquerade_len.to_ne_bytes());
        before[28..].copy_from_slice(&known.flags.to_ne_bytes());
        let mut older = Array::<MapData, [u8; 32]>::create(1, 0).expect("make a map");
        older
            .map()
            .pin(StateDir::at(&dir).map("CONFIG"))
            .expect("pin it");
        older.set(0, before, 0).expect("set");
        let mut plane = open(&dir, XdpChoice::Off);
        assert_eq!(plane.read().expect("read").config(), known);
        plane.attach(&Devices::default()).expect("attach nothing");
        assert_eq!(plane.read().expect("read").config(), known);
    });
}

/// A node device `eth0` and a pod's device `pod0`, as `links` would find them.
fn two_devices(node: &Namespace, other: &Namespace) -> Devices {
    node.veth("eth0", other, "peer0");
    node.veth("pod0", other, "peer1");
    let index = |name: &'static str| {
        IfIndex(
            node.run(move || nix::net::if_::if_nametoindex(name))
                .expect("the device exists"),
        )
    };
    let (eth0, pod0) = (index("eth0"), index("pod0"));
    let mut found = Devices {
        present: BTreeSet::from([eth0, pod0]),
        ..Devices::default()
    };
    found.names = BTreeMap::from([(eth0, "eth0".into()), (pod0, "pod0".into())]);
    found.drivers.insert(eth0, Driver::Software);
    found.pods.insert(pod0);
    found
}

fn programs_at(device: &str, kind: TcAttachType) -> Vec<(String, u32)> {
    let (_, programs) = SchedClassifier::query_tcx(device, kind).expect("query tcx");
    programs
        .iter()
        .map(|p| (p.name_as_str().unwrap_or_default().to_owned(), p.id()))
        .collect()
}

#[test]
fn a_restart_replaces_programs_in_their_places() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let (dir, found) = (node.state_dir(), two_devices(&node, &other));
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Native);
        assert_eq!(plane.attach(&found).expect("attach").len(), 0);
        let first = programs_at("eth0", TcAttachType::Ingress);
        assert_eq!(
            first.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(),
            ["from_device"]
        );
        drop(plane);
        assert_eq!(
            programs_at("eth0", TcAttachType::Ingress),
            first,
            "nothing is detached when the agent ends"
        );
        let mut plane = open(&dir, XdpChoice::Native);
        assert_eq!(plane.attach(&found).expect("attach").len(), 0);
        let second = programs_at("eth0", TcAttachType::Ingress);
        assert_eq!(second.len(), 1, "replaced, not added");
        assert_ne!(second, first);
        let points: Vec<_> = plane.hooks().iter().map(|hook| hook.point).collect();
        assert_eq!(
            points,
            [
                AttachPoint::ToPod,
                AttachPoint::ToDevice,
                AttachPoint::FromPod,
                AttachPoint::FromDevice,
                AttachPoint::XdpNative
            ]
        );
        assert!(
            found
                .drivers
                .keys()
                .all(|device| plane.device_flags(*device) == Device::XDP_TARGET)
        );
    });
}

#[test]
fn hooks_of_a_device_that_went_are_forgotten_and_its_successor_gets_its_own() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let (dir, found) = (node.state_dir(), two_devices(&node, &other));
    let plane = node.run({
        let (dir, found) = (dir.clone(), found.clone());
        move || {
            let mut plane = open(&dir, XdpChoice::Off);
            assert_eq!(plane.attach(&found).expect("attach").len(), 0);
            plane
        }
    });
    node.ip("link del pod0");
    node.run(move || {
        let mut plane = plane;
        let mut gone = found.clone();
        let pod = gone.pods.pop_first().expect("there was a pod");
        gone.present.remove(&pod);
        plane.attach(&gone).expect("attach");
        assert!(plane.hooks().iter().all(|hook| hook.device != pod));
        let pins = super::names_in(&StateDir::at(&dir).hooks()).expect("list");
        assert_eq!(pins.len(), 2, "{pins:?}");
        gone.drivers.clear();
        plane.attach(&gone).expect("attach");
        nothing_at("eth0", TcAttachType::Egress);
    });
}

/// A program of another owner has the place.
#[test]
fn a_hook_that_was_refused_is_told_of_once_and_tried_again() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let (dir, found) = (node.state_dir(), two_devices(&node, &other));
    let elsewhere = other.state_dir();
    node.run(move || {
        let mut first = open(&elsewhere, XdpChoice::Native);
        assert_eq!(first.attach(&found).expect("attach").len(), 0);
        let mut plane = open(&dir, XdpChoice::Native);
        let refused = plane.attach(&found).expect("attach");
        assert!(
            refused.len() == 1 && format!("{:#}", refused[0]).starts_with("attach xdp"),
            "{refused:?}"
        );
        assert!(plane.was_refused());
        assert_eq!(
            plane.attach(&found).expect("attach").len(),
            0,
            "nothing new"
        );
        assert!(plane.was_refused());
        drop(first);
        unload_all(elsewhere);
        let begun = Instant::now();
        while plane.was_refused() && begun.elapsed() < Duration::from_secs(5) {
            assert_eq!(plane.attach(&found).expect("attach").len(), 0);
        }
        assert!(!plane.was_refused());
        assert!(
            plane
                .hooks()
                .iter()
                .any(|hook| hook.point == AttachPoint::XdpNative)
        );
    });
}

/// The kernel lets go of a link a moment after its last pin has gone.
fn nothing_at(device: &str, kind: TcAttachType) {
    let end = Instant::now() + Duration::from_secs(5);
    while !programs_at(device, kind).is_empty() {
        assert!(
            Instant::now() < end,
            "{device} keeps {:?}",
            programs_at(device, kind)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn unload_all(dir: PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime");
    runtime.block_on(unload(&dir)).expect("unload");
    assert!(super::names_in(&dir).expect("list").is_empty());
}

#[test]
fn unload_leaves_nothing() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let (dir, found) = (node.state_dir(), two_devices(&node, &other));
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Generic);
        assert_eq!(plane.attach(&found).expect("attach").len(), 0);
        drop(plane);
        unload_all(dir);
        for (device, kind) in [
            ("eth0", TcAttachType::Ingress),
            ("eth0", TcAttachType::Egress),
            ("pod0", TcAttachType::Ingress),
        ] {
            nothing_at(device, kind);
        }
    });
    let end = Instant::now() + Duration::from_secs(5);
    while node.command("ip", "link show eth0").contains("xdp") {
        assert!(Instant::now() < end, "eth0 keeps its XDP program");
    }
}

#[test]
fn clsact_filters_are_replaced_in_place_and_unload_takes_them_and_our_qdiscs_only() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let (dir, found) = (node.state_dir(), two_devices(&node, &other));
    node.command("tc", "qdisc add dev eth0 clsact");
    let run = |found: &Devices, dir: &Path| {
        let (found, dir) = (found.clone(), dir.to_owned());
        node.run(move || {
            let mut plane = open(&dir, XdpChoice::Off);
            plane.hooks.use_clsact();
            assert_eq!(plane.attach(&found).expect("attach").len(), 0);
        });
        node.command("tc", "filter show dev eth0 ingress")
    };
    let (first, second) = (run(&found, &dir), run(&found, &dir));
    for filters in [&first, &second] {
        assert_eq!(filters.matches("name from_device").count(), 1, "{filters}");
    }
    assert_ne!(first, second, "the program is another one");
    assert_eq!(
        node.command("tc", "filter show dev pod0 egress")
            .matches("name to_pod")
            .count(),
        1
    );
    node.run(move || unload_all(dir));
    assert_eq!(node.command("tc", "filter show dev eth0 ingress"), "");
    assert!(
        node.command("tc", "qdisc show dev eth0").contains("clsact"),
        "it was there before us"
    );
    assert!(!node.command("tc", "qdisc show dev pod0").contains("clsact"));
}

#[test]
fn programs_of_anybody_are_seen_by_name_in_filters_and_by_tcx() {
    for use_clsact in [
        None,
        Some(super::hooks::Hooks::use_clsact as fn(&mut super::hooks::Hooks)),
    ] {
        let (node, other) = (Namespace::new(), Namespace::new());
        let (dir, found) = (node.state_dir(), two_devices(&node, &other));
        let programs = node.run(move || {
            let mut plane = open(&dir, XdpChoice::Off);
            use_clsact
                .into_iter()
                .for_each(|choose| choose(&mut plane.hooks));
            assert_eq!(plane.attach(&found).expect("attach").len(), 0);
            let programs = crate::other_dataplanes::programs_here();
            drop(plane);
            unload_all(dir);
            programs
        });
        assert!(
            programs.contains(&("eth0".to_owned(), "from_device".to_owned())),
            "{programs:?}"
        );
    }
}

#[test]
fn a_full_map_costs_the_service_that_does_not_fit_and_no_other() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.run(move || {
        let mut plane = open(&dir, XdpChoice::Off);
        let mut actual = Actual::default();
        let mut wanted = contents();
        let many = |n: u32| Endpoint {
            addr: SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 80),
            flags: 0,
        };
        let backends = Arc::new(Backends {
            both: (0..262_144).map(many).collect(),
            ..Backends::default()
        });
        let large = Frontend {
            addr: addr("10.96.0.99"),
            port: 80,
            protocol: Protocol::TCP,
        };
        wanted.frontends.insert(
            large,
            Target {
                service: "default/large:".into(),
                flags: 1,
                affinity: 0,
                backends,
            },
        );
        let errors = plane.apply(place(&wanted, &actual), &mut actual);
        assert!(
            !errors.is_empty() && format!("{:#}", errors[0]).contains("10."),
            "the error names the element"
        );
        assert_eq!(actual.services().len(), 4);
        assert!(!actual.services().contains_key(&large));
        assert_eq!(plane.read().expect("read").services().len(), 4);
    });
}
