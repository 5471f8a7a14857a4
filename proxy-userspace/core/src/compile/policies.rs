//! NetworkPolicies to rows and classes: remembers what each policy, rule and group of pods came to, so that a change costs what depends on it.
//!
//! Of the policies only those count that select a pod of this node, and of their peers only what they mean in the cluster as it is now.

mod alike;
mod content;
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
use self::content::Content;
use self::peers::{Parts, PeersTable};
use self::prefixes::Prefixes;
use self::rules::{Direction, Rows, Rule, Rules};
use self::shared::Shared;
use super::pods::PodNetwork;
use super::touched::Touched;
use crate::contents::policies::{Class, Isolation, PodPolicy, Policies, Row};
use crate::contents::unlike;
use crate::model::{NetworkPolicy, ObjectName, Snapshot};

/// Compiles policies, and remembers for the next time.
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

/// The keys of the elements of [`Policies`] that two of them differ in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDelta {
    /// Of `pods`.
    pub pods: BTreeSet<ObjectName>,
    /// Of `classes`.
    pub classes: BTreeSet<IpNet>,
    /// `exist` differs.
    pub exist: bool,
}

impl PolicyDelta {
    /// What differs.
    pub fn between(before: &Policies, after: &Policies) -> Self {
        Self {
            pods: unlike(&before.pods, &after.pods),
            classes: unlike(&before.classes, &after.classes),
            exist: before.exist != after.exist,
        }
    }

    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A policy that selects pods of this node.
#[derive(Debug)]
struct InForce {
    /// The groups of theirs.
    groups: BTreeSet<GroupId>,
    rules: Rules,
}

/// What is to be looked at again.
#[derive(Default)]
struct Dirty {
    /// Addresses whose owner may be another.
    addresses: BTreeSet<IpAddr>,
    /// Pods of this node, or not any more.
    pods: BTreeSet<ObjectName>,
    /// Groups that got pods of this node, or lost some.
    moved: BTreeSet<GroupId>,
    /// Groups that other policies select.
    rows: BTreeSet<GroupId>,
    /// Groups that are other peers.
    classes: BTreeSet<GroupId>,
}

impl PolicyCompiler {
    /// What the maps ought to hold, by the last [`Self::compile`].
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The prefixes that so many ipBlocks in force have that their addresses count as if none had them: that allows less (P34).
    pub fn crowded(&self) -> &BTreeSet<IpNet> {
        self.prefixes.crowded()
    }

    /// The policies in force here that have ipBlocks around such a prefix.
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

