//! The lookup of addresses' classes: for IPv4 a directory of nodes, for the rest a hash of single
//! addresses and tries of prefixes.

mod block;
mod trie;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};
use proxy_common::policy::{NO_CLASS, Node, ROOTS, Word};

use self::block::{Block, WIDTHS, delete, first, last};
use super::resting::Resting;
use super::write::{PolicyWrite, Room};
use crate::contents::policies::longest;

/// A mirror of the tables that map addresses to classes.
#[derive(Debug)]
pub struct Directory {
    room: Room,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Nodes that a packet may still be reading.
    resting: Resting<u32>,
    v4: BTreeMap<Block, u32>,
    /// Blocks without room for a node.
    elsewhere: BTreeSet<Block>,
    /// The elements of `PREFIXES4` for these blocks.
    trie: BTreeMap<Block, u32>,
    /// Other elements of it: of blocks that got a node, or lost all finer prefixes, while packets
    /// may still be reading them.
    leaving: BTreeSet<Block>,
    late: Resting<Block>,
    /// Prefixes without room in any table (P34).
    unplaced4: BTreeSet<Block>,
    unplaced6: BTreeMap<IpNet, u32>,
    /// A prefix had no room since [`Self::begin`].
    overflows: bool,
    /// Single addresses of IPv6 in the hash, and its other prefixes in the trie.
    exact: BTreeMap<IpNet, u32>,
    v6: BTreeMap<IpNet, u32>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new(Room::default())
    }
}

