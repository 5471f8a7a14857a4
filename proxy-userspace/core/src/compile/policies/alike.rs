//! Pods that are alike: of one namespace, with equal labels and equal names of ports. Selectors and names are judged once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::net::Protocol;
use slab::Slab;

use super::content::{PodPeer, Scope};
use super::rules::{Named, Rows};
use crate::model::policy::{Requirement, Selector};
use crate::model::{Labels, ObjectName, Pod, Snapshot};

/// The label that every namespace has (P10).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A group of pods that are alike. Which number a group has depends on history, so it never reaches output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GroupId(usize);

/// What pods have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Alike {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    pub(super) named: Named,
}

impl Alike {
    /// Of a pod.
    pub(super) fn of(name: &ObjectName, pod: &Pod) -> Self {
        let mut named = Named::new();
        for port in &pod.ports {
            if let Some(name) = &port.name {
                named
                    .entry((name.clone(), port.protocol))
                    .or_default()
                    .insert(port.port);
            }
        }
        Self {
            namespace: name.namespace.clone(),
            labels: pod.labels.clone(),
            named,
        }
    }
}

/// Pods that are alike, and what has become of them.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) alike: Arc<Alike>,
    /// How many pods it has.
    pods: usize,
    /// Those of this node.
    pub(super) local: BTreeSet<ObjectName>,
    /// The addresses that its pods own (P22).
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The numbers of the pod peers that mean them.
    pub(super) meant_by: BTreeSet<usize>,
    /// The policies that select them, where there is one of this node.
    pub(super) policies: BTreeSet<ObjectName>,
    /// What those come to.
    pub(super) rows: Rows,
}

/// A namespace that has pods.
#[derive(Debug)]
struct Namespace {
    labels: Labels,
    groups: BTreeSet<GroupId>,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: Slab<Group>,
    known: HashMap<Arc<Alike>, GroupId>,
    /// The group of each pod.
    of: BTreeMap<ObjectName, GroupId>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Groups by key and value of their labels.
    labelled: HashMap<String, HashMap<String, BTreeSet<GroupId>>>,
    /// Groups by name of a port.
    naming: HashMap<(Arc<str>, Protocol), BTreeSet<GroupId>>,
    /// Groups that may have lost their last pod.
    left: BTreeSet<GroupId>,
}

impl Groups {
    /// One of them.
    pub(super) fn get(&self, id: GroupId) -> &Group {
        &self.all[id.0]
    }

    /// One of them, to be changed.
    pub(super) fn get_mut(&mut self, id: GroupId) -> &mut Group {
        &mut self.all[id.0]
    }

    /// The group of a pod on the pod network.
    pub(super) fn of(&self, pod: &ObjectName) -> Option<GroupId> {
        self.of.get(pod).copied()
    }