    /// The pod on the pod network that owns an address (P22).
    pub fn pod_at<'a>(&self, snapshot: &'a Snapshot, addr: IpAddr) -> Option<&'a ObjectName> {
        self.network.owner(snapshot, addr).map(|(name, _)| name)
    }

    /// Brings the policies up to the snapshot, of which `touched` has changed since the last time, and says what changed in them.
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

    /// Takes a pod up as the snapshot has it: among those that are like it, with the addresses that it says.
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

    /// P22: finds out whose the addresses are now.
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

    /// Takes a policy up as the snapshot has it.
    fn policy(&mut self, name: &ObjectName, snapshot: &Snapshot, dirty: &mut Dirty) {
        let after = snapshot.state.policies.get(name).and_then(|policy| {
            let local = self
                .groups
                .within(&name.namespace)
                .filter(|id| !self.groups.get(*id).local.is_empty());
            let selected =
                local.filter(|id| policy.pods.selects(&self.groups.get(*id).alike.labels));
            let groups: BTreeSet<GroupId> = selected.collect();
            (!groups.is_empty()).then_some((policy, groups))
        });
        // The new one comes into force before the old one leaves, so that what they share stays.
        let after = after.map(|(policy, groups)| InForce {
            groups,
            rules: self.enforce(name, policy, snapshot, dirty),
        });
        for id in after.iter().flat_map(|after| &after.groups) {
            self.groups.get_mut(*id).policies.insert(name.clone());
            dirty.rows.insert(*id);
        }
        let selected = |id: &GroupId| {
            after
                .as_ref()
                .is_some_and(|after| after.groups.contains(id))
        };
        if let Some(before) = self.in_force.remove(name) {
            for id in before.groups.iter().filter(|id| !selected(id)) {
                self.groups.get_mut(*id).policies.remove(name);
                dirty.rows.insert(*id);
            }
            self.unforce(&before.rules, dirty);
        }
        after.map(|after| self.in_force.insert(name.clone(), after));
    }

    /// Looks which policies select a group that may have got its first pod of this node or lost the last; the touched ones know.
    fn select(
        &mut self,
        id: GroupId,
        snapshot: &Snapshot,
        touched: &BTreeSet<ObjectName>,
        dirty: &mut Dirty,
    ) {
        let group = self.groups.get(id);
        let (alike, local) = (group.alike.clone(), !group.local.is_empty());
        dirty.rows.insert(id);
        let first = ObjectName {
            namespace: alike.namespace.clone(),
            name: "".into(),
        };
        let policies = snapshot
            .state
            .policies
            .range(first..)
            .take_while(|(name, _)| name.namespace == alike.namespace);
        for (name, policy) in policies
            .filter(|(name, policy)| !touched.contains(name) && policy.pods.selects(&alike.labels))
        {
            if !local {
                self.groups.get_mut(id).policies.remove(name);
                self.in_force
                    .get_mut(name)
                    .map(|in_force| in_force.groups.remove(&id));
                continue;
            }
            self.groups.get_mut(id).policies.insert(name.clone());
            if let Some(in_force) = self.in_force.get_mut(name) {
                in_force.groups.insert(id);
            } else {
                let rules = self.enforce(name, policy, snapshot, dirty);
                self.in_force.insert(
                    name.clone(),
                    InForce {
                        groups: BTreeSet::from([id]),
                        rules,
                    },
                );
            }
        }
    }

    /// The rules of a policy come into force.
    fn enforce(
        &mut self,
        name: &ObjectName,
        policy: &NetworkPolicy,
        snapshot: &Snapshot,
        dirty: &mut Dirty,
    ) -> Rules {
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        let peers = &mut self.peers;
        let mut compile = |rules: &Vec<crate::model::policy::Rule>| -> Vec<Rule> {
            let compile = |rule: &crate::model::policy::Rule| {
                let content = Content::of(&rule.peers, &name.namespace);
                Rule {
                    peers: peers.acquire(content, &snapshot.settings, parts),
                    ports: rules::ports(&rule.ports),
                }
            };
            rules.iter().map(compile).collect()
        };
        let rules = Rules {
            ingress: policy.ingress.as_ref().map(&mut compile),
            egress: policy.egress.as_ref().map(compile),
        };
        peers.ask(&rules, parts);
        rules
    }

    fn unforce(&mut self, rules: &Rules, dirty: &mut Dirty) {
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        self.peers.ask_no_more(rules, parts);
        rules.all().for_each(|rule| self.peers.release(rule.peers));
    }

    /// Policies without pods of this node, peers without rules, groups without pods.
    fn end_unused(&mut self, dirty: &mut Dirty) {
        let unused: Vec<_> = self
            .in_force
            .extract_if(.., |_, in_force| in_force.groups.is_empty())
            .collect();
        unused
            .iter()
            .for_each(|(_, in_force)| self.unforce(&in_force.rules, dirty));
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        self.peers.end_unused(parts);
        for (id, group) in self.groups.end_empty() {
            self.peers.end_group(id, &group);
            dirty.classes.remove(&id);
            dirty.rows.remove(&id);
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

    /// A pod of this node with a network of its own (P17, P20); before it has an address it has none here (P21).
    fn pod_policy(&self, name: &ObjectName, snapshot: &Snapshot) -> Option<PodPolicy> {
        let group = self.groups.get(self.groups.of(name)?);
        let pod = snapshot
            .state
            .pods
            .get(name)
            .filter(|_| group.local.contains(name))?;
        let owns = |addr: &&IpAddr| {
            self.network
                .owner(snapshot, **addr)
                .is_some_and(|(owner, _)| owner == name)
        };
        let addresses: BTreeSet<IpAddr> = pod.addresses.iter().filter(owns).copied().collect();
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
        // Two or three sorted runs.
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
            // In order and all at once, which is faster.
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

    /// The class of a prefix, if it is another than that of the longest one around it.
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
