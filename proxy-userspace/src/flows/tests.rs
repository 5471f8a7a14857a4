//! Judging flows, and sweeps over real tables.

use std::collections::BTreeMap;

use proxy_common::net::{Addr4, IfIndex, Port};

use super::*;
use crate::dataplane::{CgroupChoice, Dataplane, Options, StateDir, XdpChoice};
use crate::testing::Namespace;

const HZ: u32 = 250;

fn timeouts() -> Timeouts {
    Timeouts {
        opening: 30,
        tcp: 86_400,
        tcp_close_wait: 3_600,
        tcp_closed: 10,
        udp: 120,
    }
}

fn rules(serving: Option<Serving>) -> SweepRules {
    SweepRules {
        timeouts: timeouts(),
        hz: HZ,
        serving: serving.map(Arc::new),
        dsr: SweepRules::DSR,
    }
}

const CLIENT: Addr4 = Addr4::from_bytes([198, 51, 100, 1]);
const VIP: Addr4 = Addr4::from_bytes([192, 0, 2, 1]);
const BACKEND: Addr4 = Addr4::from_bytes([10, 244, 1, 2]);

/// Both directions of a connection from the client's `port`.
fn connection(
    protocol: Protocol,
    port: u16,
    seen: [u32; 2],
    state: u8,
) -> [(FlowKey<Addr4>, Flow<Addr4>); 2] {
    let (port, front, back) = (Port::new(port), Port::new(30080), Port::new(80));
    let common = Flow {
        src: CLIENT,
        dst: BACKEND,
        sport: port,
        dport: back,
        device: IfIndex(1),
        seen: seen[0],
        service: 1,
        way: 0,
        hooks: 1,
        state,
        role: Role::FORWARD,
    };
    let reply = Flow {
        src: VIP,
        dst: CLIENT,
        sport: front,
        dport: port,
        seen: seen[1],
        role: Role::REPLY,
        ..common
    };
    [
        (FlowKey::new(protocol, CLIENT, port, VIP, front), common),
        (FlowKey::new(protocol, BACKEND, back, CLIENT, port), reply),
    ]
}

fn serving() -> Serving {
    let backend = SocketAddr::new(BACKEND.ip(), 80);
    Serving {
        endpoints: BTreeMap::from([(1, BTreeSet::from([backend]))]),
        unknown_from: 5,
    }
}

#[test]
fn v18_each_kind_lives_as_long_as_its_timeout() {
    let lives = |protocol, state, seconds: u32| {
        let [(_, flow), _] = connection(protocol, 1, [0, 0], state);
        let rules = rules(None);
        assert_eq!(rules.judge(protocol, &flow, seconds * HZ - 1), None);
        rules.judge(protocol, &flow, seconds * HZ)
    };
    assert_eq!(
        lives(Protocol::TCP, State::REPLIED, 86_400),
        Some(Ended::Idle)
    );
    assert_eq!(
        lives(Protocol::TCP, State::REPLIED | State::FIN_REPLY, 3_600),
        Some(Ended::Idle)
    );
    assert_eq!(
        lives(Protocol::TCP, State::REPLIED | State::FIN_BOTH, 10),
        Some(Ended::Closed)
    );
    assert_eq!(lives(Protocol::TCP, State::RESET, 10), Some(Ended::Closed));
    assert_eq!(lives(Protocol::UDP, State::REPLIED, 120), Some(Ended::Idle));
    assert_eq!(lives(Protocol::UDP, 0, 30), Some(Ended::Unanswered));
    assert_eq!(lives(Protocol::TCP, 0, 30), Some(Ended::Unanswered));
}

