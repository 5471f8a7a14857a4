//! Rules that differ from kube-proxy's cases on purpose: each once, applied to every case alike,
//! and the row of the rules page that differences are listed under.
//!
//! A rule stands here only if its page contradicts the case in words. Any other difference is a
//! failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use portway::model::{Service, TrafficPolicy};

use crate::cases::{Expect, Flow, FlowConfig, Origin};
use crate::world::World;

/// A rule that differs from kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// The source is rewritten only for clients outside with a backend that another node delivers
    /// to.
    Masquerade,
    /// Pods of this node are recognised by their veth, also without a prefix.
    PodsAreKnown,
    /// A nodePort with policy Local and no local backend refuses at once.
    LocalNodePort,
    /// UDP flows end with their backend, also with a Service's last one, and for no other reason.
    UdpEndsWithBackend,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "V9 (who is masqueraded)",
            Self::PodsAreKnown => "V9's table, V11 (pods of this node reach all endpoints, whatever is known of their prefix)",
            Self::UdpEndsWithBackend => {
                "V14 (UDP flows end when their backend serves no more or the Service has none left, and only then)"
            }
            Self::LocalNodePort => "the table of verdicts (nodePort, externalTrafficPolicy Local, none here: reject)",
        })
    }
}

/// The part of the rules page that a check is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Row {
    /// Objects and slices.
    Objects,
    /// Endpoint sets and topology.
    Endpoints,
    /// The verdict, the endpoints and the source of a flow.
    Verdicts,
    /// Load balancer IPs with source ranges.
    SourceRanges,
    /// Addresses of Service ranges that no Service has.
    ServiceCidrs,
    /// nodePort addresses.
    NodePortAddresses,
    /// Pods of this node without a prefix: V11 defines the endpoints that they reach; the cases
    /// differ.
    PodsAreKnown,
    /// UDP flows that end with their backend.
    UdpFlows,
    /// Health.
    Health,
    /// NetworkPolicy.
    Policies,
    /// No rule: a file that cannot be parsed.
    File,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Objects => "V1-V4 objects and slices",
            Self::Endpoints => "V5-V7 endpoint sets",
            Self::Verdicts => "verdicts, V9-V11",
            Self::SourceRanges => "V3 loadBalancerSourceRanges",
            Self::ServiceCidrs => "Service CIDRs",
            Self::NodePortAddresses => "V8 nodePort addresses",
            Self::PodsAreKnown => "V11 where pods cannot be told apart",
            Self::UdpFlows => "V14 UDP flows",
            Self::Health => "V22, V23 health",
            Self::Policies => "P1-P24 NetworkPolicy",
            Self::File => "the file",
        })
    }
}

/// The owed outcome of a flow.
#[derive(Debug)]
pub struct Owed {
    /// The verdict.
    pub expect: Expect,
    /// All endpoints that the flow may reach, and true for those with a rewritten source.
    pub endpoints: BTreeMap<SocketAddr, bool>,
    /// The rules that override the case.
    pub otherwise: BTreeSet<Rule>,
}

/// Returns the case's outcome of a flow, corrected by the rules; `all` are the flows of the case.
pub fn owed(flow: &Flow, all: &[Flow], config: &FlowConfig, world: &World) -> Owed {
    let mut otherwise = BTreeSet::new();
    let mut said = flow;
    if let Some(node) = sibling_of_node(flow, all, config)
        .filter(|node| (node.expect, &node.endpoints) != (flow.expect, &flow.endpoints))
    {
        said = node;
        otherwise.insert(Rule::PodsAreKnown);
    }
    let mut expect = said.expect;
    if expect == Expect::Drop && is_local_node_port(flow, world) {
        expect = Expect::Reject;
        otherwise.insert(Rule::LocalNodePort);
    }
    let endpoints: BTreeMap<_, _> = said
        .endpoints
        .iter()
        .map(|e| (*e, masqueraded(flow, e, world)))
        .collect();
    if endpoints
        .values()
        .any(|masqueraded| *masqueraded != flow.masquerade)
    {
        otherwise.insert(Rule::Masquerade);
    }
    Owed {
        expect,
        endpoints,
        otherwise,
    }
}

/// V9, V10: returns true if the source is rewritten towards this endpoint.
fn masqueraded(flow: &Flow, endpoint: &SocketAddr, world: &World) -> bool {
    match flow.origin {
        Origin::Pod => flow.source_ip == endpoint.ip(),
        Origin::Node => false,
        Origin::External => !world.is_here(endpoint.ip()),
    }
}

/// V11: where kube-proxy cannot recognise pods, the outcome of the node's own flow to the same
/// frontend applies to its pods too.
fn sibling_of_node<'a>(flow: &Flow, all: &'a [Flow], config: &FlowConfig) -> Option<&'a Flow> {
    let place = |f: &Flow| (f.dest_ip, f.dest_port, f.protocol.clone());
    let unknown = config.local_pod_cidrs.is_none() && flow.origin == Origin::Pod;
    all.iter()
        .find(|other| unknown && other.origin == Origin::Node && place(other) == place(flow))
}

fn is_local_node_port(flow: &Flow, world: &World) -> bool {
    let here = flow.origin == Origin::External && world.config_node_ips().contains(&flow.dest_ip);
    let services = world
        .snapshot
        .state
        .services
        .values()
        .filter(|s| s.external_policy == TrafficPolicy::Local);
    here && services
        .filter(|s| !s.external_ips.contains(&flow.dest_ip))
        .flat_map(|s| &s.ports)
        .any(|port| port.node_port == Some(flow.dest_port) && port.protocol.name() == flow.protocol)
}

/// Returns the row that a flow belongs to.
pub fn row(flow: &Flow, config: &FlowConfig, world: &World) -> Row {
    let services = || world.snapshot.state.services.values();
    let restricted =
        |s: &Service| s.load_balancer_ips.contains(&flow.dest_ip) && !s.source_ranges.is_empty();
    let in_range = || {
        config
            .service_cidrs
            .iter()
            .filter_map(|c| c.parse::<IpNet>().ok())
            .any(|c| c.contains(&flow.dest_ip))
    };
    if services().any(restricted) {
        Row::SourceRanges
    } else if in_range() && !services().any(|s| s.cluster_ips.contains(&flow.dest_ip)) {
        Row::ServiceCidrs
    } else if config.local_pod_cidrs.is_none() && flow.origin == Origin::Pod {
        Row::PodsAreKnown
    } else {
        Row::Verdicts
    }
}
