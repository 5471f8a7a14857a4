//! The policy part of a sync: compiled, placed and written before Services, so that no connection
//! is led to a pod without its policy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use crate::compile::{PolicyCompiler, Touched};
use crate::dataplane::Dataplane;
use crate::model::{ObjectName, Snapshot};
use crate::place::Actual;
use crate::place::policies::{PolicyTables, PolicyWrite, Room};

/// The policies as they are in the kernel.
pub struct PolicySync {
    compiler: PolicyCompiler,
    tables: PolicyTables,
    /// Writes that the kernel has refused, and those behind them.
    pending: VecDeque<PolicyWrite>,
    pod_ids: BTreeMap<IpAddr, u32>,
    /// Addresses that another pod has now, or none of this node.
    left: BTreeSet<IpAddr>,
}

impl PolicySync {
    /// Nothing is written yet to tables of this size; pods get the pod_ids that they had in
    /// `actual`, if those are free.
    pub fn new(actual: &Actual, room: Room) -> Self {
        let pod_ids = actual
            .pods()
            .iter()
            .map(|(addr, pod)| (*addr, pod.pod_id))
            .collect();
        let tables = PolicyTables::with_room(room).with_pod_ids(pod_ids);
        Self {
            compiler: PolicyCompiler::default(),
            tables,
            pending: VecDeque::new(),
            pod_ids: BTreeMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// Returns the compiler of policies.
    pub fn compiler(&self) -> &PolicyCompiler {
        &self.compiler
    }

    /// Brings the tables up to the snapshot; gives the number of writes, and what the kernel
    /// refused.
    pub fn bring_in_step(
        &mut self,
        snapshot: &Snapshot,
        touched: &Touched,
        plane: &mut Dataplane,
        actual: &mut Actual,
    ) -> (usize, Option<anyhow::Error>) {
        let delta = self.compiler.compile(snapshot, touched);
        let writes = self.tables.place(self.compiler.policies(), &delta);
        let count = writes.len();
        self.pending.extend(writes);
        let error = self.write(plane);
        if !delta.pods.is_empty() {
            self.assign(actual);
        }
        (count, error)
    }

    /// The grace period of what rests is over.
    pub fn rest(&mut self, plane: &mut Dataplane) -> Option<anyhow::Error> {
        // What is still to be written may lead to what rests.
        if !self.pending.is_empty() {
            return None;
        }
        self.pending.extend(self.tables.rest());
        self.write(plane)
    }

    /// The addresses that pods have left since this was last asked (P22).
    pub fn take_left(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.left)
    }

    /// Returns true if something waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        self.tables.is_resting()
    }

    fn write(&mut self, plane: &mut Dataplane) -> Option<anyhow::Error> {
        let (left, error) = plane.apply_policies(std::mem::take(&mut self.pending));
        self.pending = left;
        error
    }

    /// Pods' addresses are written with the pod_ids of their policies.
    fn assign(&mut self, actual: &mut Actual) {
        let now: BTreeMap<_, _> = self.tables.pod_ids().collect();
        self.pod_ids
            .keys()
            .filter(|addr| !now.contains_key(addr))
            .for_each(|addr| actual.assign(*addr, 0));
        let left = self
            .pod_ids
            .iter()
            .filter(|(addr, pod_id)| now.get(addr) != Some(pod_id));
        self.left.extend(left.map(|(addr, _)| *addr));
        now.iter()
            .for_each(|(addr, pod_id)| actual.assign(*addr, *pod_id));
        self.pod_ids = now;
    }

    /// Pods that nobody reaches where they are isolated, for want of room for what their policies
    /// say (P34).
    pub fn closed(&self) -> &BTreeSet<ObjectName> {
        self.tables.closed()
    }
}
