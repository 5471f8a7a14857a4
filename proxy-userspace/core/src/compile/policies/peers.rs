//! The peers in rules of this node's pods: the groups of pods that each selects, its users, and the
//! classes of groups that result.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proxy_common::net::Protocol;
use slab::Slab;

use super::alike::{Group, GroupId, Groups};
use super::content::{Block, Content, PodPeer};
use super::prefixes::Prefixes;
use super::rules::Rules;
use crate::contents::policies::{Class, Peers};
use crate::model::{Labels, Settings};

/// The peers of all rules in force.
#[derive(Debug, Default)]
pub(super) struct PeersTable {
    records: BTreeMap<Peers, Record>,
    pods: Slab<Meant>,
    numbers: HashMap<Arc<PodPeer>, usize>,
    /// Peers that may have lost their last user.
    released: BTreeSet<Peers>,
    /// The names of ports that egress rules ask their peers for, with the number of such rules
    /// (P15).
    asked: HashMap<(Arc<str>, Protocol), BTreeMap<Peers, usize>>,
}

/// The peers of a rule.
#[derive(Debug)]
struct Record {
    /// Number of rules in force with these peers.
    uses: usize,
    pods: Vec<usize>,
    blocks: Vec<Block>,
}

/// A pod peer, and the groups that it selects.
#[derive(Debug)]
struct Meant {
    peer: Arc<PodPeer>,
    users: BTreeSet<Peers>,
    groups: BTreeSet<GroupId>,
}

/// Tables that change together with peers.
pub(super) struct Parts<'a> {
    pub(super) groups: &'a mut Groups,
    pub(super) prefixes: &'a mut Prefixes,
    /// Groups that belong to different peers now, or are asked for different names.
    pub(super) changed: &'a mut BTreeSet<GroupId>,
}

impl PeersTable {
    /// Adds a user of a rule's peers, and returns their hash.
    pub(super) fn acquire(
        &mut self,
        content: Option<Content>,
        settings: &Settings,
        parts: &mut Parts<'_>,
    ) -> Peers {
        let Some(content) = content else {
            return Peers::EVERYBODY;
        };
        let peers = content.peers(settings.secret);
        if let Some(record) = self.records.get_mut(&peers) {
            record.uses += 1;
            return peers;
        }
        let Content { pods, blocks } = content;
        let pods = pods
            .into_iter()
            .map(|peer| self.mean(peer, peers, parts))
            .collect();
        parts.prefixes.add(peers, &blocks);
        self.records.insert(
            peers,
            Record {
                uses: 1,
                pods,
                blocks,
            },
        );
        peers
    }

    fn mean(&mut self, peer: PodPeer, user: Peers, parts: &mut Parts<'_>) -> usize {
        let number = match self.numbers.get(&peer) {
            Some(number) => *number,
            None => {
                let groups = parts.groups.meant_by_peer(&peer);
                let peer = Arc::new(peer);
                let number = self.pods.insert(Meant {
                    peer: peer.clone(),
                    users: BTreeSet::new(),
                    groups,
                });
                self.numbers.insert(peer, number);
                let meant = &self.pods[number].groups;
                meant
                    .iter()
                    .for_each(|id| _ = parts.groups.get_mut(*id).meant_by.insert(number));
                number
            }
        };
        let meant = &mut self.pods[number];
        meant.users.insert(user);
        parts.changed.extend(&meant.groups);
        number
    }

    /// Removes a user of the peers. They stay until [`Self::end_unused`], since the next policy may
    /// use them again.
    pub(super) fn release(&mut self, peers: Peers) {
        if let Some(record) = self.records.get_mut(&peers) {
            record.uses -= 1;
            self.released.insert(peers);
        }
    }

    /// Removes the peers without users.
    pub(super) fn end_unused(&mut self, parts: &mut Parts<'_>) {
        for peers in std::mem::take(&mut self.released) {
            if self
                .records
                .get(&peers)
                .is_some_and(|record| record.uses == 0)
                && let Some(record) = self.records.remove(&peers)
            {
                record
                    .pods
                    .iter()
                    .for_each(|number| self.mean_no_more(*number, peers, parts));
                parts.prefixes.remove(peers, &record.blocks);
            }
        }
    }

    fn mean_no_more(&mut self, number: usize, user: Peers, parts: &mut Parts<'_>) {
        let meant = &mut self.pods[number];
        meant.users.remove(&user);
        parts.changed.extend(&meant.groups);
        if meant.users.is_empty() {
            let Meant { peer, groups, .. } = self.pods.remove(number);
            self.numbers.remove(&peer);
            groups
                .iter()
                .for_each(|id| _ = parts.groups.get_mut(*id).meant_by.remove(&number));
        }
    }

