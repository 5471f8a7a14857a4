//! Random changes: after each single write the verdicts are those of the old or the new state
//! (P32).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::net::Protocol;
use proxy_common::policy::{CHUNK_CLASSES, NODES, ROOTS};

use crate::contents::policies::{Class, Isolation, Peers, Policies, Ports, Row};
use crate::model::PortRange;
use crate::place::policies::{PolicyTables, Room};

use super::pod;
use super::world::*;

const PREFIXES: [&str; 14] = [
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.0.1.1/32",
    "10.0.0.0/24",
    "10.0.0.128/25",
    "10.0.0.0/16",
    "10.0.0.0/14",
    "10.0.0.0/15",
    "192.0.2.0/27",
    "fd00::1/128",
    "fd00::2/128",
    "fd00::/64",
    "::/0",
    "10.0.0.0/23",
];

fn class() -> impl Strategy<Value = Arc<Class>> {
    let peers = proptest::collection::btree_set((1..5u128).prop_map(Peers), 0..4);
    let named = proptest::collection::btree_map(
        Just(("http".into(), Protocol::TCP)),
        Just(BTreeSet::from([8080u16])),
        0..2,
    );
    (peers, named).prop_map(|(peers, named)| Arc::new(Class { peers, named }))
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = |protocol, first, last| (protocol, PortRange { first, last });
    prop_oneof![
        Just(Ports {
            everything: true,
            ..Ports::default()
        }),
        Just(Ports {
            whole: BTreeSet::from([Protocol::TCP]),
            ..Ports::default()
        }),
        Just(Ports {
            ranges: vec![range(Protocol::TCP, 1, 80)],
            ..Ports::default()
        }),
        Just(Ports {
            ranges: vec![
                range(Protocol::UDP, 53, 53),
                range(Protocol::TCP, 8080, 9090)
            ],
            ..Ports::default()
        }),
        Just(Ports {
            named: BTreeSet::from([("http".into(), Protocol::TCP)]),
            ..Ports::default()
        }),
    ]
}

fn isolation() -> impl Strategy<Value = Isolation> {
    let row = proptest::collection::btree_map((0..5u128).prop_map(Peers), ports(), 0..3);
    prop_oneof![1 => Just(Isolation::None), 5 => row.prop_map(|rules| Isolation::Rules(Arc::new(Row { rules })))]
}

fn policies() -> impl Strategy<Value = Policies> {
    let classes =
        proptest::collection::btree_map(proptest::sample::select(&PREFIXES[..]), class(), 0..10);
    let pods = proptest::collection::btree_map(0..4u32, (isolation(), isolation()), 1..4);
    (classes, pods).prop_map(|(classes, pods)| Policies {
        exist: true,
        classes: classes
            .into_iter()
            .map(|(text, class)| (text.parse().expect("a prefix"), class))
            .collect(),
        pods: pods
            .into_iter()
            .map(|(number, (ingress, egress))| pod(number, ingress, egress))
            .collect(),
    })
}

/// Directories with room for all, some or no prefixes (the trie has the rest), and tries that
/// overflow (P34).
fn room() -> impl Strategy<Value = Room> {
    let nodes = prop_oneof![Just(NODES), ROOTS..ROOTS + 3];
    let prefixes = prop_oneof![2 => Just(1000usize), 1 => 0..8usize];
    (nodes, prefixes, 0..4usize).prop_map(|(nodes, prefixes, exact)| Room {
        nodes,
        exact,
        prefixes,
        ..Room::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// P32: after every single write each pod's verdicts are those of the old or of the new state,
    /// and nothing is allowed that both deny. P34: only pods that are closed deny what both allow.
    #[test]
    fn p32_no_write_shows_a_verdict_of_neither_state(
        room in room(),
        history in proptest::collection::vec((policies(), 0..3), 2..8)
    ) {
        let mut world = World { tables: PolicyTables::with_room(room), ..World::default() };
        for (policies, rests) in history {
            world.bring_agreeing(policies);
            for _ in 0..rests {
                world.rest();
                world.agrees();
            }
        }
        // The overflow ends with its cause.
        world.bring_to(Policies { classes: BTreeMap::new(), ..world.policies.clone() });
        (0..3).for_each(|_| world.rest());
        assert!(world.tables.closed().is_empty());
        world.agrees();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// P32, also while the classes outgrow a chunk of the matrix within one change and nothing has
    /// rested.
    #[test]
    fn p32_rows_have_room_for_the_classes_that_come_with_them(
        history in proptest::collection::vec(policies(), 4..8),
        fillers in CHUNK_CLASSES - 24..CHUNK_CLASSES,
    ) {
        let filler = |number: u32| {
            let prefix: IpNet = format!("172.16.{}.{}/32", number / 256, number % 256).parse().expect("a prefix");
            (prefix, Arc::new(Class { peers: BTreeSet::from([Peers(1000 + u128::from(number))]), ..Class::default() }))
        };
        let mut world = World::default();
        for mut policies in history {
            policies.classes.extend((0..fillers).map(filler));
            world.bring_agreeing(policies);
        }
    }
}
