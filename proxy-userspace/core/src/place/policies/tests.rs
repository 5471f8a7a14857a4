//! The tables give the verdicts of the symbols after each single write from one state to the next
//! (P32), by the functions that the kernel runs.

mod history;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, Protocol};
use proxy_common::policy::{CHUNK_CLASSES, NODES, PortSet, ROOTS};

use super::{PolicyTables, Room};
use crate::contents::policies::{Class, Isolation, Peers, PodPolicy, Policies, Ports, Row};
use crate::model::{ObjectName, PortRange};

use self::world::*;

fn pod(number: u32, ingress: Isolation, egress: Isolation) -> (ObjectName, PodPolicy) {
    let device = IfIndex(10 + number);
    let policy = PodPolicy {
        addresses: BTreeSet::new(),
        device,
        any_source: false,
        ingress,
        egress,
    };
    (ObjectName::new("shop", &number.to_string()), policy)
}

fn row(peers: u128, ports: Ports) -> Isolation {
    Isolation::Rules(Arc::new(Row {
        rules: BTreeMap::from([(Peers(peers), ports)]),
    }))
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports {
        ranges: vec![(Protocol::TCP, PortRange { first, last })],
        ..Ports::default()
    }
}
/// Prefixes of all lengths, including 0, added and removed in any order.
#[test]
fn p11_the_longest_prefix_counts() {
    let all = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "8.0.0.0/6",
        "10.0.0.0/16",
        "10.1.0.0/17",
        "10.0.0.0/24",
        "10.0.0.128/25",
        "192.0.2.1/32",
    ];
    let mut world = World::default();
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    policies
        .pods
        .extend([pod(0, row(1, tcp(80, 80)), row(2, tcp(8080, 8080)))]);
    for step in 0..3 * all.len() {
        let prefix: IpNet = all[step * 5 % all.len()].parse().expect("a prefix");
        let peers = BTreeSet::from([Peers(1 + (step % 3) as u128)]);
        if step % 4 == 3 {
            policies.classes.remove(&prefix);
        } else {
            policies.classes.insert(
                prefix,
                Arc::new(Class {
                    peers,
                    ..Class::default()
                }),
            );
        }
        world.bring_to(policies.clone());
        world.agrees();
        world.rest();
        world.agrees();
    }
}

/// More prefixes than the directory has nodes, and more classes than a chunk has: slower ways, the
/// same verdicts.
#[test]
fn what_has_no_room_in_arrays_goes_to_the_trie_and_to_longer_rows() {
    let mut world = World::default();
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    policies
        .pods
        .extend([pod(0, row(1, tcp(80, 80)), Isolation::None)]);
    world.bring_to(policies.clone());
    for number in 0..2 * NODES {
        let prefix: IpNet = format!("10.{}.{}.{}/32", number / 256, number % 256, number % 7)
            .parse()
            .expect("a prefix");
        let peers = BTreeSet::from([
            Peers(1 + u128::from(number % 2)),
            Peers(1000 + u128::from(number % (CHUNK_CLASSES + 100))),
        ]);
        policies.classes.insert(
            prefix,
            Arc::new(Class {
                peers,
                ..Class::default()
            }),
        );
    }
    world.bring_to(policies);
    world.rest();
    assert!(!world.v4.prefixes.is_empty(), "everything fitted");
    for number in 0..2 * NODES {
        let other: IpAddr = format!("10.{}.{}.{}", number / 256, number % 256, number % 7)
            .parse()
            .expect("an address");
        let pod = ObjectName::new("shop", "0");
        let question = Question {
            pod,
            ingress: true,
            other,
            protocol: Protocol::TCP,
            port: 80,
        };
        assert_eq!(world.answer(&question), number % 2 == 0, "{question:?}");
        assert_eq!(
            world.answer(&question),
            verdict_of(&world.policies, &question)
        );
    }
    // All elements are freed again.
    world.bring_to(Policies::default());
    (0..6).for_each(|_| world.rest());
    assert!(world.v4.prefixes.is_empty() && world.v4.veths.is_empty());
    assert!(!world.tables.is_resting());
}

/// Rows beyond the matrix are hashed. Sets with many ranges are chained.
#[test]
fn rows_beyond_the_matrix_are_hashed_and_long_sets_are_chained() {
    let mut world = World::default();
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    let many: Vec<_> = (0..40)
        .map(|n| {
            (
                Protocol::TCP,
                PortRange {
                    first: 100 * n + 1,
                    last: 100 * n + 2,
                },
            )
        })
        .collect();
    for number in 0..600 {
        let ports = Ports {
            ranges: many.clone(),
            ..Ports::default()
        };
        policies.pods.extend([pod(
            number,
            row(1 + u128::from(number), ports),
            Isolation::None,
        )]);
    }
    let peers = (0..600)
        .step_by(2)
        .map(|number| Peers(1 + number))
        .collect();
    policies.classes.insert(
        "10.0.0.1/32".parse().expect("a prefix"),
        Arc::new(Class {
            peers,
            ..Class::default()
        }),
    );
    world.bring_to(policies);
    assert!(!world.v4.verdicts.is_empty(), "everything fitted");
    let other: IpAddr = "10.0.0.1".parse().expect("an address");
    for (number, port, has) in (0..600).flat_map(|n| {
        [
            (n, 3901, true),
            (n, 3903, false),
            (n, 2, true),
            (n, 0, false),
        ]
    }) {
        let pod = ObjectName::new("shop", &number.to_string());
        let question = Question {
            pod,
            ingress: true,
            other,
            protocol: Protocol::TCP,
            port,
        };
        assert_eq!(
            world.answer(&question),
            has && number % 2 == 0,
            "{question:?}"
        );
    }
}

