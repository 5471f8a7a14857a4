//! What news may have changed, by name: what the compiler has to look at again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Kind, Links, ObjectName, Update};

/// What has changed in a snapshot since the last compile; naming too much costs time, too little is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// What everything depends on: nodes, ranges, settings, this host's devices and addresses. The rest does not matter then.
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
    /// Addresses whose device was found or lost.
    pub addresses: BTreeSet<IpAddr>,
}

impl Touched {
    /// Nothing is known of what changed.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Also what `more` has.
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

    /// What a piece of news may change.
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

    /// What a new look at the host's network may change.
    pub fn record_links(&mut self, before: &Links, after: &Links) {
        let differs = |addr: &&IpAddr| before.pods.get(*addr) != after.pods.get(*addr);
        self.addresses
            .extend(before.pods.keys().chain(after.pods.keys()).filter(differs));
        self.everything |=
            (&before.devices, &before.host_addresses) != (&after.devices, &after.host_addresses);
    }
}
