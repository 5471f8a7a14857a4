//! The prefixes of ipBlocks and the addresses of pods in one order, with the blocks around each
//! (P11).
//!
//! In this order a prefix stands directly before those within it, so that a changed block affects
//! one range.

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

/// A lookup of the prefixes around another takes about as long as a walk past so many prefixes.
const AROUND: usize = 12;

/// The most peers that all classes of blocks have together, unless each has at most [`FEW`].
const MOST: usize = 1 << 23;
/// The least value of the limit on peers that an address has by blocks.
const FEW: usize = 128;
const MANY: usize = 4096;

/// Every CIDR, every except, and every address that a pod owns.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    all: BTreeMap<IpNet, Prefix>,
    /// Number of prefixes with edges, by length.
    lengths: BTreeMap<(Family, u8), usize>,
    /// Prefixes with blocks within that were added or removed.
    dirty: Vec<IpNet>,
    gone: Vec<IpNet>,
    /// Prefixes with more blocks than the limit. They count as part of no block, which allows less
    /// (P34).
    crowded: BTreeSet<IpNet>,
    /// The limit on blocks at the last walk.
    limit: usize,
    deepest: usize,
    /// The class of new prefixes until the walk, shared to save memory.
    nothing: Arc<Class>,
}

/// A prefix.
#[derive(Debug)]
pub(super) struct Prefix {
    /// The blocks that begin or end here.
    edges: Vec<Edge>,
    /// The class, by blocks, of the longest prefix around it.
    pub(super) above: Arc<Class>,
    /// Its own class by blocks.
    pub(super) blocks: Arc<Class>,
    /// The group that owns this address (P22).
    pub(super) owner: Option<GroupId>,
}

/// A block of a rule's peers, by its place in their list.
type BlockId = (Peers, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// The CIDR of a block.
    Begin(BlockId),
    /// One of its excepts.
    End(BlockId),
}

/// A prefix that the walk is inside of.
struct Level {
    /// `None` for the level around the whole walk.
    prefix: Option<IpNet>,
    blocks: Vec<BlockId>,
    class: Arc<Class>,
}

impl Prefixes {
    /// Returns a prefix.
    pub(super) fn get(&self, prefix: IpNet) -> Option<&Prefix> {
        self.all.get(&prefix)
    }

    /// Returns the prefixes with more blocks than the limit (P34).
    pub(super) fn crowded(&self) -> &BTreeSet<IpNet> {
        &self.crowded
    }

    /// Returns the owners of the addresses within a prefix.
    pub(super) fn owners_within(&self, prefix: IpNet) -> impl Iterator<Item = GroupId> + '_ {
        let within = self
            .all
            .range(prefix..)
            .take_while(move |(at, _)| prefix.contains(*at));
        within.filter_map(|(_, within)| within.owner)
    }

    /// Adds the blocks of a rule's peers.
    pub(super) fn add(&mut self, peers: Peers, blocks: &[Block]) {
        for (at, edge) in edges(peers, blocks) {
            let prefix = self
                .all
                .entry(at)
                .or_insert_with(|| Prefix::of(&self.nothing));
            if prefix.edges.is_empty() {
                *self.lengths.entry(length(at)).or_default() += 1;
            }
            prefix.edges.reserve_exact(1);
            prefix.edges.push(edge);
        }
        self.dirty.extend(blocks.iter().map(|block| block.cidr));
    }

    /// Removes the blocks of a rule's peers.
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

    /// Sets the owner of an address, and returns the previous one.
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

    /// Returns the blocks around the longest prefix that covers this one, by one lookup for each
    /// length of prefixes.
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

    /// Computes the classes of all prefixes that changed blocks affect. Returns the prefixes that
    /// have changed or gone.
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

    /// Returns the limit on blocks of an address. It falls as the number of prefixes grows, in
    /// powers of two, so that it rarely changes.
    fn limit(&self) -> usize {
        let prefixes: usize = self.lengths.values().sum();
        (MOST / prefixes.next_power_of_two()).clamp(FEW, MANY)
    }

    /// Walks a prefix and all within it, or all prefixes.
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
    /// Returns a prefix of this class, without edges and owner.
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
    /// Crosses the edge inwards.
    fn cross(self, blocks: &mut Vec<BlockId>) {
        match self {
            Self::Begin(block) => blocks.push(block),
            Self::End(block) => blocks.retain(|other| *other != block),
        }
    }
}

/// Returns the class of addresses in these blocks: that of no block if there are more than the
/// limit.
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
