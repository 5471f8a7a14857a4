//! NetworkPolicy from symbols to the numbers of the kernel's tables, and the order of writes in which no packet gets a verdict that neither
//! the old nor the new state gives (P32).
//!
//! Every agent has tables of its own, which its programs use from their first packet on: nothing is taken over from an earlier one.

mod directory;
mod matrix;
mod resting;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, Veth};
use proxy_common::policy::{
    CHUNKS, CHUNKS_LARGE, Chunk, EXACT_MAX, MAX_PODS, NO_CLASS, NODES, NODES_LARGE, Node,
    PREFIXES_MAX, PodRows, PortSet, Row, VerdictKey, Word,
};

use self::directory::Directory;
use self::matrix::Matrix;
use self::resting::Resting;
use crate::compile::PolicyDelta;
use crate::contents::policies::{self as symbolic, Class, Isolation, PodPolicy, Policies};
use crate::model::ObjectName;

/// One change of one element of the policy tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyWrite {
    /// Of `PORTSETS`.
    Set(u32, PortSet),
    /// Of `MATRIX`, whole: a row that nobody has yet.
    Chunk(u32, Box<Chunk>),
    /// One verdict in `MATRIX`.
    Verdict {
        /// The chunk.
        chunk: u32,
        /// The class within the chunk.
        class: u32,
        /// The number of the set of ports.
        set: u16,
    },
    /// Of `VERDICTS`.
    Hashed(VerdictKey, u32),
    /// Removes from `VERDICTS`.
    Unhash(VerdictKey),
    /// Of `CLASSES4`, whole: a node that nothing leads to yet.
    Node(u32, Box<Node>),
    /// One word in `CLASSES4`: its node, its byte.
    Word(u32, u8, Word),
    /// Words side by side in one node of `CLASSES4`, which become equal.
    Words {
        /// The node.
        node: u32,
        /// The first word's byte.
        from: u8,
        /// How many.
        len: u16,
        /// What they become.
        word: Word,
    },
    /// Of `CLASSES6`.
    Exact(IpAddr, u32),
    /// Removes from `CLASSES6`.
    DeleteExact(IpAddr),
    /// Of `PREFIXES*`.
    Prefix(IpNet, u32),
    /// Removes from `PREFIXES*`.
    DeletePrefix(IpNet),
    /// Of `ROWS`: a pod's policy, by one store.
    Rows(u32, PodRows),
    /// Of `VETHS`.
    Veth(IfIndex, Veth),
    /// Removes from `VETHS`.
    DeleteVeth(IfIndex),
}

/// How much the tables take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Nodes of `CLASSES4`, roots included.
    pub nodes: u32,
    /// Chunks of `MATRIX`.
    pub chunks: u32,
    /// Elements of `CLASSES6`.
    pub exact: usize,
    /// Elements of each `PREFIXES*`.
    pub prefixes: usize,
}

impl Room {
    /// What 100,000 prefixes take.
    pub const LARGE: Self = Self {
        nodes: NODES_LARGE,
        chunks: CHUNKS_LARGE,
        exact: EXACT_MAX as usize,
        prefixes: PREFIXES_MAX as usize,
    };
}

impl Default for Room {
    fn default() -> Self {
        Self {
            nodes: NODES,
            chunks: CHUNKS,
            exact: EXACT_MAX as usize,
            prefixes: PREFIXES_MAX as usize,
        }
    }
}

/// The slot of the pods for which there is none: nothing is let through to and from them (P34).
const NO_ROOM: u32 = MAX_PODS - 1;
/// Its rows.
const CLOSED: PodRows = PodRows {
    ingress: Row::CLOSED,
    egress: Row::CLOSED,
};

/// A mirror of the policy tables, and who has which number in them.
#[derive(Debug, Default)]
pub struct PolicyTables {
    directory: Directory,
    matrix: Matrix,
    /// The class of each prefix.
    classes: BTreeMap<IpNet, u32>,
    pods: BTreeMap<ObjectName, Known>,
    slots: Slots,
    /// Classes that addresses ought to have, and what they are found as for want of room (P34).
    misled: BTreeSet<(u32, u32)>,
    /// While such are written: the classes as which addresses may be found meanwhile.
    met: BTreeSet<u32>,
    /// Whose policy could not be represented (P34).
    closed: BTreeSet<ObjectName>,
}