    /// Adds the names of ports that the rules ask their peers for.
    pub(super) fn ask(&mut self, rules: &Rules, parts: &mut Parts<'_>) {
        for (name, peers) in rules.asked() {
            let asking = self
                .asked
                .entry(name.clone())
                .or_default()
                .entry(peers)
                .or_default();
            *asking += 1;
            if *asking == 1 {
                self.asked_anew(name, peers, parts);
            }
        }
    }

    /// Removes these names again.
    pub(super) fn ask_no_more(&mut self, rules: &Rules, parts: &mut Parts<'_>) {
        for (name, peers) in rules.asked() {
            let Some(asked) = self.asked.get_mut(name) else {
                continue;
            };
            let Some(asking) = asked.get_mut(&peers) else {
                continue;
            };
            *asking -= 1;
            if *asking == 0 {
                asked.remove(&peers);
                if asked.is_empty() {
                    self.asked.remove(name);
                }
                self.asked_anew(name, peers, parts);
            }
        }
    }

    /// Marks the groups of these peers that have a port of this name as changed.
    fn asked_anew(&self, name: &(Arc<str>, Protocol), peers: Peers, parts: &mut Parts<'_>) {
        let Some(record) = self.records.get(&peers) else {
            parts.changed.extend(parts.groups.naming(name));
            return;
        };
        let by_labels = record
            .pods
            .iter()
            .flat_map(|number| &self.pods[*number].groups)
            .copied();
        let by_blocks = record
            .blocks
            .iter()
            .flat_map(|block| parts.prefixes.owners_within(block.cidr));
        parts.changed.extend(
            by_labels
                .chain(by_blocks)
                .filter(|id| parts.groups.get(*id).alike.named.contains_key(name)),
        );
    }

    /// Adds a new group to the peers that select it.
    pub(super) fn begin_group(&mut self, id: GroupId, groups: &mut Groups) {
        let alike = groups.get(id).alike.clone();
        let Some(labels) = groups.namespace_labels(&alike.namespace).cloned() else {
            return;
        };
        for (number, meant) in &mut self.pods {
            if meant.peer.means(&alike.namespace, &labels, &alike.labels) {
                meant.groups.insert(id);
                groups.get_mut(id).meant_by.insert(number);
            }
        }
    }

    /// Removes a group from the peers that selected it.
    pub(super) fn end_group(&mut self, id: GroupId, group: &Group) {
        group
            .meant_by
            .iter()
            .for_each(|number| _ = self.pods[*number].groups.remove(&id));
    }

    /// Finds the peers that select a namespace's groups again, after its labels changed (P24).
    pub(super) fn relabelled(
        &mut self,
        namespace: &str,
        before: &Labels,
        groups: &mut Groups,
        changed: &mut BTreeSet<GroupId>,
    ) {
        let Some(labels) = groups.namespace_labels(namespace).cloned() else {
            return;
        };
        let within: Vec<GroupId> = groups.within(namespace).collect();
        for (number, meant) in &mut self.pods {
            let (was, is) = (
                meant.peer.scope.has(namespace, before),
                meant.peer.scope.has(namespace, &labels),
            );
            if was == is {
                continue;
            }
            for id in &within {
                let group = groups.get_mut(*id);
                if meant.peer.labels.selects(&group.alike.labels) {
                    changed.insert(*id);
                    if is {
                        meant.groups.insert(*id);
                        group.meant_by.insert(number);
                    } else {
                        meant.groups.remove(id);
                        group.meant_by.remove(&number);
                    }
                }
            }
        }
    }

    /// Returns the class of the group's pods at addresses with the class `blocks` by ipBlocks alone
    /// (P8, P11, P15).
    pub(super) fn class(&self, group: &Group, blocks: &Class) -> Class {
        let users = group
            .meant_by
            .iter()
            .flat_map(|number| &self.pods[*number].users);
        let peers: BTreeSet<Peers> = users.chain(&blocks.peers).copied().collect();
        let mut class = Class {
            peers,
            ..Class::default()
        };
        for (name, numbers) in &group.alike.named {
            let mut asking = self.asked.get(name).into_iter().flat_map(BTreeMap::keys);
            if asking.any(|peers| class.is_among(peers)) {
                class.named.insert(name.clone(), numbers.clone());
            }
        }
        class
    }
}
