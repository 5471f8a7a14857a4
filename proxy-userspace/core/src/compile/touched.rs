//! The objects that updates may have changed, which the compilers look at again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Kind, Links, ObjectName, Update};

/// Changes of a snapshot since the last compile. Naming too much costs time; naming too little is
/// an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes, ranges, settings, or this host's devices or addresses have changed, on which
    /// everything depends. The other fields do not matter then.
    pub everything: bool,
    /// Services.
    pub services: BTreeSet<ObjectName>,
    /// EndpointSlices.
    pub slices: BTreeSet<ObjectName>,
    /// Pods.
    pub pods: BTreeSet<ObjectName>,
    /// Namespaces.
    pub namespaces: BTreeSet<ObjectName>,
    /// NetworkPolicies.
    pub policies: BTreeSet<ObjectName>,
    /// Addresses that got or lost a device.
    pub addresses: BTreeSet<IpAddr>,
}

impl Touched {
    /// Returns the value for unknown changes.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Adds the changes of `more`.
    pub fn extend(&mut self, more: Self) {
        let Self {
            everything,
            services,
            slices,
            pods,
            namespaces,
            policies,
            addresses,
        } = more;
        self.everything |= everything;
        self.services.extend(services);
        self.slices.extend(slices);
        self.pods.extend(pods);
        self.namespaces.extend(namespaces);
        self.policies.extend(policies);
        self.addresses.extend(addresses);
    }

    /// Adds the changes of an update.
    pub fn record(&mut self, update: &Update) {
        self.everything |= *update == Update::Synced;
        let Some(object) = update.object() else {
            return;
        };
        match object.kind {
            Kind::Service => _ = self.services.insert(object.name),
            Kind::EndpointSlice => _ = self.slices.insert(object.name),
            Kind::Pod => _ = self.pods.insert(object.name),
            Kind::Namespace => _ = self.namespaces.insert(object.name),
            Kind::NetworkPolicy => _ = self.policies.insert(object.name),
            Kind::Node | Kind::ServiceCIDR => self.everything = true,
            // `compile` does not read these.
            Kind::Deployment
            | Kind::ReplicaSet
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::Manifest => {}
        }
    }

    /// Adds the differences of the host's network.
    pub fn record_links(&mut self, before: &Links, after: &Links) {
        self.addresses.extend(
            before
                .pods
                .keys()
                .chain(after.pods.keys())
                .filter(|addr| before.pods.get(*addr) != after.pods.get(*addr)),
        );
        self.everything |=
            (&before.devices, &before.host_addresses) != (&after.devices, &after.host_addresses);
    }
}
