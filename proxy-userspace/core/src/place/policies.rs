//! Turns NetworkPolicy in symbols into writes of the kernel's tables, in an order in which every
//! packet gets the verdict of the old or of the new state (P32).
//!
//! Each agent has its own tables, which its programs use from their first packet on: nothing is
//! taken over from an earlier agent.

mod directory;
mod matrix;
mod pod_ids;
mod pods;
mod resting;
mod sets;
mod steps;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::policy::{NO_CLASS, PodRows};

use self::directory::Directory;
use self::matrix::Matrix;
use self::pod_ids::PodIds;
use self::steps::{Leaving, Move, Steps};
use crate::contents::policies::{
    self as symbolic, Class, Isolation, PodPolicy, Policies, PolicyDelta,
};
use crate::model::ObjectName;

pub use write::{PolicyWrite, Room};

/// A mirror of the policy tables, with the numbers of pods, rows and classes.
#[derive(Debug, Default)]
pub struct PolicyTables {
    directory: Directory,
    matrix: Matrix,
    /// The class of each prefix.
    classes: BTreeMap<IpNet, u32>,
    pods: BTreeMap<ObjectName, Known>,
    pod_ids: PodIds,
    /// Pairs of classes: that of addresses without room in the tables, and the one that is found
    /// for them instead (P34).
    mismatched: BTreeSet<(u32, u32)>,
    /// While such a change is written: the classes that addresses may have meanwhile.
    transient: BTreeSet<u32>,
    /// The pods with a policy that could not be represented (P34).
    closed: BTreeSet<ObjectName>,
}

/// A pod in the tables.
#[derive(Debug)]
struct Known {
    pod_id: u32,
    rows: PodRows,
    policy: PodPolicy,
}

impl PolicyTables {
    /// Makes empty tables of this size.
    pub fn with_room(room: Room) -> Self {
        Self {
            directory: Directory::new(room),
            matrix: Matrix::new(room.chunks),
            ..Self::default()
        }
    }

    /// Gives pods the pod_ids that their addresses have in `before`, if these are free.
    #[must_use]
    pub fn with_pod_ids(self, before: BTreeMap<IpAddr, u32>) -> Self {
        Self {
            pod_ids: PodIds::with_earlier(before),
            ..self
        }
    }

    /// Returns the writes that bring the tables to `policies`, which differ by `delta` from their
    /// present state. The mirror changes at once.
    ///
    /// First come elements that are not referred to yet, then addresses' classes, then pods' rows,
    /// then elements that are not referred to any more. If pods get other rows and addresses get
    /// other classes in one change, the addresses pass through bridges: classes that equal the old
    /// class in the old rows and the new class in the new rows.
    pub fn place(&mut self, policies: &Policies, delta: &PolicyDelta) -> Vec<PolicyWrite> {
        let mut writes = Vec::new();
        let leaving = if delta.classes.is_empty() {
            Leaving::new()
        } else {
            self.leaving(policies, delta)
        };
        self.make_room(policies, delta, !leaving.is_empty(), &mut writes);
        self.part(&leaving, &mut writes);
        let mut steps = Steps::default();
        let moves = self.number_classes(policies, delta, &mut writes);
        for name in &delta.pods {
            self.pod(
                name,
                policies.pods.get(name),
                &leaving,
                &mut writes,
                &mut steps,
            );
        }
        self.directory.begin();
        if !leaving.is_empty() {
            self.bridge(policies, &moves, &mut writes, &mut steps);
        }
        steps.transient.extend(self.transient_classes(&moves));
        self.move_addresses(moves, &mut steps.moves);
        self.directory.place_unplaced(&mut steps.moves);
        // Rows that have to be closed are found before an address moves; they open again only
        // after.
        let mismatched = self.directory.mismatched();
        let overflows = self.directory.overflows();
        if overflows {
            steps.transient.extend(
                self.mismatched
                    .iter()
                    .chain(&mismatched)
                    .flat_map(|(wanted, found)| [*wanted, *found]),
            );
            self.transient = std::mem::take(&mut steps.transient);
        }
        self.write_moved_rows(&mut writes);
        self.correct(&mut steps.flips);
        writes.append(&mut steps.bridges);
        if leaving.is_empty() {
            writes.append(&mut steps.moves);
            writes.append(&mut steps.flips);
        } else {
            writes.append(&mut steps.flips);
            writes.append(&mut steps.moves);
        }
        writes.append(&mut steps.ends);
        self.matrix.end_parting();
        if overflows {
            (self.mismatched, self.transient) = (mismatched, BTreeSet::new());
            self.write_moved_rows(&mut writes);
        }
        writes
    }

    /// Returns the rows that pods leave for others, with these pods and the direction.
    fn leaving(&self, policies: &Policies, delta: &PolicyDelta) -> Leaving {
        let mut leaving = Leaving::new();
        for name in &delta.pods {
            let (Some(known), Some(policy)) = (self.pods.get(name), policies.pods.get(name)) else {
                continue;
            };
            for (direction, (before, after)) in known
                .policy
                .directions()
                .into_iter()
                .zip(policy.directions())
                .enumerate()
            {
                if let Isolation::Rules(row) = before
                    && before != after
                {
                    leaving
                        .entry(row.clone())
                        .or_default()
                        .insert((name.clone(), direction));
                }
            }
        }
        leaving
    }

    /// Reserves the rows that some pods leave for these pods: other pods with equal rules get a
    /// copy at another place.
    fn part(&mut self, leaving: &Leaving, writes: &mut Vec<PolicyWrite>) {
        leaving.keys().for_each(|row| self.matrix.part(row));
        for (name, known) in &self.pods {
            for (direction, isolation) in known.policy.directions().into_iter().enumerate() {
                if let Isolation::Rules(row) = isolation
                    && leaving
                        .get(row)
                        .is_some_and(|pods| !pods.contains(&(name.clone(), direction)))
                {
                    self.matrix.row(row, writes);
                }
            }
        }
    }

