//! The prefixes of ipBlocks and the addresses of pods in one order, and which blocks have each of them (P11).
//!
//! In that order a prefix stands before those within it, and nothing else stands between: what a changed block concerns is one range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;

use super::alike::GroupId;
use super::content::Block;
use super::shared::Shared;
use crate::contents::policies::{Class, Peers};
use crate::model::Family;

/// Looking for the prefixes around another takes about as long as walking past so many.
const AROUND: usize = 12;

/// So many peers all classes of blocks have together at most, if not each so few as [`FEW`].
const MOST: usize = 1 << 23;
/// The fewest and the most peers that an address may be by blocks.
const FEW: usize = 128;
const MANY: usize = 4096;

/// Every cidr, every except, and every address that a pod owns.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    all: BTreeMap<IpNet, Prefix>,
    /// How many prefixes with edges have a length.
    lengths: BTreeMap<(Family, u8), usize>,
    /// Prefixes within which blocks have come or gone.
    dirty: Vec<IpNet>,
    gone: Vec<IpNet>,
    /// Prefixes that more blocks have than an address may be peers by; they count as if none had them, which allows less (P34).
    crowded: BTreeSet<IpNet>,
    /// How many an address may be, by the last walk, and how many there have been.
    limit: usize,
    deepest: usize,
    /// What new prefixes are until the walk, so that they need no memory of their own for it.
    nothing: Arc<Class>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Prefix {
    /// Where blocks begin to apply and cease to.
    edges: Vec<Edge>,
    /// What blocks make of the longest prefix around it.
    pub(super) above: Arc<Class>,
    /// What blocks make of it.
    pub(super) blocks: Arc<Class>,
    /// Whose address it is (P22).
    pub(super) owner: Option<GroupId>,
}

/// A block of a rule's peers, by its place among theirs.
type BlockId = (Peers, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// Its cidr.
    Begin(BlockId),
    /// One of its excepts.
    End(BlockId),
}

/// A prefix whose inside is being walked.
struct Level {
    /// `None` around all of the walk.
    prefix: Option<IpNet>,
    blocks: Vec<BlockId>,
    class: Arc<Class>,
}

impl Prefixes {
    /// What is known of a prefix.
    pub(super) fn get(&self, prefix: IpNet) -> Option<&Prefix> {
        self.all.get(&prefix)
    }

    /// The prefixes that so many blocks have that they cannot be told apart (P34).
    pub(super) fn crowded(&self) -> &BTreeSet<IpNet> {
        &self.crowded
    }

