//! The rules of NetworkPolicy read literally: one connection, every policy, every rule, in
//! Kubernetes' own types. Shares nothing with the compiler.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cases::{Pod, Step};

type Labels = BTreeMap<String, String>;

/// One end of a connection.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The pod, if the end is one with a network of its own that has not finished (P17, P20).
    pub pod: Option<&'a Pod>,
    /// The node, if the end is one (P17).
    pub node: Option<&'a str>,
    /// Its address.
    pub ip: IpAddr,
}

/// The destination port.
#[derive(Clone, Copy)]
pub struct Port<'a> {
    pub protocol: &'a str,
    pub number: u16,
}

/// P1: returns the verdicts of the destination's ingress and the source's egress on a new
/// connection.
pub fn verdict(
    step: &Step,
    policies: &[NetworkPolicy],
    from: End,
    to: End,
    port: Port,
) -> (bool, bool) {
    let own_node = to
        .pod
        .is_some_and(|pod| pod.node.is_some() && pod.node.as_deref() == from.node);
    let ingress = own_node || allowed(step, policies, Direction::Ingress, to, from, port);
    (
        ingress,
        allowed(step, policies, Direction::Egress, from, to, port),
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// P3, P4: a pod is isolated by each policy that selects it and has the direction; any rule of
/// these allows.
fn allowed(
    step: &Step,
    policies: &[NetworkPolicy],
    direction: Direction,
    judged: End,
    other: End,
    port: Port,
) -> bool {
    let Some(pod) = judged.pod else { return true };
    let mut applicable = policies
        .iter()
        .filter(|policy: &&NetworkPolicy| {
            let spec = policy.spec.clone().unwrap_or_default();
            policy.metadata.namespace.as_deref() == Some(&pod.namespace)
                && selects(&spec.pod_selector.unwrap_or_default(), &pod.labels)
                && names(policy, direction)
        })
        .peekable();
    applicable.peek().is_none()
        || applicable.any(|policy| has_rule(step, policy, direction, pod, other, port))
}

/// P2: returns true if the policy has this direction.
fn names(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else {
        return direction == Direction::Ingress;
    };
    let types = spec.policy_types.clone().unwrap_or_default();
    let egress_rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    match direction {
        Direction::Ingress => types.is_empty() || types.iter().any(|name| name == "Ingress"),
        Direction::Egress => {
            types.iter().any(|name| name == "Egress") || types.is_empty() && egress_rules
        }
    }
}

/// P6, P7.
fn has_rule(
    step: &Step,
    policy: &NetworkPolicy,
    direction: Direction,
    pod: &Pod,
    other: End,
    port: Port,
) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let peers = |list: &Option<Vec<NetworkPolicyPeer>>| {
        let list = list.as_deref().unwrap_or_default();
        list.is_empty()
            || list
                .iter()
                .any(|peer| is_peer(step, namespace, peer, other))
    };
    let ports = |list: &Option<Vec<NetworkPolicyPort>>, destination: Option<&Pod>| {
        let list = list.as_deref().unwrap_or_default();
        list.is_empty() || list.iter().any(|wanted| is_port(wanted, destination, port))
    };
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .any(|rule| peers(&rule.from) && ports(&rule.ports, Some(pod))),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .any(|rule| peers(&rule.to) && ports(&rule.ports, other.pod)),
    }
}

/// P8, P10, P11.
fn is_peer(step: &Step, namespace: &str, peer: &NetworkPolicyPeer, other: End) -> bool {
    if let Some(block) = &peer.ip_block {
        let excepted = block
            .except
            .iter()
            .flatten()
            .any(|except| within(except, other.ip));
        return within(&block.cidr, other.ip) && !excepted;
    }
    let Some(pod) = other.pod else { return false };
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return false;
    }
    let in_namespace = match &peer.namespace_selector {
        None => pod.namespace == namespace,
        Some(selector) => selects(selector, &step.labels_of_namespace(&pod.namespace)),
    };
    in_namespace
        && peer
            .pod_selector
            .as_ref()
            .is_none_or(|selector| selects(selector, &pod.labels))
}

/// P13-P16.
fn is_port(wanted: &NetworkPolicyPort, destination: Option<&Pod>, port: Port) -> bool {
    if wanted.protocol.as_deref().unwrap_or("TCP") != port.protocol {
        return false;
    }
    let number = i32::from(port.number);
    match (&wanted.port, wanted.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&number),
        (Some(IntOrString::Int(only)), None) => *only == number,
        (Some(IntOrString::String(name)), _) => {
            let ports = destination.into_iter().flat_map(|pod| &pod.container_ports);
            ports.into_iter().any(|p| {
                p.name.as_ref() == Some(name)
                    && p.protocol.as_deref().unwrap_or("TCP") == port.protocol
                    && p.container_port == number
            })
        }
    }
}

/// P9.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|wanted| {
        let values = wanted.values.as_deref().unwrap_or_default();
        match (wanted.operator.as_str(), labels.get(&wanted.key)) {
            ("In", value) => value.is_some_and(|value| values.contains(value)),
            ("NotIn", value) => value.is_none_or(|value| !values.contains(value)),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            _ => false,
        }
    });
    equal && expressions
}

/// P12: host bits do not count, leading zeros are decimal, and families do not mix.
fn within(cidr: &str, ip: IpAddr) -> bool {
    let Some((addr, bits)) = cidr.trim().split_once('/') else {
        return false;
    };
    let octets = |text: &str| -> Option<Vec<u8>> {
        text.split('.').map(|octet| octet.parse().ok()).collect()
    };
    let base: Vec<u8> = match addr.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => addr.octets().to_vec(),
        Ok(IpAddr::V6(addr)) => addr.octets().to_vec(),
        Err(_) => match octets(addr) {
            Some(octets) => octets,
            None => return false,
        },
    };
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let Ok(bits) = bits.parse::<usize>() else {
        return false;
    };
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    base.len() == bytes.len()
        && (0..bits.min(8 * bytes.len())).all(|at| bit(&base, at) == bit(&bytes, at))
}
