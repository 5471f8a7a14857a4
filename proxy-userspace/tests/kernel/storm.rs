//! Policies change as fast as they can be written, while packets pass: each gets the verdict of the
//! state before or after.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{RwLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use portway::compile::{PolicyCompiler, Touched};
use portway::contents::policies::verdict;
use portway::dataplane::{PolicyMaps, wait_for_programs};
use portway::model::policy::{
    Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector,
};
use portway::model::{
    Labels, NetworkPolicy, Object, ObjectName, Phase, Pod, PortRange, Snapshot, Update,
};
use portway::place::policies::{PolicyTables, PolicyWrite};
use proxy_common::net::{Addr4, IfIndex, LocalPod, Protocol, V4, V6};
use proxy_common::policy::{PodRows, PortSet, VerdictKey, Word};
use proxy_common::reason::Reason;
use proxy_common::service::Config;
use proxy_ebpf::Action;
use proxy_ebpf::fake::Memory;
use proxy_ebpf::policy::allowed;

use crate::generate::Dice;
use crate::maps;
use crate::programs::{Hook, Loaded};
use crate::segment::{SYN, Segment};

mod edits;
mod in_memory;

use edits::{edit_of, snapshot};
pub use in_memory::without_kernel;

#[path = "../../core/tests/support/policy_tables.rs"]
mod policy_tables;

const DEVICE: IfIndex = IfIndex(1);
const PORTS: [u16; 3] = [80, 81, 8080];
const PEERS: [(&str, &str); 6] = [
    ("10.244.1.1", "a"),
    ("10.244.1.2", "b"),
    ("10.244.2.1", "c"),
    ("10.244.2.2", "a"),
    ("203.0.113.5", ""),
    ("198.51.100.9", ""),
];
const SUBJECT: &str = "10.244.1.9";

/// The result of a storm.
pub struct Came {
    pub edits: usize,
    pub packets: usize,
    /// Packets with a verdict that was changing while they passed.
    pub between: usize,
    pub seconds: f64,
    pub took: Took,
}

/// The time of the edits, by step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// The agent's steps: compile, place, write, end a grace period.
    pub compile: Duration,
    pub place: Duration,
    pub write: Duration,
    pub rest: Duration,
    /// The test's computation of each state's verdicts.
    pub judge: Duration,
}

impl Took {
    /// Returns the agent's cost of an edit, in multiples of the test's cost to ask for its
    /// verdicts: neither the optimizer nor an emulated machine changes this ratio much.
    pub fn in_judgements(&self) -> f64 {
        (self.compile + self.place + self.write + self.rest).as_secs_f64()
            / self.judge.as_secs_f64()
    }
}

/// Runs `what`, and adds its duration.
fn timed<T>(sum: &mut Duration, what: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let came = what();
    *sum += begun.elapsed();
    came
}

/// The verdicts of one state on all questions, a bit for each.
type Verdicts = u64;

/// States in order, the number that have begun to be written, and the number that are written.
#[derive(Default)]
struct History {
    states: RwLock<Vec<Verdicts>>,
    begun: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
}

pub fn storm(dice: &mut Dice, length: Duration) -> Result<Came> {
    let mut loaded = Loaded::of_full_size()?;
    maps::configure(
        &mut loaded,
        Config {
            hz: 250,
            opening_timeout: 30,
            flags: Config::POLICY,
            ..Config::default()
        },
    )?;
    let mut maps = PolicyMaps::open(|name| {
        loaded
            .ebpf
            .take_map(name)
            .with_context(|| format!("find {name}"))
    })?;
    let (mut snapshot, mut compiler, mut tables) = (
        snapshot(),
        PolicyCompiler::default(),
        PolicyTables::default(),
    );
    write(
        &snapshot,
        &Touched::everything(),
        &mut compiler,
        &mut tables,
        &mut maps,
    )?;
    let subject = ObjectName::new("shop", "subject");
    let pod_id = tables.pod_id(&subject).context("find the pod's pod_id")?;
    maps::put_pod(
        &mut loaded,
        SUBJECT.parse()?,
        LocalPod {
            device: DEVICE,
            pod_id,
        },
    )?;
    let history = History::default();
    history
        .states
        .write()
        .expect("nobody panics")
        .push(verdicts(&compiler));
    history.begun.store(1, Ordering::SeqCst);
    history.done.store(1, Ordering::SeqCst);
    let started = Instant::now();
    let (mut edits, mut took) = (0, Took::default());
    std::thread::scope(|scope| {
        let packets = scope.spawn(|| watch(&loaded, &history));
        // As in the agent: elements released before the last rest are reused when no program of
        // that time runs any more.
        let (ask, asked) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        scope.spawn(move || {
            asked
                .iter()
                .take_while(|()| (wait_for_programs(), tell.send(())).1.is_ok())
                .for_each(drop)
        });
        ask.send(()).context("ask for a grace period")?;
        let edited = (|| -> Result<()> {
            while started.elapsed() < length && !packets.is_finished() {
                let update = edit_of(dice);
                let mut touched = Touched::default();
                touched.record(&update);
                _ = snapshot.state.apply(update);
                // The state is known before its first write is seen.
                let delta = timed(&mut took.compile, || compiler.compile(&snapshot, &touched));
                let verdicts = timed(&mut took.judge, || verdicts(&compiler));
                history
                    .states
                    .write()
                    .expect("nobody panics")
                    .push(verdicts);
                history.begun.fetch_add(1, Ordering::SeqCst);
                let writes = timed(&mut took.place, || {
                    tables.place(compiler.policies(), &delta)
                });
                timed(&mut took.write, || {
                    writes.iter().try_for_each(|write| maps.write(write))
                })?;
                history.done.fetch_add(1, Ordering::SeqCst);
                edits += 1;
                if told.try_recv().is_ok() {
                    timed(&mut took.rest, || {
                        tables.rest().iter().try_for_each(|write| maps.write(write))
                    })?;
                    ask.send(()).context("ask for a grace period")?;
                }
            }
            drop(ask);
            Ok(())
        })();
        history.over.store(true, Ordering::SeqCst);
        let (packets, between) = packets
            .join()
            .expect("the packets' thread does not panic")?;
        edited?;
        Ok(Came {
            edits,
            packets,
            between,
            seconds: started.elapsed().as_secs_f64(),
            took,
        })
    })
}

