//! Services without a backend: no pod matches, no container has the port, or no pod is ready.

use std::collections::BTreeSet;
use std::fmt::Display;

use proxy_common::net::Protocol;

use super::Finding;
use super::check::Check;
use super::labels::{Difference, nearest, words};
use crate::model::{
    ContainerPort, Kind, Labels, ObjectName, ObjectRef, Pod, Proxied, Service, State, TargetPort,
    Workload, WorkloadName,
};

/// Maximum number of examples in a list.
const EXAMPLES: usize = 3;

pub(super) fn examine(state: &State) -> Vec<Finding> {
    let slices = state.slices_by_service();
    let concerned = |s: &Service| !matches!(s.proxied, Proxied::ExternalName | Proxied::OtherProxy);
    let mut findings = Vec::new();
    for (name, service) in state.services.iter().filter(|(_, s)| concerned(s)) {
        let object = ObjectRef {
            kind: Kind::Service,
            name: name.clone(),
        };
        let pods: Vec<_> = state.pods_of(name, service).collect();
        let ready = slices
            .get(name)
            .into_iter()
            .flatten()
            .flat_map(|slice| &slice.endpoints)
            .any(|e| e.ready || e.serving);
        if service.selector.is_empty() {
            let written = slices.contains_key(name);
            findings.extend(
                (!ready && service.proxied == Proxied::Yes)
                    .then(|| without_selector(&object, Written::from(written))),
            );
        } else if pods.is_empty() {
            findings.push(no_pod(&object, service, state));
        } else {
            findings.extend(named_ports(&object, service, &pods));
            findings.extend(
                (!ready && !pods.iter().any(|(_, pod)| usable(pod)))
                    .then(|| nothing_ready(&object, &pods)),
            );
        }
    }
    findings
}

fn usable(pod: &Pod) -> bool {
    pod.ready && !pod.finished() && !pod.addresses.is_empty()
}

/// True if a Service without a selector has slices that somebody wrote.
enum Written {
    Yes,
    No,
}

impl From<bool> for Written {
    fn from(written: bool) -> Self {
        if written { Self::Yes } else { Self::No }
    }
}

fn without_selector(object: &ObjectRef, written: Written) -> Finding {
    let (problem, advice) = match written {
        Written::Yes => (
            "its EndpointSlices have no endpoint that is ready",
            "see to what writes them, and to the endpoints' conditions",
        ),
        Written::No => (
            "it has neither a selector nor an EndpointSlice, so it leads nowhere",
            "give it a selector, or an EndpointSlice with the label kubernetes.io/service-name",
        ),
    };
    Finding::new(
        Check::NoReadyEndpoint,
        object,
        "spec.selector",
        problem,
        advice,
    )
}

/// Returns the finding for a selector that matches no pod, with the nearest pods or workload.
fn no_pod(object: &ObjectRef, service: &Service, state: &State) -> Finding {
    let namespace = &object.name.namespace;
    let (hint, advice) = made_by_nobody(object, service, state)
        .or_else(|| elsewhere(object, service, state))
        .or_else(|| nearly(namespace, &service.selector, usize::MAX, state))
        .unwrap_or_else(|| {
            let pods = state
                .pods
                .keys()
                .filter(|pod| pod.namespace == *namespace)
                .count();
            let hint = format!("none of the {pods} pods of the namespace has labels like these");
            (hint, "create the pods, or correct the selector".to_owned())
        });
    let problem = format!(
        "the selector {} matches no pod of namespace {namespace}; {hint}",
        words(&service.selector)
    );
    Finding::new(
        Check::SelectorMatchesNothing,
        object,
        "spec.selector",
        problem,
        advice,
    )
}

/// A hint about something similar, and advice.
pub(super) type Hint = Option<(String, String)>;

/// Hints at a workload with a matching template but no pods.
fn made_by_nobody(object: &ObjectRef, service: &Service, state: &State) -> Hint {
    let makes = |(name, w): &(&WorkloadName, &Workload)| {
        name.name.namespace == object.name.namespace
            && service
                .selector
                .iter()
                .all(|(k, v)| w.labels.get(k) == Some(v))
    };
    let (name, workload) = state.workloads.iter().find(makes)?;
    let WorkloadName { kind, name } = name;
    Some(match workload.replicas {
        Some(0) => (
            format!("{kind} {name} would make them, but its spec.replicas is 0"),
            format!("scale {kind} {name} up"),
        ),
        _ => (
            format!("{kind} {name} would make them, but no such Pod is there"),
            format!(
                "see why {kind} {name} has no pods (in a directory of manifests, pods are to be given as Pods with status.podIPs)"
            ),
        ),
    })
}

/// Hints at matching pods of another namespace.
fn elsewhere(object: &ObjectRef, service: &Service, state: &State) -> Hint {
    let matches = |pod: &Pod| {
        service
            .selector
            .iter()
            .all(|(k, v)| pod.labels.get(k) == Some(v))
    };
    let (other, _) = state.pods.iter().find(|(_, pod)| matches(pod))?;
    let hint =
        format!("pod {other} has these labels, but a Service only picks pods of its own namespace");
    Some((
        hint,
        format!(
            "move the Service to namespace {}, or the pods to {}",
            other.namespace, object.name.namespace
        ),
    ))
}

