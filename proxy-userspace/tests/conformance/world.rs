//! The node that a case's flows meet: its objects and its network.
//!
//! Every address of the node is on one device. An endpoint with this node's name, and every pod
//! that a flow comes from, is a pod behind a veth here; all other addresses are beyond the device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portway::model::{
    Labels, Links, Node, NodePortAddresses, ObjectName, Phase, Pod, Settings, Snapshot, State,
};
use proxy_common::net::{Device, IfIndex};

use crate::cases::{Flow, FlowConfig, Origin};

/// The node's device.
pub const DEVICE: IfIndex = IfIndex(10);
/// The first of the pods' devices, and how many there are; pods beyond that share them.
pub const FIRST_POD: u32 = 20;
pub const PODS: u32 = 8;

/// A node.
pub struct World {
    /// The inputs of `compile`.
    pub snapshot: Snapshot,
    here: BTreeMap<IpAddr, IfIndex>,
    node_ips: BTreeSet<IpAddr>,
}

impl World {
    /// The node of a case, with the pods that these flows come from.
    pub fn new(config: &FlowConfig, state: &State, flows: &[Flow]) -> Result<Self> {
        let node_ips: BTreeSet<_> = config.node_ips.iter().copied().collect();
        let sources = flows
            .iter()
            .filter(|flow| flow.origin == Origin::Pod)
            .map(|flow| flow.source_ip);
        let endpoints = state.slices.values().flat_map(|slice| &slice.endpoints);
        let local = endpoints
            .filter(|e| e.is_on(&config.node_name))
            .map(|e| e.addr);
        let pods: BTreeSet<_> = sources
            .chain(local)
            .filter(|ip| !node_ips.contains(ip))
            .collect();
        let device = |number| IfIndex(FIRST_POD + number % PODS);
        let here: BTreeMap<_, _> = pods
            .iter()
            .zip(0..)
            .map(|(ip, number)| (*ip, device(number)))
            .collect();
        let mut state = state.clone();
        state
            .nodes
            .insert(ObjectName::cluster(&config.node_name), node(config));
        state.pods.extend(here.keys().map(|ip| {
            (
                ObjectName::new("pods", &ip.to_string()),
                pod(*ip, &config.node_name),
            )
        }));
        let snapshot = Snapshot {
            settings: settings(config)?,
            state,
            links: links(config, &here),
        };
        Ok(Self {
            snapshot,
            here,
            node_ips,
        })
    }

    /// Returns true if packets to this address are delivered on this node.
    pub fn is_here(&self, ip: IpAddr) -> bool {
        self.here.contains_key(&ip) || self.node_ips.contains(&ip)
    }

    /// The device of a pod of this node.
    pub fn pod(&self, ip: IpAddr) -> Option<IfIndex> {
        self.here.get(&ip).copied()
    }

    /// The node's own addresses.
    pub fn config_node_ips(&self) -> &BTreeSet<IpAddr> {
        &self.node_ips
    }
}

/// Prefixes from text.
pub fn prefixes(texts: &[String]) -> Result<Vec<IpNet>> {
    texts
        .iter()
        .map(|text| {
            text.parse::<IpNet>()
                .with_context(|| format!("read the prefix {text}"))
        })
        .collect()
}

fn settings(config: &FlowConfig) -> Result<Settings> {
    Ok(Settings {
        node_name: config.node_name.as_str().into(),
        nodeport_addresses: NodePortAddresses::Within(prefixes(&config.nodeport_addresses)?),
        cluster_cidrs: prefixes(config.local_pod_cidrs.as_deref().unwrap_or_default())?,
        service_cidrs: prefixes(&config.service_cidrs)?,
        secret: 0x0123_4567_89ab_cdef,
        hz: 1000,
        ..Settings::default()
    })
}

fn node(config: &FlowConfig) -> Node {
    Node {
        internal_ips: vec![config.primary_node_ip],
        zone: config.zone.as_deref().map(Into::into),
        ..Node::default()
    }
}

fn pod(ip: IpAddr, node: &str) -> Pod {
    Pod {
        addresses: vec![ip],
        node: Some(node.into()),
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        ready: true,
        unready_because: None,
        any_source: false,
        labels: Labels::new(),
        ports: Vec::new(),
        created: None,
    }
}

fn links(config: &FlowConfig, pods: &BTreeMap<IpAddr, IfIndex>) -> Links {
    let mut device = Device {
        mtu: 1500,
        ..Device::default()
    };
    // The primary one last, so that it stands.
    for ip in config
        .node_ips
        .iter()
        .rev()
        .chain([&config.primary_node_ip])
    {
        match ip {
            IpAddr::V4(ip) => device.masquerade4 = (*ip).into(),
            IpAddr::V6(ip) => device.masquerade6 = (*ip).into(),
        }
    }
    Links {
        pods: pods.clone(),
        devices: [(DEVICE, device)].into(),
        gate: None,
        host_addresses: config.node_ips.iter().map(|ip| (*ip, DEVICE)).collect(),
    }
}
