//! The task that owns the state: takes updates, compiles, places, applies. No other task writes
//! Services to the kernel.
//!
//! Nothing is written before the first complete list of objects and the first look at the host's
//! network (V1). There is no minimum period between syncs: updates that wait are taken together.

mod cni_pods;
mod denied;
mod hooks;
mod in_step;
mod policies;
mod reports;
mod serving;
mod triggers;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::cni;
use crate::compile::{Compiler, Touched};
use crate::dataplane::{Dataplane, Denied};
use crate::gate::GateSpec;
use crate::health::Vitals;
use crate::links::{Found, Wanted};
use crate::metrics::Metrics;
use crate::model::{Changed, Snapshot, Update};
use crate::place::{Actual, Idle};
use crate::serving::Serving;
use cni_pods::CniAddresses;
use hooks::HookRetry;
use policies::PolicySync;
use reports::Change;

pub use reports::{Audience, Reports};
pub use serving::serving_endpoints;
pub use triggers::{Trigger, Triggers};
use wanted::concerns_links;

/// Log target of the whole task.
const TARGET: &str = module_path!();

/// Pause before refused writes are tried again, and the first pause before refused hooks are.
const RETRY: Duration = Duration::from_secs(5);
/// Time limit of the first sync's wait for the devices of this node's pods. No client was served
/// before, so the wait interrupts none.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Maximum number of updates that are taken together.
const BATCH: usize = 10_000;

/// The inputs of the task.
pub struct Inputs {
    /// The cluster's objects.
    pub updates: mpsc::Receiver<Update>,
    /// The host's network.
    pub found: watch::Receiver<Option<Found>>,
    /// Addresses of pods by the results of their CNI plugins (P31).
    pub cni_pods: watch::Receiver<cni::CniPods>,
    /// Connections that NetworkPolicy denies, for the log.
    pub denied: mpsc::Receiver<Denied>,
}

/// The outputs of the task.
pub struct Outputs {
    /// The inputs of `links`.
    pub wanted: watch::Sender<Wanted>,
    /// The backends that UDP flows may lead to.
    pub serving: watch::Sender<Option<Arc<Serving>>>,
    /// Departed addresses, which pods of this node had until now: their flows end (P22).
    pub departed: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    /// The state of the agent that the health check answers by.
    pub vitals: watch::Sender<Vitals>,
    /// The gate, by which processes of this node reach Services where hooks of sockets are absent
    /// (V21).
    pub gate: watch::Sender<Option<GateSpec>>,
    /// Health checks, nodePorts and warnings.
    pub reports: Reports,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The state, and the kernel's contents by it.
pub struct Sync {
    snapshot: Snapshot,
    plane: Dataplane,
    actual: Actual,
    placed: Placed,
    outputs: Outputs,
    compiler: Compiler,
    policies: PolicySync,
    cni_pods: CniAddresses,
    /// The objects that the compiler has to look at.
    touched: Touched,
    dirty: Dirty,
    /// Ends when every program has ended that ran while an entry went out of use.
    programs: Option<JoinHandle<()>>,
    /// Entries to retire after the grace period: those that were unused when it began. Later writes
    /// do not put it off.
    idle: Idle,
    retry_at: Option<Instant>,
    hooks: HookRetry,
    /// End of the first sync's wait for devices; set when everything else is there.
    first_until: Option<Instant>,
}

/// The relation between the kernel's contents and the compiled ones.
enum Placed {
    /// Nothing was written yet.
    Never,
    /// They differ, since a write was refused.
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
    /// Returns a task over the loaded data plane, with its contents and a snapshot that has the
    /// settings.
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
            cni_pods: CniAddresses::default(),
            touched,
            dirty,
            programs,
            idle: Idle::default(),
            retry_at,
            hooks: HookRetry::default(),
            first_until,
        }
    }

    /// Runs until an input ends.
    ///
    /// # Errors
    /// If an input ends, or a hook fails in a way that waiting does not mend.
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
                Ok(()) = inputs.cni_pods.changed() => {
                    let pods = inputs.cni_pods.borrow_and_update().clone();
                    self.take_cni_pods(pods);
                }
                Some(denied) = inputs.denied.recv() => {
                    denied::log(&denied, self.policies.compiler(), &self.snapshot);
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

    /// Takes the pods of CNI results, after a change.
    fn take_cni_pods(&mut self, pods: cni::CniPods) {
        let mut changed = false;
        for update in self.cni_pods.replace(pods, &self.snapshot.state) {
            changed |= self.take(update) == Changed::Yes;
        }
        if changed && self.snapshot.state.synced {
            self.ask_links();
        }
    }

    fn take(&mut self, update: Update) -> Changed {
        let update = self
            .cni_pods
            .complete(update, &self.snapshot.settings.node_name);
        let change = Change::of(&update, &self.snapshot.state);
        self.outputs.reports.count(&change);
        let mut touched = Touched::default();
        touched.record(&update);
        let changed = self.snapshot.state.apply(update);
        if changed == Changed::Yes {
            self.touched.extend(touched);
            self.outputs.reports.queue(change, Timestamp::now());
            self.record_change();
        }
        changed
    }

    fn record_change(&mut self) {
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

    fn step(&mut self, found: &mut watch::Receiver<Option<Found>>) -> Result<()> {
        if !self.snapshot.state.synced || !(self.dirty.objects || self.dirty.links) {
            return Ok(());
        }
        // Whatever woke this task, this look also takes a change of the links.
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
            // Programs of an earlier agent have served until now, perhaps from other maps.
            self.attach(&found)?;
            // Connections that have begun since then.
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

    /// Returns true if the look was for the current Node and pods. The first sync needs such a
    /// look, so that devices of an earlier agent's pods stay.
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
}

/// Waits until the task has ended; for ever without one.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        // It does not panic, and only the end of the runtime aborts it.
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

#[cfg(test)]
mod tests;
