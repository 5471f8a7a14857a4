//! The one task that owns the state: takes news, compiles, places, applies. Nobody else writes
//! services.
//!
//! Nothing is written before the first lists and the first look at the host's network are there
//! (V1). There is no minimum period: news that wait are taken together, and what they come to is
//! applied at once.

mod denied;
mod given;
mod hooks;
mod policies;
mod reports;
mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use proxy_common::net::Protocol;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::cni;
use crate::compile::{Compiler, Touched};
use crate::dataplane::{Dataplane, Denied, wait_for_programs};
use crate::gate::GateSpec;
use crate::health::{NodeVitals, Vitals};
use crate::links::{Found, Wanted};
use crate::metrics::{Metrics, Pass};
use crate::model::{Changed, Kind, Node, Object, ObjectName, Snapshot, State, Update};
use crate::place::{Actual, Idle, place, place_delta, retire_those};
use crate::serving::Serving;
use given::Given;
use hooks::HookRetry;
use policies::PolicySync;
use reports::{Change, seconds};

pub use reports::{Audience, Reports};
pub use triggers::{Trigger, Triggers};

/// Time for which unused entries are collected before a grace period begins, after which no program
/// uses them.
const GATHER: Duration = Duration::from_millis(10);
/// After a refused write everything is tried again, and after a refused hook what is attached
/// where, then less and less often.
const RETRY: Duration = Duration::from_secs(5);
/// At the first sync, how long the devices of this node's pods are waited for: nobody was served
/// before, so nobody waits in vain.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// News that are taken together at most.
const BATCH: usize = 10_000;

/// The inputs of the task.
pub struct Inputs {
    /// The cluster's objects.
    pub updates: mpsc::Receiver<Update>,
    /// The host's network.
    pub found: watch::Receiver<Option<Found>>,
    /// Addresses of pods by their CNI plugins' word (P31).
    pub given: watch::Receiver<cni::Given>,
    /// Connections that NetworkPolicy denies, for the log.
    pub denied: mpsc::Receiver<Denied>,
}

/// The outputs of the task.
pub struct Outputs {
    /// The inputs of `links`.
    pub wanted: watch::Sender<Wanted>,
    /// The backends that UDP flows may lead to.
    pub serving: watch::Sender<Option<Arc<Serving>>>,
    /// Addresses that pods of this node have left: their flows end (P22).
    pub left: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    /// The state that health is judged by.
    pub vitals: watch::Sender<Vitals>,
    /// By what processes of this node reach Services where their sockets do not.
    pub gate: watch::Sender<Option<GateSpec>>,
    /// The reports for others.
    pub reports: Reports,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The state, and what it was brought to.
pub struct Sync {
    snapshot: Snapshot,
    plane: Dataplane,
    actual: Actual,
    placed: Placed,
    outputs: Outputs,
    compiler: Compiler,
    policies: PolicySync,
    given: Given,
    /// The objects that the compiler has to look at.
    touched: Touched,
    dirty: Dirty,
    /// Done when no program is left that ran when something went out of use.
    programs: Option<JoinHandle<()>>,
    /// Entries to retire after the grace period: those that were unused when it began. Later writes
    /// do not put it off.
    idle: Idle,
    retry_at: Option<Instant>,
    hooks: HookRetry,
    /// Until when the first sync waits for devices; set when all else is there.
    first_until: Option<Instant>,
}

/// The relation between the kernel's contents and the compiled ones.
enum Placed {
    /// Nothing was written yet.
    Never,
    /// Not quite what the compiler says: a write was refused.
    Partly,
    /// They are equal.
    Wholly,
}

/// The changes since the last sync.
#[derive(Clone, Copy, Default)]
struct Dirty {
    objects: bool,
    links: bool,
}

impl Sync {
    /// A task over the loaded data plane; `actual` is what it holds, `snapshot` has the settings.
    pub fn new(snapshot: Snapshot, plane: Dataplane, actual: Actual, outputs: Outputs) -> Self {
        let (placed, dirty) = (Placed::Never, Dirty::default());
        let (compiler, touched) = (Compiler::default(), Touched::everything());
        let policies = PolicySync::new(&actual, plane.policy_room());
        let (programs, retry_at, first_until) = (None, None, None);
        Self {
            snapshot,
            plane,
            actual,
            placed,
            outputs,
            compiler,
            policies,
            given: Given::default(),
            touched,
            dirty,
            programs,
            idle: Idle::default(),
            retry_at,
            hooks: HookRetry::default(),
            first_until,
        }
    }

