//! Brings the kernel in step with the snapshot: attaches programs, compiles, places, writes, and
//! retires entries that nothing refers to.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::reports::seconds;
use super::{Placed, RETRY, Sync, TARGET};
use crate::conntrack;
use crate::dataplane::wait_for_programs;
use crate::gate::GateSpec;
use crate::links::Found;
use crate::metrics::Pass;
use crate::place::{Idle, place, place_delta, retire_those};

/// Time for which unused entries are collected before a grace period begins, after which no program
/// uses them.
const GATHER: Duration = Duration::from_millis(10);
impl Sync {
    pub(super) fn attach(&mut self, found: &Found) -> Result<()> {
        for error in self
            .plane
            .attach(&found.devices())
            .context("attach programs")?
        {
            warn!(
                target: TARGET,
                error = format!("{error:#}"),
                "a device has no program"
            );
        }
        Ok(())
    }

    /// Takes over connections that are older than the first program, so that their replies pass
    /// (P25).
    pub(super) fn adopt(&mut self) {
        if !self.plane.is_first() {
            return;
        }
        let adopted = conntrack::tracked()
            .and_then(|connections| self.plane.adopt(self.compiler.contents(), &connections));
        match adopted {
            Ok(connections) => info!(
                target: TARGET,
                connections,
                "took over connections that pods had before"
            ),
            Err(error) => {
                let error = format!("{error:#}");
                warn!(
                    target: TARGET,
                    error,
                    "cannot take over connections from before: their replies to isolated pods are denied"
                );
            }
        }
    }

    /// Compiles the snapshot with the found network and writes the difference to the maps.
    pub(super) fn bring_in_step(&mut self, found: &Found) {
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
        let departed = policies.take_departed();
        if !departed.is_empty() {
            // Without a sweep there are no flows to end either.
            _ = self.outputs.departed.send(departed);
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
                target: TARGET,
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
            debug!(
                target: TARGET,
                compile_us = compiled.as_micros() as u64,
                "nothing to write"
            );
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

    /// Asks for a gate where hooks of sockets could not be attached (V21). Called after the
    /// attempt.
    pub(super) fn ask_for_gate(&self) {
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
                target: TARGET,
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

    /// Removes the idle entries. No program that may use them runs any more.
    pub(super) fn retire(&mut self) {
        self.programs = None;
        let writes = retire_those(&std::mem::take(&mut self.idle), &self.actual);
        let count = writes.len();
        let mut errors = self.plane.apply(writes, &mut self.actual);
        errors.extend(self.policies.rest(&mut self.plane));
        self.report_closed();
        for error in &errors {
            warn!(
                target: TARGET,
                error = format!("{error:#}"),
                "an entry that is not used any more stays in a map"
            );
        }
        debug!(target: TARGET, writes = count, "removed unused entries");
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
