//! One packet over equal tables, on the host and in the kernel: equal verdicts, bytes, and
//! flows afterwards.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::flow::Flow;
use proxy_common::net::IfIndex;
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::fake::{Bytes, Flows, Memory};
use proxy_ebpf::parse::ethertype;
use proxy_ebpf::{Action, Table, Tables, from_device, from_pod, to_device, to_pod, xdp};

use crate::generate::{self, Dice, Shot};
use crate::maps::{self, Maps};
use crate::namespace::Network;
use crate::programs::{Hook, Loaded};

/// Number of nodes, the most nodes until every outcome has been seen, and number of packets for
/// each.
const NODES: usize = 60;
const MOST_NODES: usize = 300;
const PACKETS: usize = 150;

type Said = Result<Action, Reason>;

/// Counts of the outcomes; a run that misses one is noticed.
#[derive(Default)]
pub struct Seen {
    packets: usize,
    said: BTreeMap<(Hook, String), u32>,
    counted: BTreeMap<&'static str, u64>,
}

impl Seen {
    fn note(&mut self, hook: Hook, said: Said) {
        let what = match said {
            Ok(Action::Untouched) => "untouched".into(),
            Ok(Action::Stack) => "stack".into(),
            Ok(Action::Pod(_)) => "pod".into(),
            Ok(Action::Neighbour(_)) => "neighbour".into(),
            Ok(Action::Transmit(_)) => "transmit".into(),
            Ok(Action::Return(_)) => "return".into(),
            Ok(Action::Enter(_)) => "enter".into(),
            Err(reason) => format!("{reason:?}"),
        };
        self.packets += 1;
        *self.said.entry((hook, what)).or_default() += 1;
    }
    /// Adds another run's counts.
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        other
            .said
            .into_iter()
            .for_each(|(key, times)| *self.said.entry(key).or_default() += times);
        other
            .counted
            .into_iter()
            .for_each(|(key, times)| *self.counted.entry(key).or_default() += times);
    }
    /// Returns an outcome that has not been seen at a hook where it can happen.
    pub fn lacks(&self) -> Option<String> {
        let expected: [(Hook, &[&str]); 5] = [
            (Hook::Xdp, &["untouched", "transmit", "Truncated"]),
            (
                Hook::FromDevice,
                &[
                    "untouched",
                    "stack",
                    "pod",
                    "neighbour",
                    "transmit",
                    "enter",
                    "NotSyn",
                    "NoMasqueradePort",
                ],
            ),
            (
                Hook::FromPod,
                &[
                    "untouched",
                    "stack",
                    "pod",
                    "neighbour",
                    "transmit",
                    "enter",
                    "AwaitLocalBackend",
                    "NoRoute",
                ],
            ),
            (Hook::ToPod, &["untouched", "stack"]),
            (Hook::ToDevice, &["untouched", "stack", "enter"]),
        ];
        for (hook, what) in expected
            .into_iter()
            .flat_map(|(hook, whats)| whats.iter().map(move |what| (hook, *what)))
        {
            if !self.said.contains_key(&(hook, what.into())) {
                return Some(format!("no packet came out {what} of {hook:?}"));
            }
        }
        let counters = [
            Counter::Established,
            Counter::TableFull,
            Counter::Fallback,
            Counter::Fragment,
            Counter::LeftToTc,
            Counter::Encapsulated,
            Counter::Decapsulated,
        ];
        let reasons = [
            Reason::NoBackend,
            Reason::TtlExceeded,
            Reason::TooBig,
            Reason::SourceNotAllowed,
            Reason::NoSuchService,
            Reason::NotServedHere,
        ];
        let mut names = counters
            .map(|counter| counter.name())
            .into_iter()
            .chain(reasons.map(|reason| reason.name()));
        let name = names.find(|name| self.counted.get(name).is_none_or(|times| *times == 0))?;
        Some(format!("nothing was counted as {name}"))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} packets compared", self.packets)?;
        self.said
            .iter()
            .try_for_each(|((hook, what), times)| writeln!(f, "{hook:?} {what}: {times}"))?;
        self.counted
            .iter()
            .try_for_each(|(name, times)| writeln!(f, "counted {name}: {times}"))
    }
}

/// Makes nodes and packets from a seed, and compares both sides' results.
pub fn run<F: Maps>(loaded: &mut Loaded, network: &Network, seed: u64) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut dice = Dice::new(seed);
    let mut node = 0;
    while node < NODES || node < MOST_NODES && seen.lacks().is_some() {
        one_node::<F>(&mut dice, loaded, network, &mut seen)
            .with_context(|| format!("on node {node} of seed {seed}"))?;
        node += 1;
    }
    if let Some(what) = seen.lacks() {
        bail!("{what} on {node} nodes of seed {seed}\n{seen}");
    }
    Ok(seen)
}

fn one_node<F: Maps>(
    dice: &mut Dice,
    loaded: &mut Loaded,
    network: &Network,
    seen: &mut Seen,
) -> Result<()> {
    let mut memory = generate::node::<F>(dice, network);
    memory.now = loaded.now()?;
    F::fill(loaded, &memory)?;
    loaded.reset_counters()?;
    let mut reasons = BTreeMap::<Reason, u64>::new();
    for packet in 0..PACKETS {
        accident(dice, loaded, network, &mut memory)
            .with_context(|| format!("before packet {packet}"))?;
        let Shot {
            hook,
            device,
            bytes,
        } = generate::shot(dice, network, &memory);
        let said = compare(loaded, &memory, hook, device, &bytes)
            .with_context(|| format!("packet {packet}"))?;
        seen.note(hook, said);
        if let Err(reason) = said {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let dropped = |reason| reasons.get(reason).copied().unwrap_or(0);
    let reasons = Reason::ALL.iter().map(|reason| {
        (
            reason.name(),
            dropped(reason) + u64::from(memory.answered(*reason)),
        )
    });
    let others = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), u64::from(memory.counted(*counter))));
    let library: BTreeMap<_, _> = reasons.chain(others).collect();
    let kernel = maps::counters(loaded)?;
    ensure!(
        kernel == library,
        "counted differently\nkernel  {kernel:?}\nlibrary {library:?}"
    );
    kernel
        .into_iter()
        .for_each(|(name, times)| *seen.counted.entry(name).or_default() += times);
    Ok(())
}