/// Rows that pods leave: which pods, and in which direction.
type Leaving = BTreeMap<Arc<symbolic::Row>, BTreeSet<(ObjectName, usize)>>;

/// A prefix, the class that it had of its own, and the one that it gets.
struct Move {
    prefix: IpNet,
    before: Option<u32>,
    after: Option<u32>,
}

impl Move {
    /// Longer prefixes are put before shorter ones, and shorter ones taken away before longer: so that no address falls to a prefix which it is
    /// taken out of.
    fn order(&self) -> (bool, u8) {
        let length = self.prefix.prefix_len();
        match self.after {
            Some(_) => (false, u8::MAX - length),
            None => (true, length),
        }
    }
}

/// Writes that come after all that nobody is led to yet.
#[derive(Default)]
struct Steps {
    bridges: Vec<PolicyWrite>,
    moves: Vec<PolicyWrite>,
    flips: Vec<PolicyWrite>,
    ends: Vec<PolicyWrite>,
    /// The classes as which addresses may be found on the way.
    met: BTreeSet<u32>,
}

impl Steps {
    /// Those that are not bridges.
    fn note_classes(&mut self, tables: &PolicyTables, moves: &[Move]) {
        self.met.insert(NO_CLASS);
        for Move { prefix, after, .. } in moves {
            self.met.extend(after);
            self.met.insert(tables.class_before(*prefix));
            self.met
                .extend(prefix.supernet().map(|around| tables.class_before(around)));
        }
    }
}

/// A pod as it is in the tables.
#[derive(Debug)]
struct Known {
    slot: u32,
    rows: PodRows,
    policy: PodPolicy,
}

/// Which elements of `ROWS` are in use.
#[derive(Debug)]
struct Slots {
    free: Vec<u32>,
    resting: Resting<u32>,
    next: u32,
    /// Which slots addresses had with an earlier agent.
    before: BTreeMap<IpAddr, u32>,
    taken: BTreeSet<u32>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            resting: Resting::default(),
            next: 1,
            before: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }
}

impl Slots {
    /// A slot for a pod, if there is one: that which one of its addresses had before, else any.
    fn take(&mut self, addresses: &BTreeSet<IpAddr>) -> Option<u32> {
        let had = addresses.iter().find_map(|addr| self.before.remove(addr));
        let slot = had
            .filter(|slot| (1..NO_ROOM).contains(slot) && !self.taken.contains(slot))
            .or_else(|| {
                let reserved: BTreeSet<_> = self.before.values().copied().collect();
                let fresh = (self.next..NO_ROOM)
                    .find(|slot| !self.taken.contains(slot) && !reserved.contains(slot));
                self.free.pop().or(fresh)
            })?;
        self.next = self.next.max(slot + 1).min(NO_ROOM);
        self.taken.insert(slot);
        Some(slot)
    }

    fn rest(&mut self) {
        let rested = self.resting.rested();
        rested.iter().for_each(|slot| _ = self.taken.remove(slot));
        self.free.extend(rested);
    }
}

impl PolicyTables {
    /// Empty tables of this size.
    pub fn with_room(room: Room) -> Self {
        Self {
            directory: Directory::new(room),
            matrix: Matrix::new(room.chunks),
            ..Self::default()
        }
    }

    /// Pods get the slots that their addresses have here, if those are free.
    #[must_use]
    pub fn with_slots(self, before: BTreeMap<IpAddr, u32>) -> Self {
        Self {
            slots: Slots {
                before,
                ..Slots::default()
            },
            ..self
        }
    }