    /// Those that have a port of this name.
    pub(super) fn naming(&self, name: &(Arc<str>, Protocol)) -> impl Iterator<Item = GroupId> + '_ {
        self.naming.get(name).into_iter().flatten().copied()
    }

    /// Those of a namespace.
    pub(super) fn within(&self, namespace: &str) -> impl Iterator<Item = GroupId> + '_ {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|namespace| &namespace.groups)
            .copied()
    }

    /// The labels of a group's namespace.
    pub(super) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces
            .get(namespace)
            .map(|namespace| &namespace.labels)
    }

    /// Takes a namespace up as the snapshot has it; gives the labels that it had, if they are others now.
    pub(super) fn relabel(&mut self, name: &str, snapshot: &Snapshot) -> Option<Labels> {
        let namespace = self.namespaces.get_mut(name)?;
        let labels = namespace_labels(name, snapshot);
        (namespace.labels != labels).then(|| std::mem::replace(&mut namespace.labels, labels))
    }

    /// Puts a pod among those that are like it; says which group that is, and whether it is new.
    pub(super) fn join(
        &mut self,
        pod: &ObjectName,
        alike: Alike,
        snapshot: &Snapshot,
    ) -> (GroupId, Newness) {
        let (id, newness) = match self.known.get(&alike) {
            Some(id) => (*id, Newness::Known),
            None => (self.begin(alike, snapshot), Newness::New),
        };
        self.leave(pod);
        self.all[id.0].pods += 1;
        self.of.insert(pod.clone(), id);
        (id, newness)
    }

    /// Takes a pod out of its group.
    pub(super) fn leave(&mut self, pod: &ObjectName) {
        if let Some(id) = self.of.remove(pod) {
            self.all[id.0].pods -= 1;
            self.left.insert(id);
        }
    }

    fn begin(&mut self, alike: Alike, snapshot: &Snapshot) -> GroupId {
        let alike = Arc::new(alike);
        let id = GroupId(self.all.insert(Group {
            alike: alike.clone(),
            pods: 0,
            local: BTreeSet::new(),
            addresses: BTreeSet::new(),
            meant_by: BTreeSet::new(),
            policies: BTreeSet::new(),
            rows: Rows::default(),
        }));
        let unknown = || Namespace {
            labels: namespace_labels(&alike.namespace, snapshot),
            groups: BTreeSet::new(),
        };
        self.namespaces
            .entry(alike.namespace.clone())
            .or_insert_with(unknown)
            .groups
            .insert(id);
        for (key, value) in &alike.labels {
            self.labelled
                .entry(key.clone())
                .or_default()
                .entry(value.clone())
                .or_default()
                .insert(id);
        }
        for name in alike.named.keys() {
            self.naming.entry(name.clone()).or_default().insert(id);
        }
        self.known.insert(alike, id);
        id
    }

    /// Ends the groups that have no pod any more, and gives them.
    pub(super) fn end_empty(&mut self) -> Vec<(GroupId, Group)> {
        let empty = std::mem::take(&mut self.left)
            .into_iter()
            .filter(|id| self.all[id.0].pods == 0);
        empty
            .collect::<Vec<_>>()
            .into_iter()
            .map(|id| (id, self.end(id)))
            .collect()
    }

    fn end(&mut self, id: GroupId) -> Group {
        let group = self.all.remove(id.0);
        let alike = &group.alike;
        self.known.remove(alike);
        if let Some(namespace) = self.namespaces.get_mut(&alike.namespace) {
            namespace.groups.remove(&id);
            if namespace.groups.is_empty() {
                self.namespaces.remove(&alike.namespace);
            }
        }
        for (key, value) in &alike.labels {
            if let Some(values) = self.labelled.get_mut(key) {
                forget(values, value, id);
                if values.is_empty() {
                    self.labelled.remove(key);
                }
            }
        }
        alike
            .named
            .keys()
            .for_each(|name| forget(&mut self.naming, name, id));
        group
    }

    /// The groups that a pod peer means (P8, P9).
    pub(super) fn meant_by_peer(&self, peer: &PodPeer) -> BTreeSet<GroupId> {
        let labels = |id: &GroupId| &self.get(*id).alike.labels;
        if let Some(candidates) = self.candidates(peer) {
            let scope = |id: &GroupId| self.in_scope(&peer.scope, &self.get(*id).alike.namespace);
            return candidates
                .filter(|id| peer.labels.selects(labels(id)) && scope(id))
                .collect();
        }
        let namespaces = self
            .namespaces
            .iter()
            .filter(|(name, namespace)| peer.scope.has(name, &namespace.labels));
        namespaces
            .flat_map(|(_, namespace)| &namespace.groups)
            .copied()
            .filter(|id| peer.labels.selects(labels(id)))
            .collect()
    }

    fn in_scope(&self, scope: &Scope, namespace: &str) -> bool {
        self.namespaces
            .get(namespace)
            .is_some_and(|found| scope.has(namespace, &found.labels))
    }

    /// A few groups that have all that a pod peer means; `None` if nothing tells them from all.
    fn candidates<'a>(
        &'a self,
        peer: &'a PodPeer,
    ) -> Option<Box<dyn Iterator<Item = GroupId> + 'a>> {
        if let Scope::Own(namespace) = &peer.scope {
            return Some(Box::new(self.within(namespace)));
        }
        let one_of = |selector: &'a Selector| {
            selector
                .requirements
                .iter()
                .find_map(|requirement| match requirement {
                    Requirement::In(key, values) => Some((key, values)),
                    Requirement::NotIn(..)
                    | Requirement::Exists(_)
                    | Requirement::DoesNotExist(_) => None,
                })
        };
        let (key, values) = one_of(&peer.labels)?;
        let labelled = self.labelled.get(key);
        Some(Box::new(
            values
                .iter()
                .filter_map(move |value| labelled?.get(value))
                .flatten()
                .copied(),
        ))
    }
}

/// Whether a group was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newness {
    /// It was.
    Known,
    /// It was not.
    New,
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<GroupId>>, key: &K, id: GroupId) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

/// P10: with the name, also where the Namespace has not been heard of.
fn namespace_labels(name: &str, snapshot: &Snapshot) -> Labels {
    let known = snapshot.state.namespaces.get(&ObjectName::cluster(name));
    let mut labels = known
        .map(|namespace| namespace.labels.clone())
        .unwrap_or_default();
    labels.insert(NAMESPACE_NAME.into(), name.into());
    labels
}
