//! The kinds of objects that sources report: one table makes every list that must agree on them.

use std::fmt;

use super::state::put;
use super::{
    Changed, EndpointSlice, Namespace, NetworkPolicy, Node, ObjectName, ObjectRef, Pod, Service,
    ServiceCidr, State, Workload, WorkloadName,
};

/// Makes [`Kind`], [`Object`] and their places in [`State`] from one line for each kind.
macro_rules! kinds {
    (
        objects { $($kind:ident: $object:ident in $store:ident, $scope:ident;)* }
        workloads { $($workload:ident,)* }
    ) => {
        /// The kinds of objects that sources report.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "Kubernetes' own names")]
        pub enum Kind {
            $($kind,)*
            $($workload,)*
            /// No object: a file that should hold some.
            Manifest,
        }

        impl Kind {
            /// Kinds that the agent watches at an API server.
            pub const WATCHED: &'static [Self] = &[$(Self::$kind,)*];
            /// Kinds that a directory of manifests may hold.
            pub const OBJECTS: &'static [Self] = &[$(Self::$kind,)* $(Self::$workload,)*];

            /// Returns the kind's name as Kubernetes writes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                    $(Self::$workload => stringify!($workload),)*
                    Self::Manifest => "Manifest",
                }
            }

            /// Returns the kind of this name, if a manifest may hold it.
            pub fn named(name: &str) -> Option<Self> {
                Self::OBJECTS.iter().copied().find(|kind| kind.name() == name)
            }

            /// Returns true if objects of this kind live in a namespace.
            pub const fn is_namespaced(self) -> bool {
                match self {
                    $(Self::$kind => kinds!(@$scope),)*
                    $(Self::$workload => true,)*
                    Self::Manifest => false,
                }
            }
        }

        /// An object of any kind, with its name.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "named after their types")]
        pub enum Object {
            $($object(ObjectName, $object),)*
            Workload(WorkloadName, Workload),
        }

        impl Object {
            /// Returns its kind and name.
            pub fn reference(&self) -> ObjectRef {
                let (kind, name) = match self {
                    $(Self::$object(name, _) => (Kind::$kind, name),)*
                    Self::Workload(WorkloadName { kind, name }, _) => (*kind, name),
                };
                ObjectRef { kind, name: name.clone() }
            }
        }

        impl State {
            pub(super) fn put(&mut self, object: Object) -> Changed {
                match object {
                    $(Object::$object(name, object) => put(&mut self.$store, name, object),)*
                    Object::Workload(name, workload) => put(&mut self.workloads, name, workload),
                }
            }

            pub(super) fn remove(&mut self, object: &ObjectRef) -> Changed {
                let ObjectRef { kind, name } = object;
                Changed::from(match kind {
                    $(Kind::$kind => self.$store.remove(name).is_some(),)*
                    $(Kind::$workload)|* => {
                        let workload = WorkloadName { kind: *kind, name: name.clone() };
                        self.workloads.remove(&workload).is_some()
                    }
                    Kind::Manifest => false,
                })
            }
        }
    };
    (@namespaced) => { true };
    (@cluster) => { false };
}

kinds! {
    objects {
        Service: Service in services, namespaced;
        EndpointSlice: EndpointSlice in slices, namespaced;
        Pod: Pod in pods, namespaced;
        Node: Node in nodes, cluster;
        Namespace: Namespace in namespaces, cluster;
        NetworkPolicy: NetworkPolicy in policies, namespaced;
        ServiceCIDR: ServiceCidr in service_cidrs, cluster;
    }
    workloads { Deployment, ReplicaSet, StatefulSet, DaemonSet, }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