    /// The writes that bring the tables from what they hold to `policies`, which differ by `delta`; the mirror is brought there at once.
    ///
    /// First what nobody is led to yet, then addresses' classes, then pods' rows, then what nobody is led to any more. Where pods get
    /// other rows and addresses other classes, these go by way of classes that mean the old one to the old rows and the new one to the new rows.
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
        steps.note_classes(self, &moves);
        self.move_addresses(moves, &mut steps.moves);
        self.directory.place_lost(&mut steps.moves);
        // Rows that have to be closed are known to be so before an address moves, and open again only after.
        let misled = self.directory.misled();
        let overflows = self.directory.overflows();
        if overflows {
            steps.met.extend(
                self.misled
                    .iter()
                    .chain(&misled)
                    .flat_map(|(wanted, found)| [*wanted, *found]),
            );
            self.met = std::mem::take(&mut steps.met);
        }
        self.tell_moved_rows(&mut writes);
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
            (self.misled, self.met) = (misled, BTreeSet::new());
            self.tell_moved_rows(&mut writes);
        }
        writes
    }

    /// What pods were to flip to was found out before the last classes came, for which their rows may have been closed.
    fn correct(&self, flips: &mut [PolicyWrite]) {
        let known: BTreeMap<u32, PodRows> = self
            .pods
            .values()
            .map(|known| (known.slot, known.rows))
            .collect();
        for flip in flips {
            if let PolicyWrite::Rows(slot, rows) = flip
                && *slot != NO_ROOM
                && let Some(known) = known.get(slot)
            {
                *rows = *known;
            }
        }
    }

    /// The rows that pods leave for others, with those pods and the direction.
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

    /// Rows that some pods leave are theirs alone from here on: who stays, or joins, gets the same rules at another place.
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

    /// Gives the classes numbers; tells which prefixes get which, and which they had.
    fn number_classes(
        &mut self,
        policies: &Policies,
        delta: &PolicyDelta,
        writes: &mut Vec<PolicyWrite>,
    ) -> Vec<Move> {
        let numbered = |prefix: &IpNet| {
            let class = policies
                .classes
                .get(prefix)
                .map(|class| self.matrix.class(class, writes));
            Move {
                prefix: *prefix,
                before: self.classes.get(prefix).copied(),
                after: class,
            }
        };
        let mut moves: Vec<_> = delta.classes.iter().map(numbered).collect();
        moves.sort_by_key(Move::order);
        moves
    }

    /// Leads addresses to classes that are the old one to rows that pods are leaving, and the new one to all others.
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
            steps.met.insert(bridge);
        }
        bridges
            .into_values()
            .for_each(|bridge| self.matrix.end_bridge(bridge));
    }

    /// What a prefix's addresses have been, and what they will be.
    fn bridge_key(&self, policies: &Policies, prefix: IpNet) -> (u32, Arc<Class>) {
        (
            self.class_before(prefix),
            policies
                .class_of_prefix(prefix)
                .cloned()
                .unwrap_or_default(),
        )
    }

    /// The class that a prefix's addresses have until now, as far as no longer prefix has them.
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

    /// No packet is left that began before the last writes: what rested may be used again.
    pub fn rest(&mut self) -> Vec<PolicyWrite> {
        let mut writes = Vec::new();
        self.directory.rest(&mut writes);
        self.directory.place_lost(&mut writes);
        self.matrix.rest(&mut writes);
        self.matrix.reopen(&mut writes);
        self.misled = self.directory.misled();
        self.slots.rest();
        self.tell_moved_rows(&mut writes);
        writes
    }

    /// Whether something waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        self.directory.is_resting() || self.matrix.is_resting() || !self.slots.resting.is_empty()
    }

    /// The slot of each address of a pod of this node.
    pub fn slots(&self) -> impl Iterator<Item = (IpAddr, u32)> + '_ {
        self.pods
            .values()
            .flat_map(|pod| pod.policy.addresses.iter().map(|addr| (*addr, pod.slot)))
    }

    /// The slot of a pod of this node.
    pub fn slot(&self, pod: &ObjectName) -> Option<u32> {
        self.pods.get(pod).map(|pod| pod.slot)
    }

    /// The pods that are isolated from everybody because their policy could not be represented (P34).
    pub fn closed(&self) -> &BTreeSet<ObjectName> {
        &self.closed
    }

    /// Before new classes are numbered: rows that end before them get a longer place, and their pods are told.
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
            self.tell_moved_rows(writes);
        }
    }

    /// Pods whose rows have another place than they know.
    fn tell_moved_rows(&mut self, writes: &mut Vec<PolicyWrite>) {
        let mut pods = std::mem::take(&mut self.pods);
        for (name, known) in &mut pods {
            let rows = self.rows_of(&known.policy);
            if rows != known.rows && known.slot != NO_ROOM {
                known.rows = rows;
                writes.push(PolicyWrite::Rows(known.slot, rows));
            }
            if self.is_closed(&known.policy) || known.slot == NO_ROOM {
                self.closed.insert(name.clone());
            } else {
                self.closed.remove(name);
            }
        }
        self.pods = pods;
    }

    fn pod(
        &mut self,
        name: &ObjectName,
        policy: Option<&PodPolicy>,
        leaving: &Leaving,
        writes: &mut Vec<PolicyWrite>,
        steps: &mut Steps,
    ) {
        let before = self.pods.remove(name);
        self.closed.remove(name);
        if let Some(policy) = policy {
            for isolation in policy.directions() {
                if let Isolation::Rules(row) = isolation {
                    self.matrix.row(row, writes);
                }
            }
            let rows = self.rows_of(policy);
            let slot = before
                .as_ref()
                .map(|known| known.slot)
                .filter(|slot| *slot != NO_ROOM)
                .or_else(|| self.slots.take(&policy.addresses));
            let (slot, rows) = slot.map_or((NO_ROOM, CLOSED), |slot| (slot, rows));
            // A node has room for more pods than the kubelet runs; what has none is told like what cannot be represented.
            if slot == NO_ROOM || self.is_closed(policy) {
                self.closed.insert(name.clone());
            }
            if before.as_ref().is_none_or(|known| known.rows != rows) {
                steps.flips.push(PolicyWrite::Rows(slot, rows));
            }
            let veth = |policy: &PodPolicy| {
                (
                    policy.device,
                    Veth {
                        pod_id: slot,
                        flags: veth_flags(policy),
                    },
                )
            };
            let same = before
                .as_ref()
                .is_some_and(|known| veth(&known.policy) == veth(policy));
            if policy.device != IfIndex::NONE && !same {
                let (device, veth) = veth(policy);
                steps.flips.push(PolicyWrite::Veth(device, veth));
            }
            self.pods.insert(
                name.clone(),
                Known {
                    slot,
                    rows,
                    policy: policy.clone(),
                },
            );
        }
        let Some(known) = before else { return };
        for (direction, isolation) in known.policy.directions().into_iter().enumerate() {
            let left = |row| {
                leaving
                    .get(row)
                    .is_some_and(|pods| pods.contains(&(name.clone(), direction)))
            };
            if let Isolation::Rules(row) = isolation
                && !left(row)
            {
                self.matrix.drop_row(row);
            }
        }
        let gone = policy.is_none_or(|policy| policy.device != known.policy.device);
        let taken = self
            .pods
            .values()
            .any(|other| other.policy.device == known.policy.device);
        if known.policy.device != IfIndex::NONE && gone && !taken {
            steps
                .ends
                .push(PolicyWrite::DeleteVeth(known.policy.device));
        }
        if policy.is_none() && known.slot != NO_ROOM {
            self.slots.resting.push(known.slot);
        }
    }

    /// Where a pod's rows are.
    fn rows_of(&self, policy: &PodPolicy) -> PodRows {
        let row = |isolation: &Isolation| match isolation {
            Isolation::None => Row::OPEN,
            Isolation::Rules(row)
                if self.is_misled(row) || self.matrix.tells_apart(row, &self.met) =>
            {
                Row::CLOSED
            }
            Isolation::Rules(row) => self.matrix.where_is(row),
        };
        PodRows {
            ingress: row(&policy.ingress),
            egress: row(&policy.egress),
        }
    }

    /// Whether a row says something else of an address than of the class as which that is found.
    fn is_misled(&self, row: &Arc<symbolic::Row>) -> bool {
        self.misled
            .iter()
            .any(|(wanted, found)| self.matrix.tells_apart(row, [wanted, found]))
    }

    /// Whether there is no room for what a pod's policies say. Then nobody is let through (P34).
    fn is_closed(&self, policy: &PodPolicy) -> bool {
        let closed = |isolation: &Isolation| match isolation {
            Isolation::None => false,
            Isolation::Rules(row) => self.is_misled(row) || self.matrix.is_closed(row),
        };
        policy.directions().into_iter().any(closed)
    }
}

fn veth_flags(policy: &PodPolicy) -> u32 {
    if policy.any_source {
        Veth::ANY_SOURCE
    } else {
        0
    }
}