impl Directory {
    /// Makes tables without classes.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            nodes: vec![[Word::default(); 256]; ROOTS as usize],
            free: Vec::new(),
            resting: Resting::default(),
            v4: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            trie: BTreeMap::new(),
            leaving: BTreeSet::new(),
            late: Resting::default(),
            unplaced4: BTreeSet::new(),
            unplaced6: BTreeMap::new(),
            overflows: false,
            exact: BTreeMap::new(),
            v6: BTreeMap::new(),
        }
    }

    /// Sets the class of a prefix, or removes it.
    pub fn set(&mut self, prefix: IpNet, class: Option<u32>, writes: &mut Vec<PolicyWrite>) {
        match prefix {
            IpNet::V4(prefix) => self.set_v4(prefix, class, writes),
            IpNet::V6(_) => self.set_v6(prefix, class, writes),
        }
    }

    /// Returns, for each prefix without room, the class of its addresses and the class that is
    /// found for them instead.
    pub fn mismatched(&self) -> BTreeSet<(u32, u32)> {
        let four = self.unplaced4.iter().map(|(addr, bits)| {
            let around = (WIDTHS[0]..=*bits)
                .rev()
                .find_map(|bits| self.trie.get(&(first(*addr, bits), bits)));
            (
                self.longest(*addr, 0, *bits, NO_CLASS),
                around.copied().unwrap_or(NO_CLASS),
            )
        });
        let six = self.unplaced6.iter().map(|(prefix, class)| {
            (
                *class,
                longest(&self.v6, *prefix).copied().unwrap_or(NO_CLASS),
            )
        });
        four.chain(six)
            .filter(|(wanted, found)| wanted != found)
            .collect()
    }

    /// Begins a change.
    pub fn begin(&mut self) {
        self.overflows = !(self.unplaced4.is_empty() && self.unplaced6.is_empty());
    }

    /// Returns true if a prefix had no room since the change began, if only for a while.
    pub fn overflows(&self) -> bool {
        self.overflows
    }

    /// Frees the resting elements. No packet may be left that began before the last writes.
    pub fn rest(&mut self, writes: &mut Vec<PolicyWrite>) {
        self.free.extend(self.resting.rested());
        for block in self.late.rested() {
            if self.leaving.remove(&block) {
                writes.push(delete(block));
            }
        }
    }

    /// Returns true if an element waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        !self.resting.is_empty() || !self.late.is_empty()
    }

    fn set_v4(&mut self, prefix: Ipv4Net, class: Option<u32>, writes: &mut Vec<PolicyWrite>) {
        let (addr, bits) = (u32::from(prefix.network()), prefix.prefix_len());
        match class {
            Some(class) => _ = self.v4.insert((addr, bits), class),
            None => _ = self.v4.remove(&(addr, bits)),
        }
        self.repaint(first(addr, bits), last(addr, bits), writes);
    }

    /// Updates the words of all blocks with an address in this range.
    fn repaint(&mut self, low: u32, high: u32, writes: &mut Vec<PolicyWrite>) {
        let mut block = low >> 16;
        while block <= high >> 16 {
            let base = block << 16;
            let inherited = self.longest(base, 0, 8, NO_CLASS);
            let word = self.paint(0, base, (low, high), inherited, writes);
            self.put(block >> 8, block as u8, word, writes);
            block += 1;
            let alike = self.alike_until(0, base).min(high) >> 16;
            let class = Word::class(self.longest(base, 0, 16, NO_CLASS));
            while block <= alike {
                let until = alike.min(block | 0xff);
                let plain = self.fill_words(block >> 8, block as u8, until as u8, class, writes);
                if plain == 0 {
                    break;
                }
                block += plain;
            }
        }
    }

    /// Returns the last address of the last block with the same class as the block at `base`, apart
    /// from finer prefixes in that one. It ends where the next prefix begins or the longest one
    /// around `base` ends.
    fn alike_until(&self, level: usize, base: u32) -> u32 {
        let bits = WIDTHS[level];
        let own = last(base, bits);
        let Some(next) = own.checked_add(1) else {
            return own;
        };
        let begins = self
            .v4
            .range((next, 0)..)
            .next()
            .map_or(u32::MAX, |((addr, _), _)| {
                first(*addr, bits).wrapping_sub(1)
            });
        let from = if level == 0 { 0 } else { WIDTHS[level - 1] + 1 };
        let longest = (from..=bits)
            .rev()
            .find(|bits| self.v4.contains_key(&(first(base, *bits), *bits)));
        begins.min(longest.map_or(u32::MAX, |bits| last(base, bits)))
    }

    /// Sets words of a node to a class, up to the first word that leads to a node or to the trie.
    /// Returns the number of words.
    fn fill_words(
        &mut self,
        node: u32,
        from: u8,
        to: u8,
        class: Word,
        writes: &mut Vec<PolicyWrite>,
    ) -> u32 {
        let words = &mut self.nodes[node as usize][from.into()..=to.into()];
        let plain = words
            .iter()
            .take_while(|word| word.as_node().is_none() && **word != Word::ELSEWHERE)
            .count();
        let words = &mut words[..plain];
        if words.iter().any(|word| *word != class) {
            words.fill(class);
            writes.push(PolicyWrite::Words {
                node,
                from,
                len: plain as u16,
                word: class,
            });
        }
        plain as u32
    }

    /// Returns the class of the longest prefix around an address with `from..=to` bits; `inherited`
    /// if there is none.
    fn longest(&self, addr: u32, from: u8, to: u8, inherited: u32) -> u32 {
        let around = (from..=to)
            .rev()
            .find_map(|bits| self.v4.get(&(first(addr, bits), bits)));
        around.copied().unwrap_or(inherited)
    }

    /// Returns the word for a block. Updates the nodes behind it for the addresses in `dirty`.
    fn paint(
        &mut self,
        level: usize,
        base: u32,
        dirty: (u32, u32),
        inherited: u32,
        writes: &mut Vec<PolicyWrite>,
    ) -> Word {
        let bits = WIDTHS[level];
        let from = if level == 0 { 9 } else { WIDTHS[level - 1] + 1 };
        let class = self.longest(base, from, bits, inherited);
        let before = self.word(level, base);
        let finer = bits < 32
            && self
                .v4
                .range((base, bits + 1)..=(last(base, bits), 32))
                .next()
                .is_some();
        if !finer {
            if let Some(node) = before.as_node() {
                self.abandon(node, level + 1);
            }
            let within = self.elsewhere.range((base, bits)..=(last(base, bits), 32));
            let within: Vec<_> = within.copied().collect();
            if !within.is_empty() {
                within
                    .iter()
                    .for_each(|block| _ = self.elsewhere.remove(block));
                self.leave_trie(base, bits);
            }
            return Word::class(class);
        }
        if let Some(node) = before.as_node() {
            self.paint_within(
                level + 1,
                node,
                (dirty.0.max(base), dirty.1.min(last(base, bits))),
                class,
                writes,
            );
            return before;
        }
        // The blocks of a new node may need an element of the trie each.
        let may_move = level > 0 || before != Word::ELSEWHERE || self.trie_has(256);
        match if may_move { self.take() } else { None } {
            Some(node) => self.fill(level, base, node, class, writes),
            None => {
                let dirty = if self.elsewhere.insert((base, bits)) {
                    (base, last(base, bits))
                } else {
                    dirty
                };
                self.keep_in_trie(base, bits, dirty, writes);
                Word::ELSEWHERE
            }
        }
    }

    /// Updates the words of a node with an address in this range.
    fn paint_within(
        &mut self,
        level: usize,
        node: u32,
        dirty: (u32, u32),
        inherited: u32,
        writes: &mut Vec<PolicyWrite>,
    ) {
        let bits = WIDTHS[level];
        let byte = |addr: u32| (addr >> (32 - u32::from(bits))) as u8;
        let mut base = first(dirty.0, bits);
        loop {
            let word = self.paint(level, base, dirty, inherited, writes);
            self.put(node, byte(base), word, writes);
            let alike = self.alike_until(level, base).min(dirty.1);
            let mut done = byte(base);
            if byte(alike) > done {
                let class = Word::class(self.longest(base, WIDTHS[level - 1] + 1, bits, inherited));
                done += self.fill_words(node, done + 1, byte(alike), class, writes) as u8;
            }
            if done >= byte(dirty.1) {
                return;
            }
            base += u32::from(done - byte(base) + 1) << (32 - u32::from(bits));
        }
    }

    /// Fills a new node for a block, which nothing refers to yet.
    fn fill(
        &mut self,
        level: usize,
        base: u32,
        node: u32,
        class: u32,
        writes: &mut Vec<PolicyWrite>,
    ) -> Word {
        let (bits, child_bits) = (WIDTHS[level], WIDTHS[level + 1]);
        let byte = |addr: u32| usize::from((addr >> (32 - u32::from(child_bits))) as u8);
        let (mut words, end, mut child) =
            (Box::new([Word::default(); 256]), last(base, bits), base);
        loop {
            words[byte(child)] = self.paint(level + 1, child, (base, end), class, writes);
            let alike = self.alike_until(level + 1, child).min(end);
            words[byte(child) + 1..=byte(alike)].fill(Word::class(self.longest(
                child,
                bits + 1,
                child_bits,
                class,
            )));
            if byte(alike) == 255 {
                break;
            }
            child = last(alike, child_bits) + 1;
        }
        self.nodes[node as usize] = *words;
        writes.push(PolicyWrite::Node(node, words));
        if self.elsewhere.remove(&(base, bits)) {
            self.leave_trie(base, bits);
        }
        Word::node(node)
    }

    /// Returns the present word of a block; the default class if its parent has no node.
    fn word(&self, level: usize, base: u32) -> Word {
        let [a, b, c, d] = base.to_be_bytes();
        let root = self.nodes[usize::from(a)][usize::from(b)];
        [c, d]
            .into_iter()
            .take(level)
            .fold(root, |word, byte| match word.as_node() {
                Some(node) => self.nodes[node as usize][usize::from(byte)],
                None => Word::default(),
            })
    }

    fn put(&mut self, node: u32, byte: u8, word: Word, writes: &mut Vec<PolicyWrite>) {
        let there = &mut self.nodes[node as usize][usize::from(byte)];
        if *there != word {
            *there = word;
            writes.push(PolicyWrite::Word(node, byte, word));
        }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(node) = self.free.pop() {
            return Some(node);
        }
        let node = self.nodes.len() as u32;
        (node < self.room.nodes).then(|| {
            self.nodes.push([Word::default(); 256]);
            node
        })
    }

    /// Frees a node that nothing refers to any more, and those behind it.
    fn abandon(&mut self, node: u32, level: usize) {
        if level < WIDTHS.len() - 1 {
            let behind: Vec<_> = self.nodes[node as usize]
                .iter()
                .filter_map(|word| word.as_node())
                .collect();
            behind
                .into_iter()
                .for_each(|node| self.abandon(node, level + 1));
        }
        self.resting.push(node);
    }
}
