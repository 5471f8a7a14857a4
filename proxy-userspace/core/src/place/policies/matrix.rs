//! The verdicts: rows of port sets by class, in chunks of the matrix or, where there is no room, in a hash.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proxy_common::policy::{
    CHUNK_CLASSES, CHUNKS, Chunk, NO_CLASS, PortSet, Row, VERDICTS_MAX, VerdictKey,
};

use super::PolicyWrite;
use super::resting::Resting;
use super::sets::Sets;
use crate::contents::policies::{self as symbolic, Class, Peers};

const VERDICTS: usize = VERDICTS_MAX as usize;
/// Rows that would take a larger part of all chunks are hashed, so that no few take all.
const LONGEST: usize = 8;

/// A mirror of the tables of verdicts.
#[derive(Debug)]
pub struct Matrix {
    sets: Sets,
    rows: HashMap<Arc<symbolic::Row>, Placed>,
    /// Classes by number; those that are free have none.
    classes: Vec<Option<Arc<Class>>>,
    ids: HashMap<Arc<Class>, (u32, u32)>,
    /// The numbers of the classes that have these peers.
    by_peers: HashMap<Peers, BTreeSet<u32>>,
    free_classes: Vec<u32>,
    /// For how many classes rows get room: for those that come with the same change, too.
    room: u32,
    /// Chunks in use, or not to be used.
    used: Vec<bool>,
    hashed: usize,
    next_hashed: u32,
    /// Rows that pods leave in this change, with them still on it.
    leaving: Vec<(Arc<symbolic::Row>, Placed)>,
    resting: AtRest,
}

/// What nothing refers to any more, and a packet may still be using.
#[derive(Debug, Default)]
struct AtRest {
    classes: Resting<u32>,
    /// Classes that come later are nothing to them: a packet that finds such a one finds its pod's new row, too.
    rows: Resting<Placed>,
    sets: Resting<u32>,
}

/// A row in the kernel.
#[derive(Debug)]
struct Placed {
    place: Place,
    users: u32,
    /// The number of the set by class, where there is one.
    verdicts: BTreeMap<u32, u32>,
}

#[derive(Clone, Debug)]
enum Place {
    Chunks {
        first: u32,
        len: u32,
    },
    /// Each verdict is an element.
    Hashed(Row),
    /// There was no room for it: nothing is allowed (P34).
    Closed,
}

impl Place {
    fn row(&self) -> Row {
        match self {
            Self::Chunks { first, .. } => Row(*first),
            Self::Hashed(row) => *row,
            Self::Closed => Row::CLOSED,
        }
    }
    fn capacity(&self) -> u32 {
        match self {
            Self::Chunks { len, .. } => len * CHUNK_CLASSES,
            Self::Hashed(_) | Self::Closed => u32::MAX,
        }
    }
}

impl Default for Matrix {
    fn default() -> Self {
        Self::new(CHUNKS)
    }
}

impl Matrix {
    /// No rows, and so many chunks.
    pub fn new(chunks: u32) -> Self {
        let mut used = vec![false; chunks as usize];
        used[..2].fill(true);
        let none = Arc::new(Class::default());
        Self {
            sets: Sets::default(),
            rows: HashMap::new(),
            classes: vec![Some(none.clone())],
            ids: HashMap::from([(none, (NO_CLASS, 1))]),
            by_peers: HashMap::new(),
            free_classes: Vec::new(),
            room: 0,
            used,
            hashed: 0,
            next_hashed: 1,
            leaving: Vec::new(),
            resting: AtRest::default(),
        }
    }

    /// The number of a class, for one more prefix; where it is new, all rows get their verdict on it first.
    pub fn class(&mut self, class: &Arc<Class>, writes: &mut Vec<PolicyWrite>) -> u32 {
        if let Some((id, users)) = self.ids.get_mut(class) {
            *users += 1;
            return *id;
        }
        let id = self.new_class(class);
        self.ids.insert(class.clone(), (id, 1));
        self.fill_rows(id, class, writes);
        id
    }

    fn new_class(&mut self, class: &Arc<Class>) -> u32 {
        let id = self.free_classes.pop().unwrap_or_else(|| {
            self.classes.push(None);
            self.classes.len() as u32 - 1
        });
        self.classes[id as usize] = Some(class.clone());
        class
            .peers
            .iter()
            .for_each(|peers| _ = self.by_peers.entry(*peers).or_default().insert(id));
        id
    }

