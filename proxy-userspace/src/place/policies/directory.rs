//! Where addresses' classes are found: IPv4 in a directory of nodes, the rest in a hash of single addresses and a trie of prefixes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use proxy_common::policy::{EXACT_MAX, NO_CLASS, NODES, Node, PREFIXES_MAX, ROOTS, Word};

use super::PolicyWrite;
use super::resting::Resting;

/// The bits that are behind by each level of the directory.
const WIDTHS: [u8; 3] = [16, 24, 32];
const PREFIXES: usize = PREFIXES_MAX as usize;
const EXACT: usize = EXACT_MAX as usize;

/// A mirror of the tables that lead from addresses to classes.
#[derive(Debug)]
pub struct Directory {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Nodes that a packet may still be in.
    resting: Resting<u32>,
    v4: BTreeMap<(u32, u8), u32>,
    /// Blocks for which there was no node, by their first address and their bits.
    elsewhere: BTreeSet<(u32, u8)>,
    /// What `PREFIXES4` has for them.
    trie: BTreeMap<(u32, u8), u32>,
    /// What of that is not needed any more, and may still be looked up.
    late: Resting<(u32, u8)>,
    /// Whether something did not fit into the trie either.
    full: bool,
    /// IPv6's single addresses in the hash, and everything of it in the trie.
    exact: BTreeSet<IpNet>,
    v6: BTreeSet<IpNet>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            nodes: vec![[Word::default(); 256]; ROOTS as usize],
            free: Vec::new(),
            resting: Resting::default(),
            v4: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            trie: BTreeMap::new(),
            late: Resting::default(),
            full: false,
            exact: BTreeSet::new(),
            v6: BTreeSet::new(),
        }
    }
}

/// The first address of a block.
fn first(addr: u32, bits: u8) -> u32 {
    if bits == 0 { 0 } else { addr & (u32::MAX << (32 - bits)) }
}

/// The last address of a block.
fn last(addr: u32, bits: u8) -> u32 {
    if bits == 0 { u32::MAX } else { addr | !(u32::MAX << (32 - bits)) }
}

impl Directory {
    /// Gives a prefix a class, or takes it away.
    pub fn set(&mut self, prefix: IpNet, class: Option<u32>, writes: &mut Vec<PolicyWrite>) {
        match prefix {
            IpNet::V4(prefix) => self.set_v4(prefix, class, writes),
            IpNet::V6(v6) => self.set_v6(prefix, v6.prefix_len() == 128, class, writes),
        }
    }

    /// Whether an element could not be written: there was no room for it anywhere.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// No packet is left that began before the last writes: what it may have been in is free.
    pub fn rest(&mut self, writes: &mut Vec<PolicyWrite>) {
        self.free.extend(self.resting.rested());
        for (addr, bits) in self.late.rested() {
            if !self.trie.contains_key(&(addr, bits)) {
                writes.push(PolicyWrite::DeletePrefix(network(addr, bits)));
            }
        }
    }

    /// Whether something waits for [`Self::rest`].
    pub fn is_resting(&self) -> bool {
        !self.resting.is_empty() || !self.late.is_empty()
    }

    fn set_v6(&mut self, prefix: IpNet, single: bool, class: Option<u32>, writes: &mut Vec<PolicyWrite>) {
        let exact = self.exact.contains(&prefix) || single && !self.v6.contains(&prefix) && self.exact.len() < EXACT;
        let (there, most) = if exact { (&mut self.exact, EXACT) } else { (&mut self.v6, PREFIXES) };
        match class {
            Some(_) if !there.contains(&prefix) && there.len() >= most => self.full = true,
            Some(class) => {
                there.insert(prefix);
                writes.push(if exact { PolicyWrite::Exact(prefix.addr(), class) } else { PolicyWrite::Prefix(prefix, class) });
            }
            None if there.remove(&prefix) => {
                writes.push(if exact { PolicyWrite::DeleteExact(prefix.addr()) } else { PolicyWrite::DeletePrefix(prefix) });
            }
            None => {}
        }
    }

    fn set_v4(&mut self, prefix: Ipv4Net, class: Option<u32>, writes: &mut Vec<PolicyWrite>) {
        let (addr, bits) = (u32::from(prefix.network()), prefix.prefix_len());
        match class {
            Some(class) => _ = self.v4.insert((addr, bits), class),
            None => _ = self.v4.remove(&(addr, bits)),
        }
        let (low, high) = (first(addr, bits), last(addr, bits));
        let mut block = low >> 16;
        while block <= high >> 16 {
            let base = block << 16;
            let inherited = self.longest(base, 0, 8, NO_CLASS);
            let word = self.paint(0, base, (low, high), inherited, writes);
            self.put(block >> 8, block as u8, word, writes);
            block += 1;
            // What follows until the next prefix begins, or this one's longest ends, is one class without anything finer.
            let alike = self.alike_until(base).min(high) >> 16;
            let class = Word::class(self.longest(base, 0, 16, NO_CLASS));
            while block <= alike {
                let (node, from) = (block >> 8, block & 0xff);
                let until = (alike - (node << 8)).min(0xff);
                let words = &mut self.nodes[node as usize][from as usize..=until as usize];
                let plain = words.iter().take_while(|word| word.as_node().is_none() && **word != Word::ELSEWHERE).count();
                if plain == 0 {
                    break;
                }
                let words = &mut words[..plain];
                if words.iter().any(|word| *word != class) {
                    words.fill(class);
                    writes.push(PolicyWrite::Words { node, from: from as u8, len: plain as u16, word: class });
                }
                block += plain as u32;
            }
        }
    }

