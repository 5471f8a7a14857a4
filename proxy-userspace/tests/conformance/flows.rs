//! The flows of a case: each makes connections until every expected endpoint was met; any other
//! endpoint is a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use portway::compile::compile;
use portway::contents::Contents;
use portway::model::State;
use proxy_common::net::{Address as _, IfIndex, V4, V6};
use proxy_common::reason::Answer;
use proxy_common::service::ServiceFlags;
use proxy_ebpf::fake::Memory;
use proxy_ebpf::socket;

use crate::cases::{Expect, Flow, FlowFile, Origin};
use crate::cluster;
use crate::fakes::{self, Fakes, Side4or6};
use crate::kernel::Kernel;
use crate::packet::{self, Outcome};
use crate::programs::Hook;
use crate::report::{Tally, Weight};
use crate::rules::{self, Owed, Row};
use crate::sockets;
use crate::world::{DEVICE, World};

/// Connections for each expected endpoint of a flow: with ten endpoints, one is missed in one of
/// 10^13 runs.
const ATTEMPTS: u16 = 32;
/// The first of the clients' ports.
const FIRST_PORT: u16 = 32768;

/// Checks a file: its flows at first, then after each step.
pub fn check(file: &FlowFile, kernel: &mut Kernel, tally: &mut Tally) -> Result<()> {
    let mut state = cluster::of(&file.objects)?;
    let mut fakes = Fakes::default();
    let contents = check_flows(file, &state, &file.flows, (&mut fakes, kernel), tally)?;
    if let Some(owed) = &file.expect_no_local_endpoints {
        let outside =
            ServiceFlags::NODE_PORT | ServiceFlags::EXTERNAL_IP | ServiceFlags::LOAD_BALANCER;
        let count = |kinds| contents.without_local_backend(kinds).len();
        let found = (count(ServiceFlags::CLUSTER_IP), count(outside));
        tally.row = Row::Endpoints;
        tally.compare(
            "service ports without local endpoints",
            Weight::Binding,
            &(owed.internal, owed.external),
            &found,
        );
    }
    for step in &file.steps {
        cluster::changes(&mut state, &step.changes)?;
        ensure!(
            same(&state, &cluster::of(&step.objects)?),
            "the step's changes do not lead to the step's objects"
        );
        check_flows(file, &state, &step.flows, (&mut fakes, kernel), tally)?;
    }
    Ok(())
}

fn same(a: &State, b: &State) -> bool {
    (&a.services, &a.slices, &a.invalid) == (&b.services, &b.slices, &b.invalid)
}

/// Compiles, places, and runs the flows both ways.
fn check_flows(
    file: &FlowFile,
    state: &State,
    flows: &[Flow],
    (fakes, kernel): (&mut Fakes, &mut Kernel),
    tally: &mut Tally,
) -> Result<Contents> {
    let world = World::new(&file.config, state, flows)?;
    let contents = compile(&world.snapshot);
    fakes.place(&contents)?;
    kernel.place(&contents)?;
    for flow in flows {
        let owed = rules::owed(flow, flows, &file.config, &world);
        owed.otherwise
            .iter()
            .for_each(|rule| tally.otherwise(*rule));
        let difference = if flow.dest_ip.is_ipv4() {
            check_flow(
                flow,
                &owed,
                &fakes.tables::<V4>(&contents, &world),
                &world,
                kernel,
                tally,
            )
        } else {
            check_flow(
                flow,
                &owed,
                &fakes.tables::<V6>(&contents, &world),
                &world,
                kernel,
                tally,
            )
        };
        tally.row = rules::row(flow, &file.config, &world);
        tally.note(
            &flow.name,
            flow.weight(),
            difference.with_context(|| flow.name.clone())?,
        );
    }
    Ok(contents)
}

/// Returns the difference for one flow, if any.
fn check_flow<F: Side4or6>(
    flow: &Flow,
    owed: &Owed,
    memory: &Memory<F>,
    world: &World,
    kernel: &mut Kernel,
    tally: &mut Tally,
) -> Result<Option<String>> {
    let (hook, device) = match flow.origin {
        Origin::External => (Hook::FromDevice, DEVICE),
        Origin::Pod => (
            Hook::FromPod,
            world
                .pod(flow.source_ip)
                .context("find the pod that it comes from")?,
        ),
        Origin::Node => {
            let both = (
                choices(flow, owed, memory)?,
                connections(flow, owed, kernel)?,
            );
            return Ok(differences(owed, &both, tally));
        }
    };
    kernel.forget_flows()?;
    let both = run(flow, owed, memory, kernel, (hook, device))?;
    Ok(differences(owed, &both, tally))
}

