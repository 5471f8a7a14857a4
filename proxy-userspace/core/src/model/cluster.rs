//! Nodes, Namespaces and ServiceCIDRs: the fields that are read. Labels and times of all objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Labels, or a selector of equal form.
pub type Labels = BTreeMap<String, String>;

/// Seconds since 1970, as the API server writes them.
pub type UnixTime = i64;

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// True if it is being deleted, or marked for that by the autoscaler: load balancers should
    /// choose other nodes (V23).
    pub leaving: bool,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: Labels,
}

impl Namespace {
    /// Makes one with these labels and `kubernetes.io/metadata.name`, which every one has (P10).
    pub fn new(name: &str, mut labels: Labels) -> Self {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Self { labels }
    }
}

/// A ServiceCIDR: ranges that the API server allocates cluster IPs from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `spec.cidrs`.
    pub prefixes: BTreeSet<IpNet>,
}