    /// Numbers the classes. Returns the prefixes with their old and new classes.
    fn number_classes(
        &mut self,
        policies: &Policies,
        delta: &PolicyDelta,
        writes: &mut Vec<PolicyWrite>,
    ) -> Vec<Move> {
        let mut moves: Vec<_> = delta
            .classes
            .iter()
            .map(|prefix| Move {
                prefix: *prefix,
                before: self.classes.get(prefix).copied(),
                after: policies
                    .classes
                    .get(prefix)
                    .map(|class| self.matrix.class(class, writes)),
            })
            .collect();
        moves.sort_by_key(Move::order);
        moves
    }

    /// Returns the classes that addresses have before, during and after these moves, apart from
    /// bridges.
    fn transient_classes(&self, moves: &[Move]) -> BTreeSet<u32> {
        let mut classes = BTreeSet::from([NO_CLASS]);
        for Move { prefix, after, .. } in moves {
            classes.extend(after);
            classes.insert(self.class_before(*prefix));
            classes.extend(prefix.supernet().map(|around| self.class_before(around)));
        }
        classes
    }

    /// Moves addresses to bridges: the old class to rows that pods are leaving, the new class to
    /// all others.
    fn bridge(
        &mut self,
        policies: &Policies,
        moves: &[Move],
        writes: &mut Vec<PolicyWrite>,
        steps: &mut Steps,
    ) {
        let mut bridges = BTreeMap::new();
        let mut bridged = Vec::new();
        for Move { prefix, .. } in moves {
            let (before, after) = self.bridge_key(policies, *prefix);
            let bridge = match bridges.get(&(before, after.clone())) {
                Some(bridge) => *bridge,
                None => self.matrix.bridge(before, &after, writes),
            };
            bridges.insert((before, after), bridge);
            bridged.push((*prefix, bridge));
        }
        bridged.sort_by_key(|(prefix, _)| u8::MAX - prefix.prefix_len());
        for (prefix, bridge) in bridged {
            self.directory.set(prefix, Some(bridge), &mut steps.bridges);
            steps.transient.insert(bridge);
        }
        bridges
            .into_values()
            .for_each(|bridge| self.matrix.end_bridge(bridge));
    }

    /// Returns the old and the new class of a prefix's addresses.
    fn bridge_key(&self, policies: &Policies, prefix: IpNet) -> (u32, Arc<Class>) {
        (
            self.class_before(prefix),
            policies
                .class_of_prefix(prefix)
                .cloned()
                .unwrap_or_default(),
        )
    }

    /// Returns the present class of a prefix's addresses that have no longer prefix.
    fn class_before(&self, prefix: IpNet) -> u32 {
        symbolic::longest(&self.classes, prefix)
            .copied()
            .unwrap_or(NO_CLASS)
    }

    fn move_addresses(&mut self, moves: Vec<Move>, writes: &mut Vec<PolicyWrite>) {
        for Move {
            prefix,
            before,
            after,
        } in moves
        {
            match after {
                Some(class) => _ = self.classes.insert(prefix, class),
                None => _ = self.classes.remove(&prefix),
            }
            self.directory.set(prefix, after, writes);
            before
                .into_iter()
                .for_each(|class| self.matrix.drop_class(class));
        }
    }

    /// Frees the resting elements. No packet may be left that began before the last writes.
    pub fn rest(&mut self) -> Vec<PolicyWrite> {
        let mut writes = Vec::new();
        self.directory.rest(&mut writes);
        self.directory.place_unplaced(&mut writes);
        self.matrix.rest(&mut writes);
        self.matrix.reopen(&mut writes);
        self.mismatched = self.directory.mismatched();
        self.pod_ids.rest();
        self.write_moved_rows(&mut writes);
        writes
    }

    /// Returns true if an element waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        self.directory.is_resting() || self.matrix.is_resting() || !self.pod_ids.resting.is_empty()
    }

    /// Returns the pod_id of each address of this node's pods.
    pub fn pod_ids(&self) -> impl Iterator<Item = (IpAddr, u32)> + '_ {
        self.pods
            .values()
            .flat_map(|pod| pod.policy.addresses.iter().map(|addr| (*addr, pod.pod_id)))
    }

    /// Returns the pod_id of a pod of this node.
    pub fn pod_id(&self, pod: &ObjectName) -> Option<u32> {
        self.pods.get(pod).map(|pod| pod.pod_id)
    }

    /// Returns the pods that are isolated from everybody because their policy could not be
    /// represented (P34).
    pub fn closed(&self) -> &BTreeSet<ObjectName> {
        &self.closed
    }

    /// Before new classes are numbered: moves rows that are too short for them to a longer place,
    /// and writes the new places to their pods.
    fn make_room(
        &mut self,
        policies: &Policies,
        delta: &PolicyDelta,
        bridged: bool,
        writes: &mut Vec<PolicyWrite>,
    ) {
        let classes = delta
            .classes
            .iter()
            .filter_map(|prefix| policies.classes.get(prefix));
        let new: BTreeSet<*const Class> = classes
            .filter(|class| !self.matrix.knows(class))
            .map(Arc::as_ptr)
            .collect();
        let bridges: BTreeSet<_> = delta
            .classes
            .iter()
            .filter(|_| bridged)
            .map(|prefix| self.bridge_key(policies, *prefix))
            .collect();
        let wanted = self.matrix.classes_with(new.len() + bridges.len());
        if self.matrix.make_room(wanted, writes) {
            self.write_moved_rows(writes);
        }
    }
}