/// With direct server return neither FIN nor RST of the backend is seen.
#[test]
fn v18_connections_that_are_answered_elsewhere_live_by_what_their_client_says() {
    let judge = |rules: &SweepRules, protocol, state, seconds: u32| {
        let [(_, flow), _] = connection(protocol, 1, [0, 0], state);
        rules.judge(
            protocol,
            &Flow {
                way: Way::Dsr as u8,
                ..flow
            },
            seconds * HZ,
        )
    };
    let (empty, full) = (rules(None), rules(None).for_table(u64::from(TABLE_ENTRIES)));
    for (rules, protocol, state, seconds, ended) in [
        (&empty, Protocol::TCP, State::REPLIED, 10_800, Ended::Idle),
        (&full, Protocol::SCTP, State::REPLIED, 600, Ended::Idle),
        (
            &empty,
            Protocol::TCP,
            State::REPLIED | State::FIN_FORWARD,
            20,
            Ended::Idle,
        ),
        (
            &full,
            Protocol::SCTP,
            State::REPLIED | State::FIN_FORWARD,
            10,
            Ended::Idle,
        ),
        (
            &empty,
            Protocol::TCP,
            State::REPLIED | State::RESET,
            10,
            Ended::Closed,
        ),
        (&empty, Protocol::TCP, 0, 30, Ended::Unanswered),
        (&full, Protocol::UDP, State::REPLIED, 120, Ended::Idle),
    ] {
        assert_eq!(
            judge(rules, protocol, state, seconds - 1),
            None,
            "{protocol:?} {state}"
        );
        assert_eq!(
            judge(rules, protocol, state, seconds),
            Some(ended),
            "{protocol:?} {state}"
        );
    }
}

#[test]
fn closed_flows_go_the_sooner_the_fuller_the_table_is() {
    let rules = SweepRules {
        timeouts: Timeouts::default(),
        ..rules(None)
    };
    let eighths = |n: u64| rules.for_table(u64::from(TABLE_ENTRIES) / 8 * n).timeouts;
    assert_eq!(
        [0, 4, 5, 6, 8].map(|n| eighths(n).tcp_closed),
        [60, 60, 30, 0, 0]
    );
    assert_eq!(rules.for_table(u64::MAX).timeouts.tcp_closed, 0);
    assert_eq!(
        [0, 4, 5, 6, 8].map(|n: u64| rules.for_table(u64::from(TABLE_ENTRIES) / 8 * n).dsr),
        [10_800, 10_800, 5_400, 600, 600]
    );
    assert_eq!(
        eighths(8).tcp,
        rules.timeouts.tcp,
        "those that are open stay"
    );
}

#[test]
fn v18_flows_of_which_nothing_is_known_were_evicted() {
    assert_eq!(lost(10, 4, 8), 2);
    assert_eq!(lost(10, 4, 7), 2, "half of a pair counts for both");
    assert_eq!(lost(10, 9, 8), 0, "what began during the walk");
    let metrics = Metrics::default();
    [3, 2, 5]
        .into_iter()
        .for_each(|total| metrics.flows_evicted(total));
    assert_eq!(metrics.ended(Ended::Evicted), 5);
}

#[test]
fn v14_udp_flows_end_with_their_backend_and_tcp_flows_do_not() {
    let rules = rules(Some(serving()));
    let judge = |protocol, service, dst| {
        let [(_, flow), _] = connection(protocol, 1, [0, 0], State::REPLIED);
        rules.judge(
            protocol,
            &Flow {
                service,
                dst,
                ..flow
            },
            0,
        )
    };
    let other = Addr4::from_bytes([10, 244, 1, 3]);
    assert_eq!(judge(Protocol::UDP, 1, BACKEND), None);
    assert_eq!(judge(Protocol::UDP, 1, other), Some(Ended::BackendGone));
    assert_eq!(
        judge(Protocol::UDP, 2, BACKEND),
        Some(Ended::BackendGone),
        "the service is gone"
    );
    assert_eq!(
        judge(Protocol::UDP, 5, BACKEND),
        None,
        "a service younger than what we know"
    );
    assert_eq!(judge(Protocol::UDP, 0, other), None, "no Service opened it");
    assert_eq!(judge(Protocol::TCP, 1, other), None);
}

#[test]
fn v14_nothing_ends_before_the_first_sync() {
    let [(_, flow), _] = connection(Protocol::UDP, 1, [0, 0], State::REPLIED);
    assert_eq!(rules(None).judge(Protocol::UDP, &flow, 0), None);
}

#[test]
fn jiffies_may_wrap_and_a_note_from_the_future_is_no_age() {
    assert_eq!(age(5, u32::MAX - 4), 10);
    assert_eq!(age(5, 6), 0);
}

