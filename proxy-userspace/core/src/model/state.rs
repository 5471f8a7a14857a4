//! The cluster's objects as last reported, and the updates that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    EndpointSlice, Invalid, Namespace, NetworkPolicy, Node, Object, ObjectName, ObjectRef, Pod,
    Service, ServiceCidr, Workload, WorkloadName,
};

/// The cluster's objects as last reported.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Services, also those that are not served (V1).
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices that belong to a Service.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Pods of every node.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<ObjectName, Node>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<ObjectName, Namespace>,
    /// NetworkPolicies.
    pub policies: BTreeMap<ObjectName, NetworkPolicy>,
    /// The ranges of cluster IPs, if the API server has such objects (1.33).
    pub service_cidrs: BTreeMap<ObjectName, ServiceCidr>,
    /// Workloads, for `doctor`; only a directory of manifests reports them.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Objects that cannot be used, and why.
    pub invalid: BTreeMap<ObjectRef, Invalid>,
    /// Errors in parts of objects that are otherwise in force.
    pub flaws: BTreeMap<ObjectRef, Vec<Invalid>>,
    /// True once every kind was listed; before that nothing is compiled (V1).
    pub synced: bool,
    /// The state of the connection to the source. Objects stay in force while it is down.
    pub connection: Connection,
}

/// The state of the connection to the source of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not reached yet.
    #[default]
    Never,
    /// The source answers.
    Up,
    /// The source stopped answering, with this error.
    Down(Arc<str>),
}

/// One report of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The object is new or has changed.
    Apply(Object),
    /// The object is new or has changed, and parts of it cannot be used: they count as absent, or
    /// match nothing. At least one is named.
    Flawed(Object, Vec<Invalid>),
    /// The object is gone, or does not concern this proxy any more.
    Delete(ObjectRef),
    /// The object exists but cannot be used: it counts as gone.
    Invalid(Invalid),
    /// Every object has been listed.
    Synced,
    /// The source was reached, or was lost.
    Connection(Connection),
}

impl Update {
    /// Returns the object that the update is about.
    pub fn object(&self) -> Option<ObjectRef> {
        match self {
            Self::Apply(object) | Self::Flawed(object, _) => Some(object.reference()),
            Self::Delete(object) => Some(object.clone()),
            Self::Invalid(invalid) => Some(invalid.object.clone()),
            Self::Synced | Self::Connection(_) => None,
        }
    }
}

impl State {
    /// Applies an update. Returns `Yes` if an input of `compile` may have changed.
    pub fn apply(&mut self, update: Update) -> Changed {
        if let Some(object) = update.object() {
            self.invalid.remove(&object);
            self.flaws.remove(&object);
        }
        match update {
            Update::Apply(object) => self.put(object),
            Update::Flawed(object, flaws) => {
                self.flaws.insert(object.reference(), flaws);
                self.put(object)
            }
            Update::Delete(name) => self.remove(&name),
            Update::Invalid(invalid) => {
                let changed = self.remove(&invalid.object);
                self.invalid.insert(invalid.object.clone(), invalid);
                changed
            }
            Update::Synced => Changed::from(!std::mem::replace(&mut self.synced, true)),
            Update::Connection(connection) => {
                self.connection = connection;
                Changed::No
            }
        }
    }

    /// Returns the pods that a Service's selector selects: pods of its namespace with all of the
    /// selector's labels. An empty selector selects none.
    pub fn pods_of<'a>(
        &'a self,
        name: &'a ObjectName,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
        let here = self
            .pods
            .iter()
            .filter(|(pod, _)| pod.namespace == name.namespace && !service.selector.is_empty());
        here.filter(|(_, pod)| {
            service
                .selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    }

    /// Returns the slices of each Service.
    pub fn slices_by_service(&self) -> BTreeMap<&ObjectName, Vec<&EndpointSlice>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in self.slices.values() {
            found.entry(&slice.service).or_default().push(slice);
        }
        found
    }
}

pub(super) fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, name: K, object: V) -> Changed {
    let changed = map.get(&name) != Some(&object);
    map.insert(name, object);
    Changed::from(changed)
}

/// The effect of an update on the inputs of `compile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// It may have: compile again.
    Yes,
    /// It has not.
    No,
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Self {
        if changed { Self::Yes } else { Self::No }
    }
}