/// Changes both sides between two packets: the Service changes, the LRU or the sweep removes a
/// flow, time passes.
fn accident<F: Maps>(
    dice: &mut Dice,
    loaded: &mut Loaded,
    network: &Network,
    memory: &mut Memory<F>,
) -> Result<()> {
    // A range of one port, free or taken, since the kernel's and the library's random numbers
    // differ.
    if dice.chance(10) {
        memory.config.masquerade_first = 1024 + dice.below(20000) as u16;
        maps::configure(loaded, memory.config)?;
    }
    match dice.below(50) {
        0 => {
            generate::serve(dice, memory);
            F::fill(loaded, memory)
        }
        1 => {
            generate::furnish(dice, network, memory);
            F::fill(loaded, memory)
        }
        2..5 => {
            let Some((table, key)) = generate::any_flow(dice, memory) else {
                return Ok(());
            };
            memory.remove_flow(table, &key);
            F::forget(loaded, table, &key)
        }
        5..7 => {
            let Some((table, key)) = generate::any_flow(dice, memory) else {
                return Ok(());
            };
            let flows = if table == Table::Established {
                &memory.established
            } else {
                &memory.opening
            };
            let seen = memory
                .now
                .wrapping_sub(10 * memory.config.udp_timeout * memory.config.hz);
            if let Some(flow) = flows.borrow_mut().get_mut(&key) {
                flow.seen = seen;
            }
            F::age(loaded, table, &key, seen)
        }
        _ => Ok(()),
    }
}

/// Runs one packet on both sides; an error says what differs.
pub fn compare<F: Maps>(
    loaded: &mut Loaded,
    memory: &Memory<F>,
    hook: Hook,
    device: IfIndex,
    bytes: &[u8],
) -> Result<Said> {
    loaded.set_refusals(0, 0)?;
    let before = format!(
        "{:?} {:?}",
        memory.established.borrow(),
        memory.opening.borrow()
    );
    let described = || format!("{hook:?} {device:?} {}\nflows before: {before}", hex(bytes));
    let (said, after) = if hook == Hook::Xdp {
        let device = loaded.xdp_device(device);
        let (said, after) = library::<F>(bytes, |bytes| xdp::<F, _, _>(bytes, memory, device));
        let (code, kernel) = loaded.xdp(device, bytes)?;
        let wanted = xdp_code(said, device);
        ensure!(
            code == wanted,
            "XDP said {code}, the library {said:?}\n{}",
            described()
        );
        (said, (kernel, after))
    } else {
        let (said, after) = library::<F>(bytes, |bytes| match hook {
            Hook::FromPod => from_pod::<F, _, _>(bytes, memory, device),
            Hook::ToPod => to_pod::<F, _, _>(bytes, memory, device),
            Hook::ToDevice => to_device::<F, _, _>(bytes, memory, device),
            Hook::Xdp | Hook::FromDevice => from_device::<F, _, _>(bytes, memory, device),
        });
        let (code, kernel) = loaded.tc(hook, device, bytes)?;
        ensure!(
            code == said,
            "the kernel said {code:?}, the library {said:?}\n{}",
            described()
        );
        (said, (kernel, after))
    };
    let (kernel, library) = after;
    // The bytes of a dropped packet are not compared.
    let same = said.is_err() || kernel == library;
    ensure!(
        same,
        "{said:?} with other bytes\nkernel  {}\nlibrary {}\n{}",
        hex(&kernel),
        hex(&library),
        described()
    );
    for (table, library) in [
        (Table::Established, &memory.established),
        (Table::Opening, &memory.opening),
    ] {
        let (kernel, library) = (
            timeless::<F>(F::flows(loaded, table)?),
            timeless::<F>(library.borrow().clone()),
        );
        let same = kernel == library;
        ensure!(
            same,
            "{said:?} with other flows\nkernel  {kernel:?}\nlibrary {library:?}\n{}",
            described()
        );
    }
    Ok(said)
}

/// Runs the library as a program does: only packets of the family's EtherType reach it.
fn library<F: Maps>(bytes: &[u8], hook: impl Fn(&mut Bytes) -> Said) -> (Said, Vec<u8>) {
    // A test run's packets came in by no device.
    let mut bytes = Bytes {
        bytes: bytes.to_vec(),
        from_host: true,
    };
    let ours = ethertype(&bytes) == Some(F::ETHERTYPE);
    let said = if ours {
        hook(&mut bytes)
    } else {
        Ok(Action::Untouched)
    };
    (said, bytes.bytes)
}

/// Returns XDP's return code.
fn xdp_code(said: Said, device: IfIndex) -> u32 {
    match said {
        Err(_) => 1,
        Ok(Action::Transmit(out)) if out == device => 3,
        Ok(Action::Transmit(_)) => 4,
        Ok(_) => 2,
    }
}

/// Returns the flows without the time of their last packet, since the two clocks differ.
fn timeless<F: Maps>(flows: Flows<F>) -> Flows<F> {
    flows
        .into_iter()
        .map(|(key, flow)| (key, Flow { seen: 0, ..flow }))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