/// Runs a sweep over these connections; gives the client ports of those that are left, by
/// direction.
fn survivors(
    rules: SweepRules,
    make: impl Fn(u32) -> Vec<[(FlowKey<Addr4>, Flow<Addr4>); 2]> + Send + 'static,
) -> Vec<u16> {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.block_on(async move {
        let _plane = Dataplane::open(&Options {
            state_dir: dir.clone(),
            xdp: XdpChoice::Off,
            cgroup: CgroupChoice::Off,
        })
        .expect("open the data plane");
        let dir = StateDir::at(&dir);
        let (mut maps, clock) = (
            Maps::from_pins(&dir).expect("open"),
            Clock::from_pins(&dir).expect("open"),
        );
        for (key, flow) in make(clock.now().expect("now")).into_iter().flatten() {
            maps.v4.flows.insert(key, flow, 0).expect("insert a flow");
        }
        sweep(
            &mut maps,
            &clock,
            &rules,
            Swept::default(),
            &Metrics::default(),
        )
        .await
        .expect("sweep");
        let left = maps.v4.flows.all().expect("read");
        let mut ports: Vec<_> = left
            .iter()
            .map(|(key, _)| {
                if key.src == CLIENT {
                    key.sport.number()
                } else {
                    key.dport.number()
                }
            })
            .collect();
        ports.sort();
        ports
    })
}

#[test]
fn a_packet_in_either_direction_keeps_both_entries() {
    let left = survivors(rules(None), |now| {
        let (old, new) = (now.wrapping_sub(200 * HZ), now.wrapping_sub(HZ));
        let udp = |port, seen| connection(Protocol::UDP, port, seen, State::REPLIED);
        vec![udp(1, [old, old]), udp(2, [old, new]), udp(3, [new, old])]
    });
    assert_eq!(left, [2, 2, 3, 3]);
}

#[test]
fn an_entry_without_its_other_half_ends_by_its_own_time() {
    let left = survivors(rules(None), |now| {
        let [forward, _] = connection(
            Protocol::UDP,
            1,
            [now.wrapping_sub(200 * HZ); 2],
            State::REPLIED,
        );
        let [_, reply] = connection(Protocol::UDP, 2, [now; 2], State::REPLIED);
        vec![[forward, forward], [reply, reply]]
    });
    assert_eq!(left, [2]);
}

#[test]
fn both_directions_of_a_udp_flow_go_with_its_backend() {
    let mut gone = serving();
    gone.endpoints.clear();
    gone.endpoints.insert(1, BTreeSet::new());
    let left = survivors(rules(Some(gone)), |now| {
        vec![
            connection(Protocol::UDP, 1, [now; 2], State::REPLIED),
            connection(Protocol::TCP, 2, [now; 2], State::REPLIED),
        ]
    });
    assert_eq!(left, [2, 2]);
}

/// P22: who gets an address of a pod that has left finds no flow of it, half-open or established;
/// those of others stay.
#[test]
fn p22_flows_end_with_the_pod_that_had_the_address() {
    let node = Namespace::new();
    let dir = node.state_dir();
    node.block_on(async move {
        let _plane = Dataplane::open(&Options {
            state_dir: dir.clone(),
            xdp: XdpChoice::Off,
            cgroup: CgroupChoice::Off,
        })
        .expect("open the data plane");
        let mut maps = Maps::from_pins(&StateDir::at(&dir)).expect("open");
        let other = |(key, flow): (FlowKey<Addr4>, Flow<Addr4>)| {
            let elsewhere = |addr| {
                if addr == BACKEND {
                    Addr4::from_bytes([10, 244, 1, 3])
                } else {
                    addr
                }
            };
            let key = FlowKey {
                src: elsewhere(key.src),
                dst: elsewhere(key.dst),
                sport: Port::new(9),
                ..key
            };
            (
                key,
                Flow {
                    src: elsewhere(flow.src),
                    dst: elsewhere(flow.dst),
                    ..flow
                },
            )
        };
        for (key, flow) in connection(Protocol::TCP, 1, [0, 0], State::REPLIED) {
            maps.v4.flows.insert(key, flow, 0).expect("insert a flow");
            let (key, flow) = other((key, flow));
            maps.v4.flows.insert(key, flow, 0).expect("insert a flow");
        }
        for (key, flow) in connection(Protocol::UDP, 2, [0, 0], 0) {
            maps.v4.opening.insert(key, flow, 0).expect("insert a flow");
        }
        assert_eq!(
            end_those_of(&mut maps, &BTreeSet::from([BACKEND.ip()])).expect("end flows"),
            4
        );
        assert_eq!(maps.v4.flows.all().expect("read").len(), 2);
        assert!(maps.v4.opening.all().expect("read").is_empty());
    });
}