/// Hints at labels that differ in at most `letters` letters, of pods before workloads.
pub(super) fn nearly(namespace: &str, selector: &Labels, letters: usize, state: &State) -> Hint {
    let here = |name: &ObjectName| *name.namespace == *namespace;
    let pods = state
        .pods
        .iter()
        .filter(|(name, _)| here(name))
        .map(|(name, pod)| (format!("pod {}", name.name), pod.labels.clone()));
    let workloads = state.workloads.iter().filter(|(name, _)| here(&name.name));
    let workloads = workloads.map(|(name, w)| {
        (
            format!("{} {}", name.kind, name.name.name),
            w.labels.clone(),
        )
    });
    let (who, differences) = nearest(selector, pods).or_else(|| nearest(selector, workloads))?;
    if differences.iter().map(|d| d.letters).sum::<usize>() > letters {
        return None;
    }
    let has = |d: &Difference| match &d.found {
        Some(found) => format!("{found} where the selector asks for {}", d.asked),
        None => format!("no {}", d.asked),
    };
    let corrections: Vec<_> = differences.iter().filter_map(|d| d.found.clone()).collect();
    let advice = match corrections.as_slice() {
        [] => "take those pairs out of the selector, or give the pods these labels".to_owned(),
        found => format!(
            "if those are meant, let the selector ask for {}",
            found.join(", ")
        ),
    };
    Some((
        format!(
            "nearest are {}: {}",
            some_of(&who),
            listed(differences.iter().map(has))
        ),
        advice,
    ))
}

/// Finds named targetPorts that no container of the matching pods declares.
fn named_ports(
    object: &ObjectRef,
    service: &Service,
    pods: &[(&ObjectName, &Pod)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, port) in service.ports.iter().enumerate() {
        let TargetPort::Name(name) = &port.target else {
            continue;
        };
        if pods.iter().any(|(_, pod)| port.on(pod).is_some()) {
            continue;
        }
        let ports: Vec<&ContainerPort> = pods.iter().flat_map(|(_, pod)| &pod.ports).collect();
        let (problem, advice) = unknown_name(name, port.protocol, &ports);
        findings.push(Finding::new(
            Check::UnknownTargetPort,
            object,
            format!("spec.ports[{i}].targetPort"),
            problem,
            advice,
        ));
    }
    findings
}

fn unknown_name(name: &str, protocol: Protocol, ports: &[&ContainerPort]) -> (String, String) {
    let protocol = protocol.name();
    if let Some(other) = ports.iter().find(|p| p.name.as_deref() == Some(name)) {
        let has = other.protocol.name();
        let problem = format!("the pods' port `{name}` is {has}, the Service port is {protocol}");
        return (
            problem,
            format!(
                "set the Service port's protocol to {has}, or the container port's to {protocol}"
            ),
        );
    }
    let names: BTreeSet<_> = ports.iter().filter_map(|p| p.name.as_deref()).collect();
    let near = names
        .iter()
        .min_by_key(|known| strsim::levenshtein(known, name));
    let numbers: BTreeSet<_> = ports.iter().map(|p| p.port).collect();
    let (there, advice) = match (near, numbers.first()) {
        (Some(near), _) => (
            format!(
                "they are called {}",
                listed(names.iter().map(|n| format!("`{n}`")))
            ),
            format!("set targetPort to {near}, or name the container's port {name}"),
        ),
        (None, Some(_)) => (
            format!(
                "theirs have no names, only numbers: {}",
                listed(numbers.iter())
            ),
            format!("set targetPort to the number, or name the container's port {name}"),
        ),
        (None, None) => (
            "they declare no ports at all".to_owned(),
            format!(
                "set targetPort to the number, or declare a port named {name} in the container"
            ),
        ),
    };
    (
        format!("no container of the matching pods has a port named `{name}`; {there}"),
        advice,
    )
}

/// Returns the finding for pods that match but are not ready, with the reason of each.
fn nothing_ready(object: &ObjectRef, pods: &[(&ObjectName, &Pod)]) -> Finding {
    let reasons = pods
        .iter()
        .map(|(name, pod)| format!("pod {}: {}", name.name, unready_because(pod)));
    let problem = format!(
        "of {} that its selector matches none is ready; {}",
        count(pods.len(), "pod"),
        first_of(reasons.collect())
    );
    let advice =
        "clients are refused until a pod is ready: see `kubectl describe pod` and the pod's log";
    Finding::new(
        Check::NoReadyEndpoint,
        object,
        "spec.selector",
        problem,
        advice,
    )
}

fn unready_because(pod: &Pod) -> String {
    if pod.finished() {
        return format!("it has ended ({:?})", pod.phase);
    }
    match (&pod.unready_because, pod.addresses.is_empty()) {
        (Some(why), _) => why.clone(),
        (None, true) => "it has no address yet (status.podIPs is empty)".to_owned(),
        (None, false) if pod.terminating => "it is being shut down".to_owned(),
        (None, false) => "its status has no condition Ready that is True".to_owned(),
    }
}

pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

fn some_of(who: &[String]) -> String {
    first_of(who.to_vec())
}

fn first_of(all: Vec<String>) -> String {
    let shown = all
        .iter()
        .take(EXAMPLES)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    match all.len().saturating_sub(EXAMPLES) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

pub(super) fn listed(items: impl Iterator<Item = impl Display>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
