//! Pods of the API to ours: addresses, ports, phase, readiness; refuses addresses that are none.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Convert, Field, annotation, created, port, protocol, unicast};
use crate::model::{Annotation, ContainerPort, HostPort, Kind, Object, ObjectName, Phase, Pod};

impl Convert for core::Pod {
    const KIND: Kind = Kind::Pod;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let status = self.status.clone().unwrap_or_default();
        let ready = condition(&status, "Ready").is_some_and(|c| c.status == "True");
        let pod = Pod {
            addresses: addresses(&status)?,
            node: self
                .spec
                .as_ref()
                .and_then(|s| s.node_name.as_deref())
                .filter(|n| !n.is_empty())
                .map(Arc::from),
            host_network: self
                .spec
                .as_ref()
                .and_then(|s| s.host_network)
                .unwrap_or_default(),
            phase: phase(status.phase.as_deref()),
            terminating: self.metadata.deletion_timestamp.is_some(),
            ready,
            unready_because: if ready {
                None
            } else {
                unready_because(&status)
            },
            labels: self.metadata.labels.clone().unwrap_or_default(),
            ports: self
                .spec
                .as_ref()
                .map(|s| container_ports(s, "spec"))
                .transpose()?
                .unwrap_or_default(),
            any_source: Annotation::ANY_SOURCE
                .is_on(annotation(&self.metadata, Annotation::ANY_SOURCE.key)),
            created: created(&self.metadata),
        };
        Ok(Some(Object::Pod(name, pod)))
    }
}

/// P21: `podIPs`, or `podIP` alone where an old server wrote only that.
fn addresses(status: &core::PodStatus) -> Result<Vec<IpAddr>, Field> {
    let several = status
        .pod_ips
        .iter()
        .flatten()
        .map(|p| p.ip.as_str())
        .filter(|ip| !ip.is_empty());
    let read = several
        .enumerate()
        .map(|(i, ip)| unicast(ip, &format!("status.podIPs[{i}].ip")));
    let found = read.collect::<Result<Vec<_>, _>>()?;
    match status.pod_ip.as_deref() {
        Some(ip) if found.is_empty() && !ip.is_empty() => Ok(vec![unicast(ip, "status.podIP")?]),
        _ => Ok(found),
    }
}

/// The ports of a pod's (or pod template's) containers; sidecars count (P15).
pub(super) fn container_ports(
    spec: &core::PodSpec,
    path: &str,
) -> Result<Vec<ContainerPort>, Field> {
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec
        .containers
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("{path}.containers[{i}]"), c));
    let mut found = Vec::new();
    for (path, container) in
        containers.chain(sidecars.map(|(i, c)| (format!("{path}.initContainers[{i}]"), c)))
    {
        for (i, p) in container.ports.iter().flatten().enumerate() {
            found.push(ContainerPort {
                container: container.name.as_str().into(),
                name: p
                    .name
                    .as_deref()
                    .filter(|name| !name.is_empty())
                    .map(Arc::from),
                port: port(p.container_port, format!("{path}.ports[{i}].containerPort"))?,
                host_port: host_port(p),
                protocol: protocol(p.protocol.as_deref(), format!("{path}.ports[{i}].protocol"))?,
            });
        }
    }
    Ok(found)
}

/// Only warnings depend on it, so a bad one costs nothing.
fn host_port(p: &core::ContainerPort) -> Option<HostPort> {
    let port = u16::try_from(p.host_port?).ok().filter(|port| *port != 0)?;
    let addr = p
        .host_ip
        .as_deref()
        .and_then(|ip| ip.parse().ok())
        .filter(|ip: &IpAddr| !ip.is_unspecified());
    Some(HostPort { addr, port })
}

fn phase(name: Option<&str>) -> Phase {
    match name {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        _ => Phase::Pending,
    }
}

fn condition<'a>(status: &'a core::PodStatus, of_type: &str) -> Option<&'a core::PodCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == of_type)
}

/// The most telling of what the kubelet and the scheduler say.
fn unready_because(status: &core::PodStatus) -> Option<String> {
    let unscheduled = condition(status, "PodScheduled").filter(|c| c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!("it is on no node: {}", words(condition)));
    }
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let stuck = containers.filter(|c| !c.ready).find_map(stuck);
    stuck.or_else(|| {
        condition(status, "Ready")
            .map(|c| format!("its condition Ready is {}: {}", c.status, words(c)))
    })
}

fn stuck(container: &core::ContainerStatus) -> Option<String> {
    let (name, state) = (&container.name, container.state.as_ref()?);
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("no reason given");
        return Some(format!("container {name} waits: {reason}"));
    }
    if let Some(ended) = state
        .terminated
        .as_ref()
        .filter(|ended| ended.exit_code != 0)
    {
        return Some(format!(
            "container {name} ended with exit code {}",
            ended.exit_code
        ));
    }
    state
        .running
        .as_ref()
        .map(|_| format!("container {name} runs, but is not ready (see its readiness probe)"))
}

fn words(condition: &core::PodCondition) -> &str {
    condition
        .message
        .as_deref()
        .or(condition.reason.as_deref())
        .unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::super::seen;
    use super::*;
    use crate::model::Update;
    use serde_json::{Value, json};

    fn converted(spec: Value, status: Value) -> Update {
        let object = json!({"metadata": {"namespace": "shop", "name": "web-1"}, "spec": spec, "status": status});
        seen(&serde_json::from_value::<core::Pod>(object).expect("a Pod"))
    }

    fn pod(spec: Value, status: Value) -> Pod {
        match converted(spec, status) {
            Update::Apply(Object::Pod(_, pod)) => pod,
            other @ (Update::Apply(_)
            | Update::Flawed(..)
            | Update::Delete(_)
            | Update::Invalid(_)
            | Update::Synced
            | Update::Connection(_)) => panic!("refused: {other:?}"),
        }
    }

    #[test]
    fn a_bad_pod_is_named_with_field_and_reason() {
        let Update::Invalid(invalid) = converted(
            json!({"containers": []}),
            json!({"podIPs": [{"ip": "10.244.1.2"}, {"ip": "pod"}]}),
        ) else {
            panic!("taken")
        };
        assert_eq!(
            invalid.to_string(),
            "Pod shop/web-1: status.podIPs[1].ip: `pod` is no IP address"
        );
    }

    #[test]
    fn it_is_said_what_keeps_a_pod_from_being_ready() {
        let waits = json!({"containerStatuses": [{"name": "web", "ready": false, "image": "", "imageID": "", "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(
            pod(json!({"containers": []}), waits)
                .unready_because
                .as_deref(),
            Some("container web waits: CrashLoopBackOff")
        );
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]});
        assert_eq!(
            pod(json!({"containers": []}), unscheduled)
                .unready_because
                .as_deref(),
            Some("it is on no node: 0/3 nodes are available")
        );
    }

    #[test]
    fn p15_sidecars_declare_ports_and_other_init_containers_do_not() {
        let spec = json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}]}],
            "initContainers": [{"name": "b", "restartPolicy": "Always", "ports": [{"containerPort": 2}]}, {"name": "c", "ports": [{"containerPort": 3}]}]});
        assert_eq!(
            pod(spec, json!({}))
                .ports
                .iter()
                .map(|p| p.port)
                .collect::<Vec<_>>(),
            [1, 2]
        );
    }
}
