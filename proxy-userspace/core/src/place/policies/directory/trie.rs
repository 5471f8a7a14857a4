//! The prefixes in the tries: all of IPv6, and blocks of IPv4 that have no room for a node.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proxy_common::policy::NO_CLASS;

use super::Directory;
use super::block::{Block, WIDTHS, delete, first, last, network};
use crate::place::policies::write::PolicyWrite;

impl Directory {
    /// Tries again to place prefixes without room.
    pub fn place_unplaced(&mut self, writes: &mut Vec<PolicyWrite>) {
        for (prefix, class) in self.unplaced6.clone() {
            if self.v6.len() >= self.room.prefixes && self.exact.len() >= self.room.exact {
                break;
            }
            self.set_v6(prefix, Some(class), writes);
        }
        let blocks: BTreeSet<u32> = self
            .unplaced4
            .iter()
            .map(|(addr, _)| first(*addr, WIDTHS[0]))
            .collect();
        for base in blocks {
            if !self.trie_has(1) && self.free.is_empty() {
                break;
            }
            self.repaint(base, last(base, WIDTHS[0]), writes);
        }
    }

    /// Returns true if the trie has room for so many more elements.
    pub(super) fn trie_has(&self, room: usize) -> bool {
        self.trie.len() + self.leaving.len() + room <= self.room.prefixes
    }

    pub(super) fn set_v6(
        &mut self,
        prefix: IpNet,
        class: Option<u32>,
        writes: &mut Vec<PolicyWrite>,
    ) {
        self.unplaced6.remove(&prefix);
        let Some(class) = class else {
            if self.exact.remove(&prefix).is_some() {
                writes.push(PolicyWrite::DeleteExact(prefix.addr()));
            } else if self.v6.remove(&prefix).is_some() {
                writes.push(PolicyWrite::DeletePrefix(prefix));
            }
            return;
        };
        let in_trie = self.v6.contains_key(&prefix);
        let may_hash = prefix.prefix_len() == 128 && !in_trie && self.exact.len() < self.room.exact;
        if may_hash || self.exact.contains_key(&prefix) {
            self.exact.insert(prefix, class);
            writes.push(PolicyWrite::Exact(prefix.addr(), class));
        } else if in_trie || self.v6.len() < self.room.prefixes {
            self.v6.insert(prefix, class);
            writes.push(PolicyWrite::Prefix(prefix, class));
        } else {
            self.unplaced6.insert(prefix, class);
            self.overflows = true;
        }
    }

    /// Updates the trie's elements of a block that is looked up there, for the addresses in
    /// `dirty`. Removed prefixes are deleted at once, or lookups would still find their class.
    pub(super) fn keep_in_trie(
        &mut self,
        base: u32,
        bits: u8,
        dirty: (u32, u32),
        writes: &mut Vec<PolicyWrite>,
    ) {
        let from = (base, bits + 1).max((dirty.0, 0));
        let within = from..=(dirty.1.min(last(base, bits)), 32);
        let mut wanted: BTreeMap<_, _> = self
            .v4
            .range(within.clone())
            .map(|(key, class)| (*key, *class))
            .collect();
        wanted.insert((base, bits), self.longest(base, 0, bits, NO_CLASS));
        let there = self
            .trie
            .range(within.clone())
            .map(|(key, _)| key)
            .chain(self.leaving.range(within.clone()));
        let gone: Vec<_> = there
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.trie.remove(&key);
            self.leaving.remove(&key);
            writes.push(delete(key));
        }
        let lost: Vec<_> = self
            .unplaced4
            .range(within)
            .copied()
            .chain([(base, bits)])
            .collect();
        lost.iter().for_each(|key| _ = self.unplaced4.remove(key));
        for (key, class) in wanted {
            let before = self.trie.get(&key);
            if before == Some(&class) {
                continue;
            }
            if before.is_none() && !self.leaving.remove(&key) && !self.trie_has(1) {
                self.unplaced4.insert(key);
                self.overflows = true;
                continue;
            }
            self.trie.insert(key, class);
            writes.push(PolicyWrite::Prefix(network(key), class));
        }
    }

    /// Marks the elements of a block as leaving, since it is no longer looked up in the trie.
    /// Blocks within it that still are keep theirs.
    pub(super) fn leave_trie(&mut self, base: u32, bits: u8) {
        let within = (base, bits)..=(last(base, bits), 32);
        let Self {
            trie,
            leaving,
            late,
            unplaced4,
            elsewhere,
            ..
        } = self;
        let finer = WIDTHS.into_iter().filter(|width| *width > bits);
        let stays = |(addr, bits): &Block| {
            finer
                .clone()
                .any(|width| width <= *bits && elsewhere.contains(&(first(*addr, width), width)))
        };
        let gone: Vec<_> = trie
            .range(within.clone())
            .map(|(key, _)| *key)
            .filter(|key| !stays(key))
            .collect();
        for key in gone {
            trie.remove(&key);
            leaving.insert(key);
            late.push(key);
        }
        let lost: Vec<_> = unplaced4
            .range(within)
            .filter(|key| !stays(key))
            .copied()
            .collect();
        lost.iter().for_each(|key| _ = unplaced4.remove(key));
    }
}
