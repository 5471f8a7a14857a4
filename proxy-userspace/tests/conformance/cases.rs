//! The forms of the cases in the files. Null equals an empty list, and an unknown expectation is an
//! error.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::report::Weight;

mod health;
mod slices;

pub use health::*;
pub use slices::*;

/// Reads a file of one kind; an error names the field.
pub fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).context("understand its cases")
}

fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A change of an object.
#[derive(Deserialize)]
pub struct Event {
    /// add, update or delete.
    pub op: String,
    /// The object, or the one that goes.
    pub object: Value,
}

/// A file of new connections and what becomes of them.
#[derive(Deserialize)]
pub struct FlowFile {
    pub config: FlowConfig,
    #[serde(default, deserialize_with = "nullable")]
    pub objects: Vec<Value>,
    #[serde(default, deserialize_with = "nullable")]
    pub flows: Vec<Flow>,
    #[serde(default, deserialize_with = "nullable")]
    pub steps: Vec<FlowStep>,
    pub expect_no_local_endpoints: Option<NoLocalEndpoints>,
}

/// The node that flows meet.
#[derive(Deserialize)]
pub struct FlowConfig {
    pub node_name: String,
    pub primary_node_ip: IpAddr,
    pub node_ips: Vec<IpAddr>,
    #[serde(default, deserialize_with = "nullable")]
    pub nodeport_addresses: Vec<String>,
    /// `None`: pods are not recognised by a prefix.
    pub local_pod_cidrs: Option<Vec<String>>,
    #[serde(default, deserialize_with = "nullable")]
    pub service_cidrs: Vec<String>,
    pub zone: Option<String>,
}

/// The next state of the objects, and the flows to check then.
#[derive(Deserialize)]
pub struct FlowStep {
    #[serde(default, deserialize_with = "nullable")]
    pub changes: Vec<Event>,
    #[serde(default, deserialize_with = "nullable")]
    pub objects: Vec<Value>,
    #[serde(default, deserialize_with = "nullable")]
    pub flows: Vec<Flow>,
}

/// The source of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Pod,
    Node,
    External,
}

/// The expected outcome of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    Reject,
    Drop,
    Forward,
    Pass,
}

/// A new connection.
#[derive(Deserialize)]
pub struct Flow {
    pub name: String,
    pub origin: Origin,
    pub source_ip: IpAddr,
    pub protocol: String,
    pub dest_ip: IpAddr,
    pub dest_port: u16,
    pub expect: Expect,
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<SocketAddr>,
    #[serde(default)]
    pub masquerade: bool,
    #[serde(default)]
    advisory: bool,
}

impl Flow {
    pub fn weight(&self) -> Weight {
        weight(self.advisory)
    }
}

fn weight(advisory: bool) -> Weight {
    if advisory {
        Weight::Advisory
    } else {
        Weight::Binding
    }
}

/// Service ports with a Local policy that have endpoints, but none here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoLocalEndpoints {
    pub internal: usize,
    pub external: usize,
}

/// `topology.json`.
#[derive(Deserialize)]
pub struct TopologyFile {
    pub cases: Vec<TopologyCase>,
}

/// A Service and its endpoints as a node sees them.
#[derive(Deserialize)]
pub struct TopologyCase {
    pub name: String,
    pub config: Place,
    pub objects: Vec<Value>,
    pub expect: TopologyExpect,
    #[serde(default)]
    advisory: bool,
}

impl TopologyCase {
    pub fn weight(&self) -> Weight {
        weight(self.advisory)
    }
}

/// The node and zone of a case.
#[derive(Deserialize)]
pub struct Place {
    #[serde(default)]
    pub node_name: String,
    pub zone: Option<String>,
    pub ip_family: Option<String>,
    /// Changes before this time are not timed.
    pub tracker_start: Option<Timestamp>,
}

/// The endpoints for Cluster and for Local.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyExpect {
    #[serde(deserialize_with = "nullable")]
    pub cluster_endpoints: Vec<SocketAddr>,
    #[serde(deserialize_with = "nullable")]
    pub local_endpoints: Vec<SocketAddr>,
    #[serde(deserialize_with = "nullable")]
    pub all_endpoints: Vec<SocketAddr>,
    pub has_any_endpoints: bool,
}

/// `nodeport_addresses.json`.
#[derive(Deserialize)]
pub struct AddressFile {
    #[serde(default)]
    pub node_ips: Vec<AddressCase>,
    #[serde(default)]
    pub contains_ipv4_loopback: Vec<LoopbackCase>,
}

/// The addresses of a host that nodePorts are served on.
#[derive(Deserialize)]
pub struct AddressCase {
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub nodeport_addresses: Vec<String>,
    pub interfaces: Vec<Interface>,
    /// By family.
    pub expect: BTreeMap<String, AddressExpect>,
}

#[derive(Deserialize)]
pub struct Interface {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressExpect {
    #[serde(deserialize_with = "nullable")]
    pub ips: Vec<IpAddr>,
    pub match_all: bool,
}

/// A case: the prefixes have an address of IPv4's loopback, by family.
#[derive(Deserialize)]
pub struct LoopbackCase {
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub nodeport_addresses: Vec<String>,
    pub expect: BTreeMap<String, bool>,
}

/// `udp_cleanup.json`.
#[derive(Deserialize)]
pub struct UdpFile {
    pub cases: Vec<UdpCase>,
}

#[derive(Deserialize)]
pub struct UdpCase {
    pub name: String,
    pub config: Place,
    pub objects: Vec<Value>,
    pub flows: Vec<UdpFlow>,
}

/// A flow that exists when the Service changes.
#[derive(Debug, Deserialize)]
pub struct UdpFlow {
    pub protocol: String,
    /// None: an address of the node.
    pub orig_dst: Option<IpAddr>,
    pub orig_dst_port: u16,
    pub reply_src: IpAddr,
    /// None: that of the destination.
    pub reply_src_port: Option<u16>,
    pub expect: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Keep,
    Delete,
}