    /// The last address of the last block of /16 that has the same classes as the one at `base`, but for what is finer in that one.
    fn alike_until(&self, base: u32) -> u32 {
        let own = last(base, 16);
        let Some(next) = own.checked_add(1) else { return own };
        let begins = self.v4.range((next, 0)..).next().map_or(u32::MAX, |((addr, _), _)| first(*addr, 16).wrapping_sub(1));
        let longest = (0..=16).rev().find(|bits| self.v4.contains_key(&(first(base, *bits), *bits)));
        begins.min(longest.map_or(u32::MAX, |bits| last(base, bits)))
    }

    /// The class of the longest of the prefixes with `from..=to` bits that have an address; `inherited` if there is none.
    fn longest(&self, addr: u32, from: u8, to: u8, inherited: u32) -> u32 {
        let around = (from..=to).rev().find_map(|bits| self.v4.get(&(first(addr, bits), bits)));
        around.copied().unwrap_or(inherited)
    }

    /// What the word of a block ought to be, with the nodes behind it as they ought to be wherever `dirty` reaches.
    fn paint(&mut self, level: usize, base: u32, dirty: (u32, u32), inherited: u32, writes: &mut Vec<PolicyWrite>) -> Word {
        let bits = WIDTHS[level];
        let from = if level == 0 { 9 } else { WIDTHS[level - 1] + 1 };
        let class = self.longest(base, from, bits, inherited);
        let before = self.word(level, base);
        let finer = bits < 32 && self.v4.range((base, bits + 1)..=(last(base, bits), 32)).next().is_some();
        if !finer {
            if let Some(node) = before.as_node() {
                self.abandon(node, level + 1);
            }
            let within = self.elsewhere.range((base, bits)..=(last(base, bits), 32));
            let within: Vec<_> = within.copied().collect();
            if !within.is_empty() {
                within.iter().for_each(|block| _ = self.elsewhere.remove(block));
                self.keep_elsewhere(base, bits, BTreeMap::new(), writes);
            }
            return Word::class(class);
        }
        if let Some(node) = before.as_node() {
            let step = 32 - u32::from(WIDTHS[level + 1]);
            let (low, high) = (dirty.0.max(base), dirty.1.min(last(base, bits)));
            for byte in (low >> step) as u8..=(high >> step) as u8 {
                let child = base | u32::from(byte) << step;
                let word = self.paint(level + 1, child, dirty, class, writes);
                self.put(node, byte, word, writes);
            }
            return before;
        }
        match self.take() {
            Some(node) => self.fill(level, base, node, class, writes),
            None => {
                let mut wanted: BTreeMap<_, _> =
                    self.v4.range((base, bits + 1)..=(last(base, bits), 32)).map(|(key, class)| (*key, *class)).collect();
                wanted.insert((base, bits), class);
                self.elsewhere.insert((base, bits));
                self.keep_elsewhere(base, bits, wanted, writes);
                Word::ELSEWHERE
            }
        }
    }

    /// Writes a new node for a block: nobody is led to it yet.
    fn fill(&mut self, level: usize, base: u32, node: u32, class: u32, writes: &mut Vec<PolicyWrite>) -> Word {
        let bits = WIDTHS[level];
        let step = 32 - u32::from(WIDTHS[level + 1]);
        let mut words = Box::new([Word::default(); 256]);
        for byte in 0..=u8::MAX {
            let child = base | u32::from(byte) << step;
            words[usize::from(byte)] = self.paint(level + 1, child, (base, last(base, bits)), class, writes);
        }
        self.nodes[node as usize] = *words;
        writes.push(PolicyWrite::Node(node, words));
        if self.elsewhere.remove(&(base, bits)) {
            self.keep_elsewhere(base, bits, BTreeMap::new(), writes);
        }
        Word::node(node)
    }

    /// Brings the trie's part of a block in step.
    fn keep_elsewhere(&mut self, base: u32, bits: u8, wanted: BTreeMap<(u32, u8), u32>, writes: &mut Vec<PolicyWrite>) {
        let there = self.trie.range((base, bits)..=(last(base, bits), 32));
        let gone: Vec<_> = there.map(|(key, _)| *key).filter(|key| !wanted.contains_key(key)).collect();
        for key in gone {
            self.trie.remove(&key);
            self.late.push(key);
        }
        for ((addr, length), class) in wanted {
            if self.trie.get(&(addr, length)) == Some(&class) {
                continue;
            }
            if self.trie.len() >= PREFIXES {
                self.full = true;
                return;
            }
            self.trie.insert((addr, length), class);
            writes.push(PolicyWrite::Prefix(network(addr, length), class));
        }
    }

    /// The word of a block as it is; a class where its parent has no node.
    fn word(&self, level: usize, base: u32) -> Word {
        let [a, b, c, d] = base.to_be_bytes();
        let root = self.nodes[usize::from(a)][usize::from(b)];
        [c, d].into_iter().take(level).fold(root, |word, byte| match word.as_node() {
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
        (node < NODES).then(|| {
            self.nodes.push([Word::default(); 256]);
            node
        })
    }

    /// A node that nothing leads to any more, and those behind it.
    fn abandon(&mut self, node: u32, level: usize) {
        if level < WIDTHS.len() - 1 {
            let behind: Vec<_> = self.nodes[node as usize].iter().filter_map(|word| word.as_node()).collect();
            behind.into_iter().for_each(|node| self.abandon(node, level + 1));
        }
        self.resting.push(node);
    }
}

fn network(addr: u32, bits: u8) -> IpNet {
    IpNet::new(IpAddr::V4(Ipv4Addr::from(addr)), bits).unwrap_or_else(|_| IpNet::from(IpAddr::V4(addr.into())))
}
