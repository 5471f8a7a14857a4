//! The tables give the verdicts of the symbols after each single write from one state to the next
//! (P32), by the functions that the kernel runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::net::{Addr4, Addr6, IfIndex, Protocol, V4, V6};
use proxy_common::policy::{CHUNK_CLASSES, NODES, PodRows, PortSet, ROOTS};
use proxy_ebpf::fake::Memory;
use proxy_ebpf::policy::allows;

use super::{PolicyTables, PolicyWrite, Room};
use crate::contents::policies::{
    Class, Isolation, Peers, PodPolicy, Policies, PolicyDelta, Ports, Row,
};
use crate::model::{ObjectName, PortRange};

#[path = "../../../tests/support/policy_tables.rs"]
mod policy_tables;

/// The tables, their contents, and the state that they were brought to.
#[derive(Default)]
struct World {
    tables: PolicyTables,
    v4: Memory<V4>,
    v6: Memory<V6>,
    policies: Policies,
}

/// A connection of a pod, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    pod: ObjectName,
    ingress: bool,
    other: IpAddr,
    protocol: Protocol,
    port: u16,
}

impl World {
    fn bring_to(&mut self, policies: Policies) {
        self.bring_watched(policies, |_, _| ());
    }

    fn bring_watched(&mut self, policies: Policies, check: impl Fn(&Self, &PolicyWrite)) {
        let delta = PolicyDelta::between(&self.policies, &policies);
        for write in &self.tables.place(&policies, &delta) {
            policy_tables::write(write, &mut self.v4, &mut self.v6);
            check(self, write);
        }
        self.policies = policies;
    }

    /// As `bring_to`, but checks each single write against both states. If they agree on a
    /// question, so do the tables, or the pod is closed before or after it (P34). If they do not,
    /// any verdict is one of theirs.
    fn bring_agreeing(&mut self, policies: Policies) {
        let before = self.policies.clone();
        let closed_before = self.tables.closed().clone();
        let both =
            |pod: &ObjectName| before.pods.contains_key(pod) && policies.pods.contains_key(pod);
        let asked = questions(&policies)
            .into_iter()
            .filter(|question| both(&question.pod));
        let agreed = asked.map(|question| {
            (
                said(&before, &question),
                said(&policies, &question),
                question,
            )
        });
        let agreed: Vec<_> = agreed.filter(|(old, new, _)| old == new).collect();
        self.bring_watched(policies, |world, write| {
            // While a change without room is written, more pods may be closed.
            let tables = &world.tables;
            let closed = |pod| {
                tables.directory.overflows()
                    || closed_before.contains(pod)
                    || tables.closed().contains(pod)
            };
            for (both, _, question) in &agreed {
                let answer = world.answer(question);
                assert!(
                    answer == *both || !answer && closed(&question.pod),
                    "{question:?} is {answer} at {write:?}"
                );
            }
        });
        self.agrees();
    }

    fn rest(&mut self) {
        for write in self.tables.rest() {
            policy_tables::write(&write, &mut self.v4, &mut self.v6);
        }
    }

    /// The verdict of the tables.
    fn answer(&self, question: &Question) -> bool {
        let pod_id = self.tables.pod_id(&question.pod).expect("a pod_id");
        let rows = self.v4.rows.get(&pod_id).copied().unwrap_or_default();
        self.answer_by(rows, question)
    }

    fn answer_by(&self, rows: PodRows, question: &Question) -> bool {
        let row = if question.ingress {
            rows.ingress
        } else {
            rows.egress
        };
        let Question { protocol, port, .. } = *question;
        match question.other {
            IpAddr::V4(addr) => allows::<V4, _>(&self.v4, row, &Addr4::from(addr), protocol, port),
            IpAddr::V6(addr) => allows::<V6, _>(&self.v6, row, &Addr6::from(addr), protocol, port),
        }
    }

    #[track_caller]
    fn agrees(&self) {
        for question in questions(&self.policies) {
            let (answer, said) = (self.answer(&question), said(&self.policies, &question));
            let closed = !answer && self.tables.closed().contains(&question.pod);
            assert!(answer == said || closed, "{question:?} is {answer}");
        }
    }
}

/// The verdict of a state.
fn said(policies: &Policies, question: &Question) -> bool {
    let pod = &policies.pods[&question.pod];
    let isolation = if question.ingress {
        &pod.ingress
    } else {
        &pod.egress
    };
    isolation.allows(
        policies.class_of(question.other),
        question.protocol,
        question.port,
    )
}

fn questions(policies: &Policies) -> Vec<Question> {
    let others = ADDRESSES.map(|text| text.parse::<IpAddr>().expect("an address"));
    let ports = [
        (Protocol::TCP, 80),
        (Protocol::TCP, 8080),
        (Protocol::UDP, 53),
        (Protocol(1), 0),
    ];
    let mut questions = Vec::new();
    for pod in policies.pods.keys() {
        for (ingress, other) in [true, false]
            .into_iter()
            .flat_map(|ingress| others.map(|other| (ingress, other)))
        {
            questions.extend(ports.map(|(protocol, port)| Question {
                pod: pod.clone(),
                ingress,
                other,
                protocol,
                port,
            }));
        }
    }
    questions
}

const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "10.0.0.130",
    "192.0.2.1",
    "fd00::1",
    "fd00::2",
    "2001:db8::1",
];
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
        assert_eq!(world.answer(&question), said(&world.policies, &question));
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
