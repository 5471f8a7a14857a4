//! Plays the kubelet of one node: registers the node, binds pods to it, and posts the status that a
//! kubelet would. What runs in the pod's namespace is the lab's affair.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::client::Client;
use super::object_ref::ObjectRef;

/// A node as the cluster sees it.
#[derive(Debug, Clone, Default)]
pub struct NodeSpec {
    /// The node's name.
    pub name: String,
    /// Its InternalIPs, the primary family first.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods, the primary family first.
    pub pod_cidrs: Vec<IpNet>,
    /// Such as the zone: `topology.kubernetes.io/zone`.
    pub labels: BTreeMap<String, String>,
}

/// A pod that the lab makes itself, with one container.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Labels for Services' selectors.
    pub labels: BTreeMap<String, String>,
    /// The container's ports: name, number, protocol (`TCP`, `UDP`).
    pub ports: Vec<(String, u16, String)>,
}

/// Results of a pod's readiness probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// New connections are welcome.
    Ready,
    /// They are not.
    NotReady,
}

/// The kubelet of one node.
#[derive(Debug)]
pub struct Kubelet<'a> {
    client: &'a Client,
    node: NodeSpec,
}

impl<'a> Kubelet<'a> {
    /// Registers the node, ready, or updates it.
    pub fn register(client: &'a Client, node: &NodeSpec) -> Result<Self> {
        let kubelet = Self {
            client,
            node: node.clone(),
        };
        let mut spec = json!({});
        if let Some(first) = node.pod_cidrs.first() {
            spec = json!({ "podCIDR": first, "podCIDRs": node.pod_cidrs });
        }
        let metadata = json!({ "name": node.name, "labels": node.labels });
        client.apply(
            &json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec }),
        )?;
        client.patch_status(&kubelet.node_ref(), &node_status(node))?;
        Ok(kubelet)
    }

    /// Creates `pod`, any Pod object, on this node, running and ready with the addresses `ips`.
    pub fn run(&self, pod: &Value, ips: &[IpAddr]) -> Result<ObjectRef> {
        let mut pod = pod.clone();
        let spec = pod
            .get_mut("spec")
            .and_then(Value::as_object_mut)
            .context("find the spec of a Pod")?;
        spec.insert("nodeName".to_owned(), json!(self.node.name));
        let target = ObjectRef::of(&pod)?;
        self.client.apply(&pod)?;
        self.post_status(&target, ips)?;
        Ok(target)
    }

    /// Takes a pod that exists and is bound to no node, such as a Deployment's, and runs it here,
    /// ready, with the addresses `ips`.
    pub fn adopt(&self, pod: &ObjectRef, ips: &[IpAddr]) -> Result<()> {
        let target = json!({ "apiVersion": "v1", "kind": "Node", "name": self.node.name });
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod.name }, "target": target });
        self.client.post(pod, "binding", &binding)?;
        self.post_status(pod, ips)
    }

    /// Posts the result of the readiness probe.
    pub fn set_readiness(&self, pod: &ObjectRef, readiness: Readiness) -> Result<()> {
        self.client
            .patch_status(pod, &json!({ "conditions": conditions(readiness) }))
            .map(drop)
    }

    /// Asks the pod to end; it stays, terminating, until `finish` or until `grace` is over and
    /// nobody cares.
    pub fn terminate(&self, pod: &ObjectRef, grace: Duration) -> Result<()> {
        self.client.delete_after(pod, grace)
    }

    /// Says that the pod has ended: its object goes.
    pub fn finish(&self, pod: &ObjectRef) -> Result<()> {
        self.client.delete(pod)
    }

    /// Takes the node out of the cluster.
    pub fn deregister(&self) -> Result<()> {
        self.client.delete(&self.node_ref())
    }

    fn node_ref(&self) -> ObjectRef {
        ObjectRef::cluster("v1", "Node", &self.node.name)
    }

    fn post_status(&self, pod: &ObjectRef, ips: &[IpAddr]) -> Result<()> {
        let list = |ips: &[IpAddr]| ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
        let status = json!({
            "phase": "Running",
            "conditions": conditions(Readiness::Ready),
            "hostIP": self.node.addresses.first(),
            "hostIPs": list(&self.node.addresses),
            "podIP": ips.first(),
            "podIPs": list(ips),
        });
        self.client.patch_status(pod, &status).map(drop)
    }
}

impl PodSpec {
    /// The Pod object.
    pub fn manifest(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(|(name, number, protocol): &(String, u16, String)| json!({ "name": name, "containerPort": number, "protocol": protocol })).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": self.name, "labels": self.labels },
            "spec": { "containers": [{ "name": "main", "image": "lab", "ports": ports }] },
        })
    }
}

/// The pods that wait for a node, and that nobody is deleting.
pub fn pending_pods(client: &Client) -> Result<Vec<Value>> {
    let mut pods = client.list("v1", "Pod", None, "")?;
    pods.retain(|pod: &Value| {
        pod.pointer("/spec/nodeName").is_none()
            && pod.pointer("/metadata/deletionTimestamp").is_none()
    });
    Ok(pods)
}

fn node_status(node: &NodeSpec) -> Value {
    let addresses = node
        .addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }));
    let addresses: Vec<Value> = addresses
        .chain([json!({ "type": "Hostname", "address": node.name })])
        .collect();
    json!({ "addresses": addresses, "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] })
}

fn conditions(readiness: Readiness) -> Value {
    let ready = if readiness == Readiness::Ready {
        "True"
    } else {
        "False"
    };
    let states = [
        ("PodScheduled", "True"),
        ("Initialized", "True"),
        ("ContainersReady", ready),
        ("Ready", ready),
    ];
    states
        .iter()
        .map(|(kind, status)| json!({ "type": kind, "status": status }))
        .collect()
}