/// Returns the differences of both outcomes.
fn differences(
    owed: &Owed,
    (library, programs): &(Seen, Seen),
    tally: &mut Tally,
) -> Option<String> {
    tally.library += 1;
    tally.programs += 1;
    let library = difference(owed, library).map(|why| format!("library: {why}"));
    let programs = difference(owed, programs).map(|why| format!("programs: {why}"));
    let both: Vec<_> = library.into_iter().chain(programs).collect();
    if both.is_empty() {
        None
    } else {
        Some(both.join("; "))
    }
}

type Seen = BTreeSet<Outcome>;

/// Sends connections both ways.
fn run<F: Side4or6>(
    flow: &Flow,
    owed: &Owed,
    memory: &Memory<F>,
    kernel: &mut Kernel,
    (hook, device): (Hook, IfIndex),
) -> Result<(Seen, Seen)> {
    let (mut library, mut programs) = (Seen::new(), Seen::new());
    let protocol = packet::protocol(&flow.protocol)?;
    for port in ports(owed) {
        let (src, dst) = (
            SocketAddr::new(flow.source_ip, port),
            SocketAddr::new(flow.dest_ip, flow.dest_port),
        );
        let bytes = packet::first(protocol, src, dst);
        let (said, after) = fakes::run(memory, hook, device, &bytes);
        library.insert(packet::outcome(said, src, &bytes, &after).context("the library")?);
        let (said, after) = kernel.run(hook, device, &bytes)?;
        programs.insert(packet::outcome(said, src, &bytes, &after).context("the programs")?);
    }
    Ok((library, programs))
}

/// Returns the library's backends for processes of the node. Their sockets are redirected, so no
/// source is rewritten.
fn choices<F: Side4or6>(flow: &Flow, owed: &Owed, memory: &Memory<F>) -> Result<Seen> {
    let protocol = packet::protocol(&flow.protocol)?;
    let mut seen = Seen::new();
    for port in ports(owed) {
        let asked = fakes::ask::<F>(protocol, (flow.dest_ip, flow.dest_port), port)
            .context("two families in one flow")?;
        seen.insert(match socket::direct(memory, &asked) {
            Ok(Some((addr, port))) => Outcome::Forward {
                to: SocketAddr::new(addr.ip(), port.number()),
                masqueraded: false,
            },
            Ok(None) => Outcome::Pass,
            Err(reason) if reason.answer() == Some(Answer::PortUnreachable) => Outcome::Reject,
            Err(reason) => Outcome::Drop(reason),
        });
    }
    Ok(seen)
}

/// Makes the same connections by real sockets of processes of the node, with the loaded programs as
/// their hooks.
fn connections(flow: &Flow, owed: &Owed, kernel: &Kernel) -> Result<Seen> {
    let (protocol, to) = (
        packet::protocol(&flow.protocol)?,
        SocketAddr::new(flow.dest_ip, flow.dest_port),
    );
    ports(owed)
        .map(|_| sockets::connect(kernel.maps(), protocol, to))
        .collect()
}

fn ports(owed: &Owed) -> impl Iterator<Item = u16> {
    let count = ATTEMPTS * owed.endpoints.len().max(1) as u16;
    FIRST_PORT..FIRST_PORT + count
}

/// Returns the difference between the owed and the seen outcome.
fn difference(owed: &Owed, seen: &Seen) -> Option<String> {
    let verdicts: BTreeSet<Expect> = seen.iter().map(verdict).collect();
    let mut endpoints = BTreeMap::<SocketAddr, BTreeSet<bool>>::new();
    for outcome in seen {
        if let Outcome::Forward { to, masqueraded } = outcome {
            endpoints.entry(*to).or_default().insert(*masqueraded);
        }
    }
    let wanted: BTreeMap<_, _> = owed
        .endpoints
        .iter()
        .map(|(to, masqueraded)| (*to, BTreeSet::from([*masqueraded])))
        .collect();
    let right = verdicts == BTreeSet::from([owed.expect]) && endpoints == wanted;
    (!right).then(|| {
        format!(
            "{seen:?} came out, {:?} {:?} is owed (endpoint: masqueraded)",
            owed.expect, owed.endpoints
        )
    })
}

fn verdict(outcome: &Outcome) -> Expect {
    match outcome {
        Outcome::Pass => Expect::Pass,
        Outcome::Drop(_) => Expect::Drop,
        Outcome::Reject => Expect::Reject,
        Outcome::Forward { .. } => Expect::Forward,
    }
}
