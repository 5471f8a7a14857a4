//! The incremental compiler of NetworkPolicies, to rows and classes. It remembers the result for
//! each policy, rule and group of pods, so that a change costs only its dependents.
//!
//! Only policies that select a pod of this node count, and only those of their peers that exist in
//! the cluster.

mod alike;
mod content;
mod dirty;
mod in_force;
mod peers;
mod prefixes;
mod rules;
#[cfg(test)]
mod scale;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::alike::{Alike, GroupId, Groups, Newness};
use self::dirty::Dirty;
use self::peers::PeersTable;
use self::prefixes::Prefixes;
use self::rules::{Direction, Rows, Rules};
use self::shared::Shared;
use super::pods::PodNetwork;
use super::touched::Touched;
use crate::contents::policies::{Class, Isolation, PodPolicy, Policies, PolicyDelta, Row};
use crate::model::{ObjectName, Snapshot};

/// Compiles policies, and remembers the result for the next time.
#[derive(Debug, Default)]
pub struct PolicyCompiler {
    policies: Policies,
    network: PodNetwork,
    groups: Groups,
    peers: PeersTable,
    prefixes: Prefixes,
    /// The policies that select pods of this node.
    in_force: BTreeMap<ObjectName, InForce>,
    classes: Shared<Class>,
    rows: Shared<Row>,
}

/// A policy that selects pods of this node.
#[derive(Debug)]
struct InForce {
    /// The groups of these pods.
    groups: BTreeSet<GroupId>,
    rules: Rules,
}

impl PolicyCompiler {
    /// Returns the contents of the policy tables, by the last [`Self::compile`].
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Returns the prefixes with more ipBlocks in force than a class holds. Their addresses count
    /// as part of no block, which allows less (P34).
    pub fn crowded(&self) -> &BTreeSet<IpNet> {
        self.prefixes.crowded()
    }

    /// Returns the policies in force here with ipBlocks around such a prefix.
    pub fn crowding<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a ObjectName> {
        let policies = self.in_force.keys().filter(|_| !self.crowded().is_empty());
        let around = |cidr: &IpNet| {
            self.crowded()
                .range(*cidr..)
                .next()
                .is_some_and(|prefix| cidr.contains(prefix))
        };
        policies.filter(move |name| {
            snapshot
                .state
                .policies
                .get(*name)
                .is_some_and(|policy| policy.blocks().any(&around))
        })
    }