    fn fill_rows(&mut self, id: u32, class: &Class, writes: &mut Vec<PolicyWrite>) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.iter_mut()
            .for_each(|(row, placed)| self.fill(row, placed, id, class, writes));
        self.rows = rows;
    }

    fn fill_leaving(&mut self, id: u32, class: &Class, writes: &mut Vec<PolicyWrite>) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving
            .iter_mut()
            .for_each(|(row, placed)| self.fill(row, placed, id, class, writes));
        self.leaving = leaving;
    }

    /// One prefix less has a class.
    pub fn drop_class(&mut self, id: u32) {
        let Some(class) = self.classes.get(id as usize).cloned().flatten() else {
            return;
        };
        let Some((_, users)) = self.ids.get_mut(&class) else {
            return;
        };
        *users -= 1;
        if *users == 0 && id != NO_CLASS {
            self.ids.remove(&class);
            self.resting.classes.push(id);
        }
    }

    /// The place of a row, for one more pod and direction; where it is new it is filled first.
    pub fn row(&mut self, row: &Arc<symbolic::Row>, writes: &mut Vec<PolicyWrite>) -> Row {
        if row.rules.is_empty() {
            return Row::CLOSED;
        }
        if let Some(placed) = self.rows.get_mut(row) {
            placed.users += 1;
            return placed.place.row();
        }
        let placed = self.place(row, 1, writes);
        let number = placed.place.row();
        self.rows.insert(row.clone(), placed);
        number
    }

    /// One pod and direction less has a row.
    pub fn drop_row(&mut self, row: &Arc<symbolic::Row>) {
        let Some(placed) = self.rows.get_mut(row) else {
            return;
        };
        placed.users -= 1;
        if placed.users == 0
            && let Some(placed) = self.rows.remove(row)
        {
            self.resting.rows.push(placed);
        }
    }

    /// Pods are leaving a row, and still on it; who asks for it gets another place.
    pub fn part(&mut self, row: &Arc<symbolic::Row>) {
        self.leaving
            .extend(self.rows.remove(row).map(|placed| (row.clone(), placed)));
    }

    /// Nobody will be on them any more.
    pub fn end_parting(&mut self) {
        self.resting
            .rows
            .extend(self.leaving.drain(..).map(|(_, placed)| placed));
    }

    /// A number that means the class `before` to rows that pods are leaving, and the class `after` to all others.
    pub fn bridge(
        &mut self,
        before: u32,
        after: &Arc<Class>,
        writes: &mut Vec<PolicyWrite>,
    ) -> u32 {
        let id = self.new_class(after);
        self.fill_rows(id, after, writes);
        let old = self
            .classes
            .get(before as usize)
            .cloned()
            .flatten()
            .unwrap_or_default();
        self.fill_leaving(id, &old, writes);
        id
    }

    /// No address has the number any more.
    pub fn end_bridge(&mut self, id: u32) {
        self.resting.classes.push(id);
    }

    /// Where a row is now.
    pub fn where_is(&self, row: &Arc<symbolic::Row>) -> Row {
        self.rows
            .get(row)
            .map_or(Row::CLOSED, |placed| placed.place.row())
    }

    /// Gives rows that have no room for another class a larger place, and tells whether there were any: their pods have to be told before an
    /// address gets that class.
    pub fn make_room(&mut self, classes: u32, writes: &mut Vec<PolicyWrite>) -> bool {
        self.room = classes;
        let small = self
            .rows
            .iter()
            .filter(|(_, placed)| placed.place.capacity() < classes);
        let small: Vec<_> = small.map(|(row, _)| row.clone()).collect();
        for row in &small {
            let Some(before) = self.rows.remove(row) else {
                continue;
            };
            let placed = self.place_for(row, before.users, classes, writes);
            self.resting.rows.push(before);
            self.rows.insert(row.clone(), placed);
        }
        !small.is_empty()
    }

    /// How many classes there will be with `more` new ones.
    pub fn classes_with(&self, more: usize) -> u32 {
        (self.classes.len() + more.saturating_sub(self.free_classes.len())) as u32
    }

    /// Whether a class has a number already.
    pub fn knows(&self, class: &Arc<Class>) -> bool {
        self.ids.contains_key(class)
    }

    /// Whether a row had to be closed for want of room (P34).
    pub fn is_closed(&self, row: &Arc<symbolic::Row>) -> bool {
        self.rows
            .get(row)
            .is_some_and(|placed| matches!(placed.place, Place::Closed))
    }

    /// Whether a row's verdicts on these classes are not all the same.
    pub fn tells_apart<'a>(
        &self,
        row: &Arc<symbolic::Row>,
        classes: impl IntoIterator<Item = &'a u32>,
    ) -> bool {
        let Some(placed) = self.rows.get(row) else {
            return false;
        };
        let mut verdicts = classes
            .into_iter()
            .map(|class| placed.verdicts.get(class).unwrap_or(&PortSet::NONE));
        verdicts
            .next()
            .is_some_and(|first| verdicts.any(|verdict| verdict != first))
    }

    /// Looks whether there is room by now for rows that had to be closed; their pods have to be told.
    pub fn reopen(&mut self, writes: &mut Vec<PolicyWrite>) {
        let closed = self
            .rows
            .iter()
            .filter(|(_, placed)| matches!(placed.place, Place::Closed));
        let closed: Vec<_> = closed
            .map(|(row, placed)| (row.clone(), placed.users))
            .collect();
        for (row, users) in closed {
            let placed = self.place(&row, users, writes);
            self.rows.insert(row, placed);
        }
    }

    /// No packet is left that began before the last writes.
    pub fn rest(&mut self, writes: &mut Vec<PolicyWrite>) {
        let AtRest {
            classes,
            rows,
            sets,
        } = &mut self.resting;
        let (classes, rows, sets) = (classes.rested(), rows.rested(), sets.rested());
        for id in &classes {
            for peers in self.classes[*id as usize]
                .take()
                .iter()
                .flat_map(|class| &class.peers)
            {
                if let Some(ids) = self.by_peers.get_mut(peers)
                    && ids.remove(id)
                    && ids.is_empty()
                {
                    self.by_peers.remove(peers);
                }
            }
        }
        self.free_classes.extend(classes);
        self.free_classes.sort_unstable_by(|a, b| b.cmp(a));
        self.sets.put_back(sets);
        for placed in rows {
            placed
                .verdicts
                .values()
                .for_each(|set| self.sets.drop(*set, &mut self.resting.sets));
            match placed.place {
                Place::Chunks { first, len } => {
                    self.used[first as usize..(first + len) as usize].fill(false)
                }
                Place::Hashed(row) => {
                    self.hashed -= placed.verdicts.len();
                    writes.extend(
                        placed
                            .verdicts
                            .into_keys()
                            .map(|class| PolicyWrite::Unhash(VerdictKey { row, class })),
                    );
                }
                Place::Closed => {}
            }
        }
    }

    /// Whether something waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        let AtRest {
            classes,
            rows,
            sets,
        } = &self.resting;
        !(classes.is_empty() && rows.is_empty() && sets.is_empty())
    }

    fn place(
        &mut self,
        row: &Arc<symbolic::Row>,
        users: u32,
        writes: &mut Vec<PolicyWrite>,
    ) -> Placed {
        self.place_for(row, users, self.room.max(self.classes.len() as u32), writes)
    }

    fn place_for(
        &mut self,
        row: &symbolic::Row,
        users: u32,
        classes: u32,
        writes: &mut Vec<PolicyWrite>,
    ) -> Placed {
        let mut memo = Memo::new(row);
        let mut verdicts = BTreeMap::new();
        for id in self.concerned(row) {
            let Some(class) = self.classes[id as usize].clone() else {
                continue;
            };
            let Some(set) = memo.towards(&class, &mut self.sets, writes) else {
                return self.nowhere(users, &verdicts);
            };
            if set != PortSet::NONE {
                verdicts.insert(id, set);
            }
        }
        let chunks = classes.div_ceil(CHUNK_CLASSES).max(1);
        let place = match self.chunks(chunks) {
            Some(first) => {
                for index in 0..chunks {
                    let mut chunk: Box<Chunk> = Box::new([0; CHUNK_CLASSES as usize]);
                    let from = index * CHUNK_CLASSES;
                    for (class, set) in verdicts.range(from..from + CHUNK_CLASSES) {
                        chunk[(class - from) as usize] = *set as u16;
                    }
                    writes.push(PolicyWrite::Chunk(first + index, chunk));
                }
                Place::Chunks { first, len: chunks }
            }
            None => self.hash(&verdicts, writes),
        };
        if matches!(place, Place::Closed) {
            self.nowhere(users, &verdicts)
        } else {
            Placed {
                place,
                users,
                verdicts,
            }
        }
    }

    /// A row that has no room. Sets that only its verdicts have are free at once: no packet was led to them.
    fn nowhere(&mut self, users: u32, verdicts: &BTreeMap<u32, u32>) -> Placed {
        let mut unseen = Vec::new();
        verdicts
            .values()
            .for_each(|set| self.sets.drop(*set, &mut unseen));
        self.sets.put_back(unseen);
        Placed {
            place: Place::Closed,
            users,
            verdicts: BTreeMap::new(),
        }
    }

    fn hash(&mut self, verdicts: &BTreeMap<u32, u32>, writes: &mut Vec<PolicyWrite>) -> Place {
        if self.hashed + verdicts.len() > VERDICTS {
            return Place::Closed;
        }
        let row = Row(Row::HASHED | self.next_hashed);
        self.next_hashed = (self.next_hashed + 1) & !Row::HASHED;
        writes.extend(
            verdicts
                .iter()
                .map(|(class, set)| PolicyWrite::Hashed(VerdictKey { row, class: *class }, *set)),
        );
        self.hashed += verdicts.len();
        Place::Hashed(row)
    }

    /// One row's verdict on a new class.
    fn fill(
        &mut self,
        row: &symbolic::Row,
        placed: &mut Placed,
        id: u32,
        class: &Class,
        writes: &mut Vec<PolicyWrite>,
    ) {
        debug_assert!(
            id < placed.place.capacity(),
            "every row that pods are on was given room"
        );
        // Most classes are nothing to most rows, and have never been.
        let concerns = |peers: &Peers| *peers == Peers::EVERYBODY || class.peers.contains(peers);
        if !placed.verdicts.contains_key(&id) && !row.rules.keys().any(concerns) {
            return;
        }
        let mut memo = Memo::new(row);
        let set = memo.towards(class, &mut self.sets, writes);
        let room = self.hashed < VERDICTS;
        match (&mut placed.place, set) {
            (Place::Closed, set) => {
                set.into_iter()
                    .for_each(|set| self.sets.drop(set, &mut self.resting.sets));
                return;
            }
            (Place::Chunks { first, .. }, Some(set)) => writes.push(PolicyWrite::Verdict {
                chunk: *first + id / CHUNK_CLASSES,
                class: id % CHUNK_CLASSES,
                set: set as u16,
            }),
            (Place::Hashed(row), Some(PortSet::NONE)) => {
                if placed.verdicts.contains_key(&id) {
                    self.hashed -= 1;
                    writes.push(PolicyWrite::Unhash(VerdictKey {
                        row: *row,
                        class: id,
                    }));
                }
            }
            (Place::Hashed(row), Some(set)) if room => {
                self.hashed += usize::from(!placed.verdicts.contains_key(&id));
                writes.push(PolicyWrite::Hashed(
                    VerdictKey {
                        row: *row,
                        class: id,
                    },
                    set,
                ));
            }
            // What cannot be said of one class closes the row (P34).
            (_, set) => {
                set.into_iter()
                    .for_each(|set| self.sets.drop(set, &mut self.resting.sets));
                let closed = Placed {
                    place: Place::Closed,
                    users: placed.users,
                    verdicts: BTreeMap::new(),
                };
                let before = std::mem::replace(placed, closed);
                self.resting.rows.push(before);
                return;
            }
        }
        let set = set.filter(|set| *set != PortSet::NONE);
        let before = match set {
            Some(set) => placed.verdicts.insert(id, set),
            None => placed.verdicts.remove(&id),
        };
        before
            .into_iter()
            .for_each(|before| self.sets.drop(before, &mut self.resting.sets));
    }

    /// The classes that a row may have a verdict on.
    fn concerned(&self, row: &symbolic::Row) -> BTreeSet<u32> {
        if row.rules.contains_key(&Peers::EVERYBODY) {
            return (0..self.classes.len() as u32).collect();
        }
        row.rules
            .keys()
            .filter_map(|peers| self.by_peers.get(peers))
            .flatten()
            .copied()
            .collect()
    }

    /// So many chunks side by side; the first of them.
    fn chunks(&mut self, len: u32) -> Option<u32> {
        let len = len as usize;
        if len > self.used.len() / LONGEST {
            return None;
        }
        let first = self
            .used
            .windows(len)
            .position(|chunks| chunks.iter().all(|used| !used))?;
        self.used[first..first + len].fill(true);
        Some(first as u32)
    }
}