    /// Runs until a source ends, which is an error, for whoever supervises us.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<()> {
        loop {
            tokio::select! {
                update = inputs.updates.recv() => match update {
                    Some(update) => self.take_all(update, &mut inputs.updates),
                    None => bail!("the source of objects has ended"),
                },
                changed = inputs.found.changed() => {
                    changed.context("the task that watches the host's network has ended")?;
                    self.dirty.links = true;
                }
                Ok(()) = inputs.given.changed() => self.take_given(inputs.given.borrow_and_update().clone()),
                Some(denied) = inputs.denied.recv() => {
                    denied::tell(&denied, self.policies.compiler(), &self.snapshot);
                    continue;
                }
                () = ended(&mut self.programs) => self.retire(),
                () = until(self.retry_at) => {
                    self.retry_at = None;
                    self.dirty.objects = true;
                }
                () = until(self.hooks.at) => {
                    self.hooks.begin();
                    self.dirty.links = true;
                }
            }
            self.step(&mut inputs.found)?;
        }
    }

    /// Takes an update and all that wait behind it.
    fn take_all(&mut self, first: Update, more: &mut mpsc::Receiver<Update>) {
        let mut next = Some(first);
        let mut asks_links = false;
        for _ in 0..BATCH {
            let Some(update) = next else { break };
            asks_links |= concerns_links(&update, &self.snapshot);
            _ = self.take(update);
            next = more.try_recv().ok();
        }
        if let Some(update) = next {
            asks_links |= self.take(update) == Changed::Yes;
        }
        self.outputs
            .metrics
            .connection(&self.snapshot.state.connection);
        if asks_links && self.snapshot.state.synced {
            self.ask_links();
        }
    }

    /// CNI plugins have said something else.
    fn take_given(&mut self, said: cni::Given) {
        let mut changed = false;
        for update in self.given.say(said, &self.snapshot.state) {
            changed |= self.take(update) == Changed::Yes;
        }
        if changed && self.snapshot.state.synced {
            self.ask_links();
        }
    }

    fn take(&mut self, update: Update) -> Changed {
        let update = self
            .given
            .complete(update, &self.snapshot.settings.node_name);
        let change = Change::of(&update, &self.snapshot.state);
        self.outputs.reports.heard(&change);
        let mut touched = Touched::default();
        touched.record(&update);
        let changed = self.snapshot.state.apply(update);
        if changed == Changed::Yes {
            self.touched.extend(touched);
            self.outputs.reports.matters(change, Timestamp::now());
            self.note_change();
        }
        changed
    }

    fn note_change(&mut self) {
        self.dirty.objects = true;
        let synced = self.snapshot.state.synced;
        self.outputs.vitals.send_if_modified(|vitals| {
            let first = synced && !vitals.waiting();
            if first {
                vitals.queue(Instant::now());
            }
            first
        });
    }