/// P34: a policy that cannot be represented allows nothing, and is reported.
#[test]
fn p34_what_cannot_be_represented_is_closed_and_said() {
    let ranges = PortSet::RANGES as u16 * PortSet::CHAIN as u16 + 1;
    let too_many: Vec<_> = (0..ranges)
        .map(|n| {
            (
                Protocol::TCP,
                PortRange {
                    first: 100 * n + 1,
                    last: 100 * n + 2,
                },
            )
        })
        .collect();
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    policies.pods.extend([
        pod(
            0,
            row(
                0,
                Ports {
                    ranges: too_many,
                    ..Ports::default()
                },
            ),
            Isolation::None,
        ),
        pod(1, row(0, tcp(80, 80)), Isolation::None),
    ]);
    let mut world = World::default();
    world.bring_to(policies);
    let closed: Vec<_> = world
        .tables
        .closed()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(closed, ["shop/0"]);
    let ask = |number: &str, port| Question {
        pod: ObjectName::new("shop", number),
        ingress: true,
        other: "10.0.0.1".parse().expect("an address"),
        protocol: Protocol::TCP,
        port,
    };
    assert!(!world.answer(&ask("0", 1)) && world.answer(&ask("1", 80)));
}

/// P34: if prefixes have no room, only pods are closed with different verdicts on them and on the
/// class found instead. They open again when there is room.
#[test]
fn p34_an_overflow_of_prefixes_closes_the_pods_that_need_them_until_it_ends() {
    let room = Room {
        nodes: ROOTS,
        exact: 1,
        prefixes: 4,
        ..Room::default()
    };
    let mut world = World {
        tables: PolicyTables::with_room(room),
        ..World::default()
    };
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    policies.pods.extend([
        pod(0, row(1, tcp(80, 80)), Isolation::None),
        pod(1, Isolation::None, row(2, tcp(80, 80))),
        pod(2, row(0, tcp(80, 80)), Isolation::None),
    ]);
    let class = |peers| {
        Arc::new(Class {
            peers: BTreeSet::from([Peers(peers)]),
            ..Class::default()
        })
    };
    let prefix = |text: &str| text.parse::<IpNet>().expect("a prefix");
    policies.classes.insert(prefix("10.0.0.1/32"), class(2));
    world.bring_to(policies.clone());
    let closed = |world: &World| {
        world
            .tables
            .closed()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(closed(&world), [""; 0]);
    // There is room for four of IPv6, and for two more of IPv4 beside the block and its prefixes.
    let six = (1..8).map(|n| prefix(&format!("2001:db8:0:{n}::/64")));
    let four = (1..4).map(|n| prefix(&format!("10.0.{n}.0/24")));
    for many in [six.collect::<Vec<_>>(), four.collect()] {
        policies
            .classes
            .extend(many.iter().map(|prefix| (*prefix, class(1))));
        world.bring_to(policies.clone());
        world.agrees();
        assert_eq!(closed(&world), ["shop/0"]);
        // A prefix with room goes, and one without gets its room.
        policies.classes.remove(&many[0]);
        world.bring_to(policies.clone());
        world.agrees();
        let has_room = many.len() == 3;
        assert_eq!(closed(&world).len(), usize::from(!has_room));
        many.iter()
            .for_each(|prefix| _ = policies.classes.remove(prefix));
        world.bring_to(policies.clone());
        world.agrees();
        assert_eq!(closed(&world), [""; 0]);
    }
}

/// P34: a row opens again when there is room for its sets of ports.
#[test]
fn p34_a_row_without_sets_of_ports_opens_when_others_have_gone() {
    let mut policies = Policies {
        exist: true,
        ..Policies::default()
    };
    policies.pods.extend(
        (0..1100).map(|n| pod(n, row(0, tcp(1 + n as u16, 1 + n as u16)), Isolation::None)),
    );
    let mut world = World::default();
    world.bring_to(policies.clone());
    assert_eq!(
        world.tables.closed().len(),
        1100 - (PortSet::SETS as usize - 2)
    );
    policies.pods.retain(|name, _| name.name.len() > 2);
    world.bring_to(policies);
    (0..6).for_each(|_| world.rest());
    assert!(world.tables.closed().is_empty());
    world.agrees();
}