/// One row's verdicts by which of its rules apply: most classes agree.
struct Memo<'a> {
    row: &'a symbolic::Row,
    named: bool,
    known: HashMap<Vec<u64>, u32>,
    /// Every verdict so far could be said.
    fits: bool,
}

impl<'a> Memo<'a> {
    fn new(row: &'a symbolic::Row) -> Self {
        let named = row.rules.values().any(|ports| !ports.named.is_empty());
        Self {
            row,
            named,
            known: HashMap::new(),
            fits: true,
        }
    }

    /// The number of the set that the row allows towards a class, for one more element; `None` if there is no room for it.
    fn towards(
        &mut self,
        class: &Class,
        sets: &mut Sets,
        writes: &mut Vec<PolicyWrite>,
    ) -> Option<u32> {
        if self.named {
            let set = sets.number(&self.row.towards(class), writes);
            self.fits &= set.is_some();
            return set;
        }
        let mut mask = vec![0; self.row.rules.len().div_ceil(64)];
        for (index, peers) in self.row.rules.keys().enumerate() {
            if *peers == Peers::EVERYBODY || class.peers.contains(peers) {
                mask[index / 64] |= 1 << (index % 64);
            }
        }
        if let Some(set) = self.known.get(&mask) {
            sets.again(*set);
            return Some(*set);
        }
        let set = sets.number(&self.row.towards(class), writes);
        self.fits &= set.is_some();
        self.known.insert(mask, set?);
        set
    }
}