    /// Whose the addresses within a prefix are.
    pub(super) fn owners_within(&self, prefix: IpNet) -> impl Iterator<Item = GroupId> + '_ {
        let within = self
            .all
            .range(prefix..)
            .take_while(move |(at, _)| prefix.contains(*at));
        within.filter_map(|(_, within)| within.owner)
    }

    /// The blocks of a rule's peers apply.
    pub(super) fn add(&mut self, peers: Peers, blocks: &[Block]) {
        for (at, edge) in edges(peers, blocks) {
            let nothing = || Prefix::of(&self.nothing);
            let prefix = self.all.entry(at).or_insert_with(nothing);
            if prefix.edges.is_empty() {
                *self.lengths.entry(length(at)).or_default() += 1;
            }
            prefix.edges.reserve_exact(1);
            prefix.edges.push(edge);
        }
        self.dirty.extend(blocks.iter().map(|block| block.cidr));
    }

    /// They do no more.
    pub(super) fn remove(&mut self, peers: Peers, blocks: &[Block]) {
        for (at, edge) in edges(peers, blocks) {
            let Some(prefix) = self.all.get_mut(&at) else {
                continue;
            };
            prefix.edges.retain(|other| *other != edge);
            if prefix.edges.is_empty() {
                if let Some(count) = self.lengths.get_mut(&length(at)) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&length(at));
                    }
                }
                self.end_empty(at);
            }
        }
        self.dirty.extend(blocks.iter().map(|block| block.cidr));
    }

    fn end_empty(&mut self, at: IpNet) {
        if self
            .all
            .get(&at)
            .is_some_and(|prefix| prefix.edges.is_empty() && prefix.owner.is_none())
        {
            self.all.remove(&at);
            self.crowded.remove(&at);
            self.gone.push(at);
        }
    }

    /// An address is these pods' now; gives whose it was.
    pub(super) fn set_owner(
        &mut self,
        addr: IpAddr,
        owner: Option<GroupId>,
        classes: &mut Shared<Class>,
    ) -> Option<GroupId> {
        let at = IpNet::from(addr);
        if owner.is_some() && !self.all.contains_key(&at) {
            let blocks = self.around(at);
            self.deepest = self.deepest.max(blocks.len());
            let class = classes.get(class(&blocks, self.limit));
            self.all.insert(at, Prefix::of(&class));
        }
        let prefix = self.all.get_mut(&at)?;
        let before = std::mem::replace(&mut prefix.owner, owner);
        self.end_empty(at);
        before
    }

    /// The blocks that have all of the longest prefix around this one: as many lookups as prefixes have lengths.
    fn around(&self, at: IpNet) -> Vec<BlockId> {
        let (family, length) = length(at);
        let mut blocks = Vec::new();
        for ((_, length), _) in self.lengths.range((family, 0)..(family, length)) {
            let around = IpNet::new(at.addr(), *length)
                .ok()
                .and_then(|net| self.all.get(&net.trunc()));
            around
                .into_iter()
                .flat_map(|prefix| &prefix.edges)
                .for_each(|edge| edge.cross(&mut blocks));
        }
        blocks
    }

    /// Brings all prefixes up to the blocks, and gives those that have changed or gone.
    pub(super) fn settle(&mut self, classes: &mut Shared<Class>) -> Vec<IpNet> {
        let mut changed = std::mem::take(&mut self.gone);
        let mut dirty = std::mem::take(&mut self.dirty);
        let limit = self.limit();
        let before = std::mem::replace(&mut self.limit, limit);
        let other = before != limit && self.deepest > before.min(limit);
        if other || dirty.len() * AROUND > self.all.len() {
            self.walk(None, classes, &mut changed);
            return changed;
        }
        // A prefix comes before those within it.
        dirty.sort_unstable();
        let mut walked: Option<IpNet> = None;
        for prefix in dirty {
            if !walked.is_some_and(|walked| walked.contains(&prefix)) {
                self.walk(Some(prefix), classes, &mut changed);
                walked = Some(prefix);
            }
        }
        changed
    }

    /// How many blocks an address may be of: the fewer the more prefixes there are, in powers of two, so that it rarely changes.
    fn limit(&self) -> usize {
        let prefixes: usize = self.lengths.values().sum();
        (MOST / prefixes.next_power_of_two()).clamp(FEW, MANY)
    }

    /// Walks a prefix and all within it, or everything.
    fn walk(
        &mut self,
        within: Option<IpNet>,
        classes: &mut Shared<Class>,
        changed: &mut Vec<IpNet>,
    ) {
        let blocks = within.map(|prefix| self.around(prefix)).unwrap_or_default();
        let Self {
            all,
            crowded,
            limit,
            deepest,
            ..
        } = self;
        let mut level = Level {
            prefix: None,
            class: classes.get(class(&blocks, *limit)),
            blocks,
        };
        let mut outer: Vec<Level> = Vec::new();
        let from = within.map_or(Bound::Unbounded, Bound::Included);
        for (at, prefix) in all.range_mut((from, Bound::Unbounded)) {
            if within.is_some_and(|within| !within.contains(at)) {
                break;
            }
            while level.prefix.is_some_and(|prefix| !prefix.contains(at)) {
                level = outer.pop().expect("the outermost level has everything");
            }
            let above = level.class.clone();
            let mut is_crowded = false;
            if !prefix.edges.is_empty() {
                let mut blocks = level.blocks.clone();
                prefix.edges.iter().for_each(|edge| edge.cross(&mut blocks));
                *deepest = blocks.len().max(*deepest);
                is_crowded = blocks.len() > *limit;
                let inner = Level {
                    prefix: Some(*at),
                    class: classes.get(class(&blocks, *limit)),
                    blocks,
                };
                outer.push(std::mem::replace(&mut level, inner));
            }
            if is_crowded {
                crowded.insert(*at);
            } else if !crowded.is_empty() {
                crowded.remove(at);
            }
            if !Arc::ptr_eq(&prefix.above, &above) || !Arc::ptr_eq(&prefix.blocks, &level.class) {
                changed.push(*at);
                prefix.above = above;
                prefix.blocks = level.class.clone();
            }
        }
    }
}

impl Prefix {
    /// Without edges and owner, in this class.
    fn of(class: &Arc<Class>) -> Self {
        Self {
            edges: Vec::new(),
            above: class.clone(),
            blocks: class.clone(),
            owner: None,
        }
    }
}

impl Edge {
    /// Going inwards.
    fn cross(self, blocks: &mut Vec<BlockId>) {
        match self {
            Self::Begin(block) => blocks.push(block),
            Self::End(block) => blocks.retain(|other| *other != block),
        }
    }
}

/// The class of addresses of which only blocks tell: that of none where there are more than can be told apart.
fn class(blocks: &[BlockId], limit: usize) -> Class {
    let blocks = if blocks.len() > limit { &[] } else { blocks };
    Class {
        peers: blocks.iter().map(|(peers, _)| *peers).collect(),
        ..Class::default()
    }
}

fn edges(peers: Peers, blocks: &[Block]) -> impl Iterator<Item = (IpNet, Edge)> {
    blocks.iter().enumerate().flat_map(move |(number, block)| {
        let id = (peers, number);
        let ends = block
            .except
            .iter()
            .map(move |except| (*except, Edge::End(id)));
        std::iter::once((block.cidr, Edge::Begin(id))).chain(ends)
    })
}

fn length(prefix: IpNet) -> (Family, u8) {
    (Family::of(prefix.addr()), prefix.prefix_len())
}
