//! The verdicts: rows of port sets by class, in chunks of the matrix or, where there is no room, in a hash.

mod fill;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proxy_common::policy::{CHUNK_CLASSES, CHUNKS, NO_CLASS, PortSet, Row, VerdictKey};

use super::resting::Resting;
use super::sets::Sets;
use super::write::PolicyWrite;
use crate::contents::policies::{self as symbolic, Class, Peers};

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
}