    /// Sends the current pods and addresses to `links`, and the state of our Node to health.
    fn ask_links(&mut self) {
        let Snapshot {
            settings, state, ..
        } = &self.snapshot;
        let before = self.outputs.vitals.borrow().node;
        let vitals = NodeVitals::of(state, &settings.node_name, before);
        self.outputs
            .vitals
            .send_if_modified(|all| std::mem::replace(&mut all.node, vitals) != vitals);
        let now = wanted(&self.snapshot, self.outputs.wanted.borrow().devices.clone());
        self.outputs.wanted.send_if_modified(|wanted| {
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
    }

    fn step(&mut self, found: &mut watch::Receiver<Option<Found>>) -> Result<()> {
        if !self.snapshot.state.synced || !(self.dirty.objects || self.dirty.links) {
            return Ok(());
        }
        // Whatever woke this task: what is looked at here is not told again.
        self.dirty.links |= found
            .has_changed()
            .context("the task that watches the host's network has ended")?;
        let found = found.borrow_and_update().clone();
        let Some(found) = found.filter(|found| self.is_fresh(found)) else {
            return Ok(());
        };
        let first = matches!(self.placed, Placed::Never);
        if first && self.waits_for_devices(&found) {
            return Ok(());
        }
        if self.dirty.links && !first {
            self.attach(&found)?;
        }
        self.bring_in_step(&found);
        if first {
            self.adopt();
            // Programs of an earlier agent have served until now, perhaps from maps that this one
            // does not use.
            self.attach(&found)?;
            // Those that have begun since then.
            self.adopt();
            self.bring_in_step(&found);
        }
        self.ask_for_gate();
        if matches!(self.placed, Placed::Wholly) {
            self.outputs
                .vitals
                .send_if_modified(|vitals| !std::mem::replace(&mut vitals.in_step, true));
        }
        self.hooks.wait(self.plane.was_refused());
        self.dirty = Dirty::default();
        Ok(())
    }

    /// The first look counts only if it was one for our Node and our pods: what an earlier agent
    /// knew is not to be forgotten.
    fn is_fresh(&self, found: &Found) -> bool {
        !matches!(self.placed, Placed::Never) || found.wanted == *self.outputs.wanted.borrow()
    }

    /// Returns true while a pod's device is awaited. Serving it now would drop its packets.
    fn waits_for_devices(&mut self, found: &Found) -> bool {
        let until = *self
            .first_until
            .get_or_insert_with(|| Instant::now() + FIRST_LOOK);
        let missing = found
            .wanted
            .pods
            .iter()
            .any(|pod| !found.links.pods.contains_key(pod));
        self.retry_at = missing.then_some(until);
        missing && Instant::now() < until
    }

    fn attach(&mut self, found: &Found) -> Result<()> {
        for error in self.plane.attach(found).context("attach programs")? {
            warn!(
                error = format!("{error:#}"),
                "a device is left without a program"
            );
        }
        Ok(())
    }

    /// P25: connections that are older than any program of ours go on, and their replies are known
    /// as such.
    fn adopt(&mut self) {
        if !self.plane.is_first() {
            return;
        }
        match self.plane.adopt(self.compiler.contents()) {
            Ok(connections) => info!(
                connections,
                "connections of pods are followed that were there before"
            ),
            Err(error) => {
                let error = format!("{error:#}");
                warn!(
                    error,
                    "connections that were there before are not followed: what answers an isolated pod on one is denied"
                );
            }
        }
    }

    /// Makes the maps hold what the snapshot and the found network come to.
    fn bring_in_step(&mut self, found: &Found) {
        let started = Instant::now();
        self.look_at_links(found);
        let touched = std::mem::take(&mut self.touched);
        let Self {
            snapshot,
            plane,
            actual,
            policies,
            ..
        } = self;
        let (policy_writes, policy_error) =
            policies.bring_in_step(snapshot, &touched, plane, actual);
        let left = policies.take_left();
        if !left.is_empty() {
            // Without a sweep there are no flows to end either.
            _ = self.outputs.left.send(left);
        }
        let judged = started.elapsed();
        let delta = self.compiler.compile(&self.snapshot, &touched);
        let compiled = started.elapsed();
        let contents = self.compiler.contents();
        let (pass, writes) = match &self.placed {
            Placed::Wholly => (Pass::Partial, place_delta(&delta, contents, &self.actual)),
            Placed::Partly | Placed::Never => (Pass::Full, place(contents, &self.actual)),
        };
        let planned = started.elapsed();
        let count = policy_writes + writes.len();
        let serving = self.announce_serving();
        let mut errors = self.plane.apply(writes, &mut self.actual);
        errors.extend(policy_error);
        self.settle_serving(serving);
        self.outputs
            .metrics
            .synced(pass, started.elapsed(), seconds(Timestamp::now()), count);
        if count > 0 {
            let micros =
                |from: Duration, to: Duration| (to.saturating_sub(from)).as_micros() as u64;
            let (compile, plan, apply) = (
                micros(judged, compiled),
                micros(compiled, planned),
                micros(planned, started.elapsed()),
            );
            let frontends = self.compiler.contents().frontends.len();
            let policies = judged.as_micros() as u64;
            info!(
                writes = count,
                frontends,
                policies_us = policies,
                compile_us = compile,
                plan_us = plan,
                apply_us = apply,
                "the kernel is in step"
            );
            self.plan_to_retire();
        } else {
            debug!(compile_us = compiled.as_micros() as u64, "nothing to write");
        }
        self.outputs.reports.compiled(
            &self.snapshot,
            self.compiler.contents(),
            self.compiler.conflicts(),
        );
        self.report_closed();
        self.conclude(&errors);
    }

    fn report_closed(&mut self) {
        let crowding = self.policies.compiler().crowding(&self.snapshot);
        self.outputs
            .reports
            .closed(&self.snapshot, self.policies.closed(), crowding);
    }

    /// V21: whether the hooks of sockets serve is known when they were to be attached.
    fn ask_for_gate(&self) {
        let spec = match self.plane.sockets().why_not() {
            Some(_) => {
                let sources = &self.outputs.wanted.borrow().node_addresses;
                GateSpec::of(
                    &self.compiler.contents().ranges,
                    &self.snapshot.links,
                    sources,
                )
            }
            None => GateSpec::default(),
        };
        self.outputs
            .gate
            .send_if_modified(|before| before.replace(spec.clone()) != Some(spec));
    }

    fn look_at_links(&mut self, found: &Found) {
        let mut links = found.links.clone();
        for (index, device) in &mut links.devices {
            device.flags |= self.plane.device_flags(*index);
        }
        self.touched.record_links(&self.snapshot.links, &links);
        self.snapshot.links = links;
    }

    fn conclude(&mut self, errors: &[anyhow::Error]) {
        if let Some(error) = errors.first() {
            warn!(
                refused = errors.len(),
                error = format!("{error:#}"),
                "the kernel refused writes; trying again"
            );
            errors
                .iter()
                .for_each(|_| self.outputs.metrics.write_failed());
            self.placed = Placed::Partly;
            self.retry_at = Some(Instant::now() + RETRY);
            return;
        }
        self.placed = Placed::Wholly;
        self.outputs.reports.settled(Timestamp::now());
        self.outputs
            .vitals
            .send_modify(|vitals| vitals.update(Instant::now()));
    }

    /// Until the writes are done flows may lead to old and to new backends.
    fn announce_serving(&self) -> BTreeMap<Arc<str>, BTreeSet<SocketAddr>> {
        let serving = serving_endpoints(&self.snapshot.state);
        let either = self.serving_by_id(&serving);
        self.outputs.serving.send_if_modified(|now| {
            let Some(before) = now else { return false };
            let both = either.or(before);
            let changed = both != **before;
            *now = Some(Arc::new(both));
            changed
        });
        serving
    }

    fn settle_serving(&self, serving: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>) {
        let now = self.serving_by_id(&serving);
        self.outputs.serving.send_if_modified(|old| {
            let changed = old.as_deref() != Some(&now);
            *old = Some(Arc::new(now));
            changed
        });
    }

    fn serving_by_id(&self, serving: &BTreeMap<Arc<str>, BTreeSet<SocketAddr>>) -> Serving {
        let by_id = |(name, endpoints): (&Arc<str>, &BTreeSet<SocketAddr>)| {
            Some((self.actual.id_of(name)?, endpoints.clone()))
        };
        Serving {
            endpoints: serving.iter().filter_map(by_id).collect(),
            unknown_from: self.actual.next_id(),
        }
    }

    /// No program is left that may be using what was idle.
    fn retire(&mut self) {
        self.programs = None;
        let writes = retire_those(&std::mem::take(&mut self.idle), &self.actual);
        let count = writes.len();
        let mut errors = self.plane.apply(writes, &mut self.actual);
        errors.extend(self.policies.rest(&mut self.plane));
        self.report_closed();
        for error in &errors {
            warn!(
                error = format!("{error:#}"),
                "something that is not used any more stays in a map"
            );
        }
        debug!(writes = count, "retired what nothing refers to");
        if errors.is_empty() {
            self.plan_to_retire();
        }
    }

    /// Plans to retire the entries that are unused now, once the programs that run now have ended,
    /// unless that is planned already.
    fn plan_to_retire(&mut self) {
        if self.programs.is_none() {
            self.idle = self.actual.idle();
            let resting = self.idle != Idle::default() || self.policies.is_resting();
            self.programs = resting.then(|| {
                tokio::task::spawn_blocking(|| {
                    std::thread::sleep(GATHER);
                    wait_for_programs();
                })
            });
        }
    }
}

/// Until it has ended; for ever where there is nothing to wait for.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        // It does not panic, and nobody aborts it but the end of everything.
        Some(task) => _ = task.await,
        None => std::future::pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Returns true if an update may change the inputs of `links`.
fn concerns_links(update: &Update, snapshot: &Snapshot) -> bool {
    match update {
        Update::Apply(Object::Pod(name, pod)) => {
            let ours = Some(&snapshot.settings.node_name);
            pod.node.as_ref() == ours
                || snapshot
                    .state
                    .pods
                    .get(name)
                    .is_some_and(|old| old.node.as_ref() == ours)
        }
        Update::Apply(object) => object.reference().kind == Kind::Node,
        Update::Synced => true,
        other @ (Update::Flawed(..)
        | Update::Delete(_)
        | Update::Invalid(_)
        | Update::Connection(_)) => other
            .object()
            .is_some_and(|object| matches!(object.kind, Kind::Pod | Kind::Node)),
    }
}

/// Returns the inputs of `links`.
pub fn wanted(snapshot: &Snapshot, devices: Vec<String>) -> Wanted {
    let Snapshot {
        settings, state, ..
    } = snapshot;
    let own = ObjectName::cluster(&settings.node_name);
    let addresses = |node: &Node| {
        if node.internal_ips.is_empty() {
            node.external_ips.clone()
        } else {
            node.internal_ips.clone()
        }
    };
    let others = state
        .nodes
        .iter()
        .filter(|(name, _)| **name != own)
        .flat_map(|(_, node)| &node.pod_cidrs);
    Wanted {
        devices,
        node_addresses: state.nodes.get(&own).map(addresses).unwrap_or_default(),
        pod_cidrs: settings
            .cluster_cidrs
            .iter()
            .chain(others)
            .copied()
            .collect(),
        own_pod_cidrs: state
            .nodes
            .get(&own)
            .map(|node| node.pod_cidrs.clone())
            .unwrap_or_default(),
        pods: local_pods(state, &settings.node_name),
    }
}

/// Addresses of pods of this node that have a network of their own.
fn local_pods(state: &State, node: &Arc<str>) -> BTreeSet<IpAddr> {
    state
        .pods
        .values()
        .filter(|pod: &&crate::model::Pod| {
            pod.node.as_ref() == Some(node) && !pod.host_network && !pod.finished()
        })
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect()
}

/// V14: the endpoints that serve, of each service port that speaks UDP, by its name in the kernel.
pub fn serving_endpoints(state: &State) -> BTreeMap<Arc<str>, BTreeSet<SocketAddr>> {
    let udp = state.services.iter().filter(|(_, service)| {
        service
            .ports
            .iter()
            .any(|port| port.protocol == Protocol::UDP)
    });
    let names: BTreeSet<_> = udp.clone().map(|(name, _)| name).collect();
    let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in state
        .slices
        .values()
        .filter(|slice| names.contains(&slice.service))
    {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut serving = BTreeMap::new();
    for (name, service) in udp {
        let slices = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        for port in service
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::UDP)
        {
            let endpoints = crate::compile::serving_endpoints(service, port, slices);
            serving.insert(crate::compile::service_port_name(name, port), endpoints);
        }
    }
    serving
}

#[cfg(test)]
mod tests;