fn write(
    snapshot: &Snapshot,
    touched: &Touched,
    compiler: &mut PolicyCompiler,
    tables: &mut PolicyTables,
    maps: &mut PolicyMaps,
) -> Result<()> {
    let delta = compiler.compile(snapshot, touched);
    tables
        .place(compiler.policies(), &delta)
        .iter()
        .try_for_each(|write| maps.write(write))
}

/// Sends packets until the storm is over; returns their number, and that of packets that met a
/// state in the making.
fn watch(loaded: &Loaded, history: &History) -> Result<(usize, usize)> {
    let packets: Vec<_> = questions()
        .into_iter()
        .map(|question| (question, question.packet()))
        .collect();
    let (mut count, mut between) = (0, 0);
    while !history.over.load(Ordering::SeqCst) {
        for (bit, (question, bytes)) in packets.iter().enumerate() {
            let before = history.done.load(Ordering::SeqCst);
            let hook = if question.ingress {
                Hook::ToPod
            } else {
                Hook::FromPod
            };
            let (said, _) = loaded.tc(hook, DEVICE, bytes)?;
            let after = history.begun.load(Ordering::SeqCst);
            let allowed = match said {
                Ok(Action::Untouched) => true,
                Err(Reason::DeniedIngress | Reason::DeniedEgress) => false,
                other => anyhow::bail!("{question:?}: {other:?}"),
            };
            let states = history.states.read().expect("nobody panics");
            let ours = &states[before - 1..after];
            let right = ours.iter().any(|state| (state >> bit & 1 == 1) == allowed);
            ensure!(
                right,
                "{question:?} is {allowed} in none of the states {before} to {after}"
            );
            between += usize::from(ours.iter().any(|state| (state >> bit & 1 == 1) != allowed));
            count += 1;
        }
    }
    Ok((count, between))
}

#[derive(Clone, Copy, Debug)]
struct Question {
    ingress: bool,
    peer: IpAddr,
    port: u16,
}

fn questions() -> Vec<Question> {
    let peers = PEERS.map(|(peer, _)| peer.parse::<IpAddr>().expect("an address"));
    let of_peer = |peer| {
        [true, false].into_iter().flat_map(move |ingress| {
            PORTS.map(|port| Question {
                ingress,
                peer,
                port,
            })
        })
    };
    peers.into_iter().flat_map(of_peer).collect()
}

impl Question {
    /// Asserts that the tables answer as one of these states does; the question's bit selects it.
    fn check<T: proxy_ebpf::Verdicts<V4>>(
        self,
        tables: &T,
        pod_id: u32,
        bit: usize,
        states: &[Verdicts],
    ) -> Result<()> {
        let IpAddr::V4(peer) = self.peer else {
            bail!("{self:?} is not about IPv4")
        };
        let side = |rows: PodRows| {
            if self.ingress {
                rows.ingress
            } else {
                rows.egress
            }
        };
        let said = allowed::<V4, _>(tables, pod_id, side, &peer.into(), Protocol::TCP, self.port);
        let owed = states.iter().any(|state| (state >> bit & 1 == 1) == said);
        ensure!(
            owed,
            "{self:?} is {said} in none of {} states",
            states.len()
        );
        Ok(())
    }

    fn packet(self) -> Vec<u8> {
        let subject: IpAddr = SUBJECT.parse().expect("an address");
        let (src, dst) = if self.ingress {
            (self.peer, subject)
        } else {
            (subject, self.peer)
        };
        Segment::new(Protocol::TCP, (src, 40000).into(), (dst, self.port).into())
            .flags(SYN)
            .bytes()
    }
}

fn verdicts(compiler: &PolicyCompiler) -> Verdicts {
    let subject: IpAddr = SUBJECT.parse().expect("an address");
    let bits = questions().into_iter().enumerate().map(
        |(
            bit,
            Question {
                ingress,
                peer,
                port,
            },
        )| {
            let (from, to) = if ingress {
                (peer, subject)
            } else {
                (subject, peer)
            };
            let said = verdict(compiler.policies(), from, to, Protocol::TCP, port);
            u64::from(if ingress { said.ingress } else { said.egress }) << bit
        },
    );
    bits.sum()
}