    /// Returns the pod on the pod network that owns an address (P22).
    pub fn pod_at<'a>(&self, snapshot: &'a Snapshot, addr: IpAddr) -> Option<&'a ObjectName> {
        self.network.owner(snapshot, addr).map(|(name, _)| name)
    }

    /// Brings the policies in step with the snapshot, and returns the difference. `touched` names
    /// all objects that changed since the last time.
    pub fn compile(&mut self, snapshot: &Snapshot, touched: &Touched) -> PolicyDelta {
        if !touched.everything {
            return self.follow(snapshot, touched);
        }
        let Self {
            policies: before,
            classes,
            rows,
            ..
        } = std::mem::take(self);
        (self.classes, self.rows) = (classes, rows);
        let all = Touched {
            pods: snapshot.state.pods.keys().cloned().collect(),
            policies: snapshot.state.policies.keys().cloned().collect(),
            ..Touched::default()
        };
        self.follow(snapshot, &all);
        PolicyDelta::between(&before, &self.policies)
    }

    fn follow(&mut self, snapshot: &Snapshot, touched: &Touched) -> PolicyDelta {
        let mut dirty = Dirty::default();
        for namespace in &touched.namespaces {
            if let Some(before) = self.groups.relabel(&namespace.name, snapshot) {
                self.peers.relabelled(
                    &namespace.name,
                    &before,
                    &mut self.groups,
                    &mut dirty.classes,
                );
            }
        }
        touched
            .pods
            .iter()
            .for_each(|name| self.pod(name, snapshot, &mut dirty));
        self.give_addresses(snapshot, &mut dirty);
        for addr in &touched.addresses {
            dirty.pods.extend(
                self.network
                    .pods_at(snapshot, *addr)
                    .map(|(name, _)| name.clone()),
            );
        }
        touched
            .policies
            .iter()
            .for_each(|name| self.policy(name, snapshot, &mut dirty));
        for group in std::mem::take(&mut dirty.moved) {
            self.select(group, snapshot, &touched.policies, &mut dirty);
        }
        self.end_unused(&mut dirty);
        let exist = !snapshot.state.policies.is_empty();
        PolicyDelta {
            exist: std::mem::replace(&mut self.policies.exist, exist) != exist,
            pods: self.settle_pods(snapshot, &dirty),
            classes: self.settle_classes(&dirty),
        }
    }

    /// Indexes a pod as it is in the snapshot: its group and its addresses.
    fn pod(&mut self, name: &ObjectName, snapshot: &Snapshot, dirty: &mut Dirty) {
        dirty.addresses.extend(self.network.update(name, snapshot));
        dirty.pods.insert(name.clone());
        let was_local = self
            .groups
            .of(name)
            .filter(|id| self.groups.get(*id).local.contains(name));
        let mut is_local = None;
        if let Some(pod) = snapshot
            .state
            .pods
            .get(name)
            .filter(|pod| pod.on_pod_network())
        {
            let (id, newness) = self.groups.join(name, Alike::of(name, pod), snapshot);
            if newness == Newness::New {
                self.peers.begin_group(id, &mut self.groups);
            }
            is_local = (pod.node.as_deref() == Some(&*snapshot.settings.node_name)).then_some(id);
        } else {
            self.groups.leave(name);
        }
        if was_local != is_local {
            was_local.map(|id| self.groups.get_mut(id).local.remove(name));
            is_local.map(|id| self.groups.get_mut(id).local.insert(name.clone()));
            dirty.moved.extend(was_local.into_iter().chain(is_local));
        }
    }

    /// P22: finds the owners of the addresses.
    fn give_addresses(&mut self, snapshot: &Snapshot, dirty: &mut Dirty) {
        for addr in &dirty.addresses {
            let owner = self
                .network
                .owner(snapshot, *addr)
                .and_then(|(name, _)| self.groups.of(name));
            let before = self.prefixes.set_owner(*addr, owner, &mut self.classes);
            before.map(|id| self.groups.get_mut(id).addresses.remove(addr));
            owner.map(|id| self.groups.get_mut(id).addresses.insert(*addr));
            dirty.pods.extend(
                self.network
                    .pods_at(snapshot, *addr)
                    .map(|(name, _)| name.clone()),
            );
        }
    }

    fn settle_pods(&mut self, snapshot: &Snapshot, dirty: &Dirty) -> BTreeSet<ObjectName> {
        let mut pods: BTreeSet<&ObjectName> = dirty.pods.iter().collect();
        for id in &dirty.rows {
            let rows = self.rows_of(*id);
            self.groups.get_mut(*id).rows = rows;
        }
        pods.extend(dirty.rows.iter().flat_map(|id| &self.groups.get(*id).local));
        let mut changed = BTreeSet::new();
        for name in pods {
            let policy = self.pod_policy(name, snapshot);
            if self.policies.pods.get(name) != policy.as_ref() {
                changed.insert(name.clone());
                match policy {
                    Some(policy) => _ = self.policies.pods.insert(name.clone(), policy),
                    None => _ = self.policies.pods.remove(name),
                }
            }
        }
        self.rows.sweep();
        changed
    }

    fn rows_of(&mut self, id: GroupId) -> Rows {
        let group = self.groups.get(id);
        let mut row = |direction| {
            let policies = group
                .policies
                .iter()
                .filter_map(|name| self.in_force.get(name))
                .map(|in_force| &in_force.rules);
            let row = rules::row(policies, direction, &group.alike.named);
            row.map_or(Isolation::None, |row| Isolation::Rules(self.rows.get(row)))
        };
        Rows {
            ingress: row(Direction::Ingress),
            egress: row(Direction::Egress),
        }
    }

    /// Returns the policy of a pod of this node with a network of its own (P17, P20). A pod without
    /// addresses has none yet (P21).
    fn pod_policy(&self, name: &ObjectName, snapshot: &Snapshot) -> Option<PodPolicy> {
        let group = self.groups.get(self.groups.of(name)?);
        let pod = snapshot
            .state
            .pods
            .get(name)
            .filter(|_| group.local.contains(name))?;
        let addresses: BTreeSet<IpAddr> = pod
            .addresses
            .iter()
            .copied()
            .filter(|addr| self.pod_at(snapshot, *addr) == Some(name))
            .collect();
        let device = addresses
            .iter()
            .find_map(|addr| snapshot.links.pods.get(addr))
            .copied()
            .unwrap_or_default();
        let Rows { ingress, egress } = group.rows.clone();
        Some(PodPolicy {
            addresses,
            device,
            any_source: pod.any_source,
            ingress,
            egress,
        })
    }

    fn settle_classes(&mut self, dirty: &Dirty) -> BTreeSet<IpNet> {
        let mut looked_at = self.prefixes.settle(&mut self.classes);
        let groups = dirty
            .classes
            .iter()
            .flat_map(|id| &self.groups.get(*id).addresses);
        looked_at.extend(
            groups
                .chain(&dirty.addresses)
                .map(|addr| IpNet::from(*addr)),
        );
        // The list is two or three sorted runs.
        looked_at.sort();
        looked_at.dedup();
        let mut known = HashMap::new();
        let news = looked_at
            .into_iter()
            .map(|prefix| (prefix, self.class(prefix, &mut known)))
            .collect::<Vec<_>>();
        drop(known);
        let news = news.into_iter().filter(|(prefix, class)| {
            let before = self.policies.classes.get(prefix);
            class.as_ref().map(Arc::as_ptr) != before.map(Arc::as_ptr)
        });
        let news: Vec<_> = news.collect();
        let changed = news.iter().map(|(prefix, _)| *prefix).collect();
        let classes = &mut self.policies.classes;
        if classes.is_empty() {
            // In order and at once, which is faster.
            *classes = news
                .into_iter()
                .filter_map(|(prefix, class)| Some((prefix, class?)))
                .collect();
        } else {
            for (prefix, class) in news {
                match class {
                    Some(class) => _ = classes.insert(prefix, class),
                    None => _ = classes.remove(&prefix),
                }
            }
        }
        self.classes.sweep();
        changed
    }

    /// Returns the class of a prefix, if it differs from that of the longest prefix around it.
    fn class(
        &mut self,
        prefix: IpNet,
        known: &mut HashMap<(GroupId, *const Class), Arc<Class>>,
    ) -> Option<Arc<Class>> {
        let prefix = self.prefixes.get(prefix)?;
        let class = match prefix.owner {
            None => &prefix.blocks,
            Some(id) => known
                .entry((id, Arc::as_ptr(&prefix.blocks)))
                .or_insert_with(|| {
                    self.classes
                        .get(self.peers.class(self.groups.get(id), &prefix.blocks))
                }),
        };
        (!Arc::ptr_eq(class, &prefix.above)).then(|| class.clone())
    }
}
