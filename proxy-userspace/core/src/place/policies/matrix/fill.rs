//! Places for rows, filled with the verdict of each class.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proxy_common::policy::{CHUNK_CLASSES, Chunk, PortSet, Row, VERDICTS_MAX, VerdictKey};

use super::{Matrix, Place, Placed};
use crate::contents::policies::{self as symbolic, Class, Peers};
use crate::place::policies::sets::Sets;
use crate::place::policies::write::PolicyWrite;

const VERDICTS: usize = VERDICTS_MAX as usize;

/// Rows that would take a larger part of all chunks (1 in so many) are hashed, so that a few rows
/// cannot take all.
const LONGEST: usize = 8;

impl Matrix {
    pub(super) fn place(
        &mut self,
        row: &Arc<symbolic::Row>,
        users: u32,
        writes: &mut Vec<PolicyWrite>,
    ) -> Placed {
        self.place_for(row, users, self.room.max(self.classes.len() as u32), writes)
    }

    pub(super) fn place_for(
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

    /// Closes a row that has no room. Sets that only its verdicts use are free at once: no packet
    /// has read them.
    pub(super) fn nowhere(&mut self, users: u32, verdicts: &BTreeMap<u32, u32>) -> Placed {
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

    pub(super) fn hash(
        &mut self,
        verdicts: &BTreeMap<u32, u32>,
        writes: &mut Vec<PolicyWrite>,
    ) -> Place {
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

    /// Adds the verdict of one row on a new class.
    pub(super) fn fill(
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
        // Most classes do not concern most rows.
        if !placed.verdicts.contains_key(&id)
            && !row.rules.keys().any(|peers| class.is_among(peers))
        {
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
            // A verdict that has no room closes the row (P34).
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

    /// Returns the classes that a row may have a verdict on.
    pub(super) fn concerned(&self, row: &symbolic::Row) -> BTreeSet<u32> {
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

    /// Returns the first of so many adjacent free chunks.
    pub(super) fn chunks(&mut self, len: u32) -> Option<u32> {
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

/// One row's verdicts by the rules that apply: most classes share them.
struct Memo<'a> {
    row: &'a symbolic::Row,
    named: bool,
    known: HashMap<Vec<u64>, u32>,
    /// True while every verdict had room.
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

    /// Returns the number of the set that the row allows for a class, for one more element; `None`
    /// if there is no room.
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
