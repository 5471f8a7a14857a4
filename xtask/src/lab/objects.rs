//! Makes the Kubernetes objects of what a lab plays: Nodes and Pods as a kubelet would report them.

use serde_json::{Value, json};

use super::node::{Node, Pod};
use super::topology::{self, Network, PodSpec, Serves};

/// The Node with its addresses and pod networks.
pub fn node(node: &Node) -> Value {
    let (addresses, pods) = (node.addresses(), topology::pod_network(node.number()));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux" } },
        "spec": { "podCIDR": format!("{}/24", pods.v4), "podCIDRs": [format!("{}/24", pods.v4), format!("{}/64", pods.v6)] },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": addresses.v4 },
                { "type": "InternalIP", "address": addresses.v6 },
                { "type": "Hostname", "address": node.name() },
            ],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// The Service `web` of the pods with the label `app: web`: for outside clients of this node's pods
/// only, and asked about at a port.
pub fn local_load_balancer(node_port: u16, health_check_node_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": health_check_node_port,
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "nodePort": node_port }],
        },
    })
}

/// The Pod, running and ready.
pub fn pod(node: &Node, pod: &Pod) -> Value {
    let spec = pod.spec();
    let ips: Vec<Value> = pod
        .addresses()
        .both()
        .iter()
        .map(|ip| json!({ "ip": ip }))
        .collect();
    let host_ips: Vec<Value> = node
        .addresses()
        .both()
        .iter()
        .map(|ip| json!({ "ip": ip }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": spec.name, "namespace": spec.namespace, "labels": spec.labels },
        "spec": {
            "nodeName": node.name(),
            "hostNetwork": spec.network == Network::Host,
            "containers": [{ "name": "server", "image": "played-by-the-lab", "ports": ports(spec) }],
        },
        "status": {
            "phase": "Running",
            "podIP": ips[0]["ip"],
            "podIPs": ips,
            "hostIP": host_ips[0]["ip"],
            "hostIPs": host_ips,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn ports(spec: &PodSpec) -> Vec<Value> {
    let port = |port: &topology::PortSpec| {
        let protocol = match port.serves {
            Serves::Http | Serves::TcpEcho => "TCP",
            Serves::UdpEcho | Serves::Dns => "UDP",
        };
        let mut value = json!({ "containerPort": port.port, "protocol": protocol });
        if let Some(name) = &port.name {
            value["name"] = json!(name);
        }
        value
    };
    spec.ports.iter().map(port).collect()
}

/// Objects as one file of YAML.
///
/// # Errors
/// If an object cannot be written as YAML, which JSON always can.
pub fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let documents: Result<Vec<String>, _> = objects.iter().map(serde_norway::to_string).collect();
    Ok(documents?.join("---\n"))
}
