//! Phrases for selectors, ports, peers and labels of NetworkPolicies.

use std::fmt::Display;

use crate::model::Labels;
use crate::model::policy::{Namespaces, PolicyPort, PortMatch, Requirement, Selector};

/// Joins items with commas.
pub(super) fn list(items: &[impl Display]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Describes a selector; an empty one selects everything.
pub(crate) fn selector(selector: &Selector) -> String {
    list(
        &selector
            .requirements
            .iter()
            .map(requirement)
            .collect::<Vec<_>>(),
    )
}

/// Describes one requirement, as `kubectl get --selector` writes it.
fn requirement(requirement: &Requirement) -> String {
    let joined =
        |values: &std::collections::BTreeSet<String>| list(&values.iter().collect::<Vec<_>>());
    match requirement {
        Requirement::In(key, values) if values.len() == 1 => format!("{key}={}", joined(values)),
        Requirement::In(key, values) => format!("{key} in ({})", joined(values)),
        Requirement::NotIn(key, values) if values.len() == 1 => {
            format!("{key}!={}", joined(values))
        }
        Requirement::NotIn(key, values) => format!("{key} notin ({})", joined(values)),
        Requirement::Exists(key) => format!("a label {key}"),
        Requirement::DoesNotExist(key) => format!("no label {key}"),
    }
}

/// Returns the labels that differ from the selector; `None` if it selects them.
pub(super) fn differs(selector: &Selector, labels: &Labels) -> Option<String> {
    let failing = selector
        .requirements
        .iter()
        .filter(|requirement| !requirement.holds(labels));
    let has = |requirement: &Requirement| {
        let (Requirement::In(key, _)
        | Requirement::NotIn(key, _)
        | Requirement::Exists(key)
        | Requirement::DoesNotExist(key)) = requirement;
        labels.get(key).map_or_else(
            || format!("no label {key}"),
            |value| format!("{key}={value}"),
        )
    };
    let found: Vec<_> = failing.map(has).collect();
    (!found.is_empty()).then(|| list(&found))
}

/// Describes the pods that a peer matches.
pub(crate) fn pods(own: &str, namespaces: &Namespaces, pods: &Selector) -> String {
    let which = match pods.requirements.is_empty() {
        true => "a pod".to_owned(),
        false => format!("a pod with {}", selector(pods)),
    };
    match namespaces {
        Namespaces::Own => format!("{which} of namespace {own}"),
        Namespaces::Matching(any) if any.requirements.is_empty() => {
            format!("{which} of any namespace")
        }
        Namespaces::Matching(some) => format!("{which} of a namespace with {}", selector(some)),
    }
}

/// Describes a rule's port.
pub(crate) fn port(port: &PolicyPort) -> String {
    let protocol = port.protocol.name();
    match &port.port {
        PortMatch::All => format!("every {protocol} port"),
        PortMatch::Range(range) if range.first == range.last => {
            format!("port {}/{protocol}", range.first)
        }
        PortMatch::Range(range) => format!("ports {range}/{protocol}"),
        PortMatch::Named(name) => format!("port {name}/{protocol}"),
    }
}
