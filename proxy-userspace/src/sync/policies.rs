//! The policy part of a sync: compiled, placed and written before Services, so that no connection
//! reaches a pod without its policy.

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
    /// Writes that the kernel has refused, and those after them.
    pending: VecDeque<PolicyWrite>,
    pod_ids: BTreeMap<IpAddr, u32>,
    /// Addresses that another pod has now, or no pod of this node.
    departed: BTreeSet<IpAddr>,
}

impl PolicySync {
    /// Returns the state before the first write, to tables of this size. Pods keep the ids that
    /// they have in `actual`, if those are free.
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
            departed: BTreeSet::new(),
        }
    }

    /// Returns the compiler of policies.
    pub fn compiler(&self) -> &PolicyCompiler {
        &self.compiler
    }

    /// Brings the tables up to the snapshot. Returns the number of writes and the kernel's first
    /// error.
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

    /// Frees the resting rows; called after their grace period. Returns the kernel's first error.
    pub fn rest(&mut self, plane: &mut Dataplane) -> Option<anyhow::Error> {
        // Pending writes may refer to resting rows.
        if !self.pending.is_empty() {
            return None;
        }
        self.pending.extend(self.tables.rest());
        self.write(plane)
    }

    /// Takes the addresses that departed since the last call (P22).
    pub fn take_departed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.departed)
    }

    /// Returns true if something waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        self.tables.is_resting()
    }

    fn write(&mut self, plane: &mut Dataplane) -> Option<anyhow::Error> {
        let (refused, error) = plane.apply_policies(std::mem::take(&mut self.pending));
        self.pending = refused;
        error
    }

    /// Assigns the pods' ids to their addresses.
    fn assign(&mut self, actual: &mut Actual) {
        let now: BTreeMap<_, _> = self.tables.pod_ids().collect();
        self.pod_ids
            .keys()
            .filter(|addr| !now.contains_key(addr))
            .for_each(|addr| actual.assign(*addr, 0));
        let departed = self
            .pod_ids
            .iter()
            .filter(|(addr, pod_id)| now.get(addr) != Some(pod_id));
        self.departed.extend(departed.map(|(addr, _)| *addr));
        now.iter()
            .for_each(|(addr, pod_id)| actual.assign(*addr, *pod_id));
        self.pod_ids = now;
    }

    /// Returns the pods that are closed where they are isolated, since the tables have no room for
    /// their policies (P34).
    pub fn closed(&self) -> &BTreeSet<ObjectName> {
        self.tables.closed()
    }
}
