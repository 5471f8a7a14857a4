//! Groups of pods that are alike: of one namespace, with equal labels and equal named ports.
//! Selectors and port names are evaluated once for each group.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::net::Protocol;
use slab::Slab;

use super::content::{PodPeer, Scope};
use super::rules::{Named, Rows};
use crate::model::policy::Requirement;
use crate::model::{Labels, ObjectName, Pod, Snapshot};

/// The label that every namespace has (P10).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A group of pods that are alike. Its number depends on history and must not reach output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GroupId(usize);

/// The properties that the pods of a group share.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Alike {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    pub(super) named: Named,
}

impl Alike {
    /// Returns those of a pod.
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

/// A group of pods that are alike.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) alike: Arc<Alike>,
    /// Number of its pods.
    pods: usize,
    /// Its pods on this node.
    pub(super) local: BTreeSet<ObjectName>,
    /// The addresses that its pods own (P22).
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The numbers of the pod peers that select it.
    pub(super) meant_by: BTreeSet<usize>,
    /// The policies that select it, if it has pods on this node.
    pub(super) policies: BTreeSet<ObjectName>,
    /// The rows that result from these policies.
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
    maybe_empty: BTreeSet<GroupId>,
}

impl Groups {
    /// Returns a group.
    pub(super) fn get(&self, id: GroupId) -> &Group {
        &self.all[id.0]
    }

    /// Returns a group, to be changed.
    pub(super) fn get_mut(&mut self, id: GroupId) -> &mut Group {
        &mut self.all[id.0]
    }

    /// Returns the group of a pod on the pod network.
    pub(super) fn of(&self, pod: &ObjectName) -> Option<GroupId> {
        self.of.get(pod).copied()
    }

    /// Returns the groups that have a port of this name.
    pub(super) fn naming(&self, name: &(Arc<str>, Protocol)) -> impl Iterator<Item = GroupId> + '_ {
        self.naming.get(name).into_iter().flatten().copied()
    }

    /// Returns the groups of a namespace.
    pub(super) fn within(&self, namespace: &str) -> impl Iterator<Item = GroupId> + '_ {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|namespace| &namespace.groups)
            .copied()
    }

    /// Returns the labels of a group's namespace.
    pub(super) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces
            .get(namespace)
            .map(|namespace| &namespace.labels)
    }

    /// Updates a namespace's labels from the snapshot. Returns the old labels if they have changed.
    pub(super) fn relabel(&mut self, name: &str, snapshot: &Snapshot) -> Option<Labels> {
        let namespace = self.namespaces.get_mut(name)?;
        let labels = namespace_labels(name, snapshot);
        (namespace.labels != labels).then(|| std::mem::replace(&mut namespace.labels, labels))
    }

    /// Puts a pod into its group. Returns the group, and whether it is new.
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

    /// Removes a pod from its group.
    pub(super) fn leave(&mut self, pod: &ObjectName) {
        if let Some(id) = self.of.remove(pod) {
            self.all[id.0].pods -= 1;
            self.maybe_empty.insert(id);
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
        self.namespaces
            .entry(alike.namespace.clone())
            .or_insert_with(|| Namespace {
                labels: namespace_labels(&alike.namespace, snapshot),
                groups: BTreeSet::new(),
            })
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

    /// Removes the groups without pods, and returns them.
    pub(super) fn end_empty(&mut self) -> Vec<(GroupId, Group)> {
        let empty = std::mem::take(&mut self.maybe_empty)
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

    /// Returns the groups that a pod peer selects (P8, P9).
    pub(super) fn meant_by_peer(&self, peer: &PodPeer) -> BTreeSet<GroupId> {
        let labels = |id: &GroupId| &self.get(*id).alike.labels;
        if let Some(candidates) = self.candidates(peer) {
            return candidates
                .filter(|id| {
                    peer.labels.selects(labels(id))
                        && self.in_scope(&peer.scope, &self.get(*id).alike.namespace)
                })
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

    /// Returns a small set of groups that contains all that a pod peer selects; `None` if no index
    /// narrows them down.
    fn candidates<'a>(
        &'a self,
        peer: &'a PodPeer,
    ) -> Option<Box<dyn Iterator<Item = GroupId> + 'a>> {
        if let Scope::Own(namespace) = &peer.scope {
            return Some(Box::new(self.within(namespace)));
        }
        let (key, values) =
            peer.labels
                .requirements
                .iter()
                .find_map(|requirement| match requirement {
                    Requirement::In(key, values) => Some((key, values)),
                    Requirement::NotIn(..)
                    | Requirement::Exists(_)
                    | Requirement::DoesNotExist(_) => None,
                })?;
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

/// Tells new groups from known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newness {
    /// The group existed before.
    Known,
    /// The group is new.
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

/// P10: returns the labels of a namespace, with its name, even if the Namespace object is not
/// known.
fn namespace_labels(name: &str, snapshot: &Snapshot) -> Labels {
    let known = snapshot.state.namespaces.get(&ObjectName::cluster(name));
    let mut labels = known
        .map(|namespace| namespace.labels.clone())
        .unwrap_or_default();
    labels.insert(NAMESPACE_NAME.into(), name.into());
    labels
}
