//! The verdicts: rows of port sets by class, in chunks of the matrix or, if there is no room, in a
//! hash.

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
    /// Classes by number; `None` for free numbers.
    classes: Vec<Option<Arc<Class>>>,
    ids: HashMap<Arc<Class>, (u32, u32)>,
    /// The numbers of the classes that have these peers.
    by_peers: HashMap<Peers, BTreeSet<u32>>,
    free_classes: Vec<u32>,
    /// Number of classes that new rows get room for, including those of the present change.
    room: u32,
    /// Chunks that are in use, or reserved.
    used: Vec<bool>,
    hashed: usize,
    next_hashed: u32,
    /// Rows that pods leave in this change. The pods still use them.
    leaving: Vec<(Arc<symbolic::Row>, Placed)>,
    resting: AtRest,
}

/// Elements that nothing refers to any more, but that packets may still be reading.
#[derive(Debug, Default)]
struct AtRest {
    classes: Resting<u32>,
    /// They need no verdicts on later classes: a packet that finds a later class finds its pod's
    /// new row, too.
    rows: Resting<Placed>,
    sets: Resting<u32>,
}

/// A row in the kernel.
#[derive(Debug)]
struct Placed {
    place: Place,
    users: u32,
    /// The number of the set for each class that has one.
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
    /// Makes tables without rows, with so many chunks.
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

    /// Returns the number of a class, for one more prefix. A new class gets its verdict in all rows
    /// first.
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

    /// Removes one prefix from the users of a class.
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

    /// Returns the place of a row, for one more pod and direction. A new row is filled first.
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

    /// Removes one pod and direction from the users of a row.
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

    /// Reserves a row for the pods that leave it. The next user of an equal row gets another place.
    pub fn part(&mut self, row: &Arc<symbolic::Row>) {
        self.leaving
            .extend(self.rows.remove(row).map(|placed| (row.clone(), placed)));
    }

    /// Frees the rows that were reserved for pods that leave.
    pub fn end_parting(&mut self) {
        self.resting
            .rows
            .extend(self.leaving.drain(..).map(|(_, placed)| placed));
    }

    /// Returns a number that equals the class `before` in rows that pods are leaving, and the class
    /// `after` in all others.
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

    /// Frees a bridge, which no address has any more.
    pub fn end_bridge(&mut self, id: u32) {
        self.resting.classes.push(id);
    }

    /// Returns the place of a row.
    pub fn where_is(&self, row: &Arc<symbolic::Row>) -> Row {
        self.rows
            .get(row)
            .map_or(Row::CLOSED, |placed| placed.place.row())
    }

    /// Moves rows that are too short for `classes` to a larger place. Returns true if there were
    /// any: the new places must be written to their pods before an address gets such a class.
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

    /// Returns the number of classes after `more` new ones.
    pub fn classes_with(&self, more: usize) -> u32 {
        (self.classes.len() + more.saturating_sub(self.free_classes.len())) as u32
    }

    /// Returns true if a class has a number already.
    pub fn knows(&self, class: &Arc<Class>) -> bool {
        self.ids.contains_key(class)
    }

    /// Returns true if a row is closed for want of room (P34).
    pub fn is_closed(&self, row: &Arc<symbolic::Row>) -> bool {
        self.rows
            .get(row)
            .is_some_and(|placed| matches!(placed.place, Place::Closed))
    }

    /// Returns true if a row has different verdicts on these classes.
    pub fn differs_on<'a>(
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

    /// Tries again to place rows that were closed. The new places must be written to their pods.
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

    /// Frees the resting elements. No packet may be left that began before the last writes.
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

    /// Returns true if an element waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        let AtRest {
            classes,
            rows,
            sets,
        } = &self.resting;
        !(classes.is_empty() && rows.is_empty() && sets.is_empty())
    }
}
