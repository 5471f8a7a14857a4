//! NetworkPolicies in force: who gets through, from where, and what becomes of connections that
//! there are already.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::probe::{Kind, Session, Tally};
use xtask::lab::topology::{FAR_CLIENT, Join, Wiring};

use crate::cluster::{Cluster, IN_FORCE, WEB, ask};

#[test]
fn policies_over_point_to_point_links() -> Result<()> {
    policies(Wiring::PointToPoint)
}

#[test]
fn policies_over_a_bridge() -> Result<()> {
    policies(Wiring::Bridge)
}

/// P1-P8, P18, P24, P25, P29, P30 by traffic, both families: a default deny, and what is allowed
/// again step by step.
fn policies(wiring: Wiring) -> Result<()> {
    let cluster = Cluster::start(wiring, Join::Routes)?;
    reach(&cluster, "visitor", &["web-1", "web-2", "web-3"])?;
    let mut sessions = sessions(&cluster)?;
    deny(&cluster)?;
    shut(&cluster)?;
    // P30: also who was connected already.
    for (addr, session) in &mut sessions {
        ensure!(session.ask().is_err(), "the connection to {addr} goes on");
    }
    // P18: the pod's own node is always let in, others are not.
    own_node(&cluster)?;
    let denied = cluster.metric(
        cluster.lab.node("node2")?,
        "portway_drops",
        "denied_ingress",
    )?;
    ensure!(denied > 0, "no denial was counted");
    // P8: pods of the policy's namespace with a label.
    apply(
        &cluster,
        "allow-visitor",
        json!([{ "podSelector": { "matchLabels": { "app": "visitor" } } }]),
    )?;
    reach(&cluster, "visitor", &["web-1", "web-2", "web-3"])?;
    ensure!(
        outside(&cluster, "node1")?.served() == 0,
        "clients outside are let through"
    );
    // P24: the label goes, and so does the permission.
    label(&cluster, "visitor", json!("nobody"))?;
    reach(&cluster, "visitor", &[])?;
    label(&cluster, "visitor", json!("visitor"))?;
    reach(&cluster, "visitor", &["web-1", "web-2", "web-3"])?;
    // P29: the node that translates sees the client, the others see that node.
    let blocks: Vec<_> = FAR_CLIENT
        .both()
        .iter()
        .map(|ip| json!({ "ipBlock": { "cidr": format!("{ip}/{}", bits(*ip)) } }))
        .collect();
    apply(&cluster, "allow-far", Value::Array(blocks))?;
    wait_for(
        "the far client to reach the pods of the node that it asks",
        IN_FORCE,
        || Ok((outside(&cluster, "node1")?.pods() == ["web-1", "web-2"]).then_some(())),
    )?;
    for policy in ["deny", "allow-visitor", "allow-far"] {
        cluster.plane.client().delete(&policy_ref(policy))?;
    }
    wait_for("everybody to be let through again", IN_FORCE, || {
        Ok((outside(&cluster, "node1")?.pods() == ["web-1", "web-2", "web-3"]).then_some(()))
    })?;
    cluster.settle()
}

/// P2, P25, P28: what a pod may reach is judged after translation, and answers to those who ask it
/// come through nevertheless.
#[test]
fn what_a_pod_may_reach() -> Result<()> {
    let cluster = Cluster::start(Wiring::PointToPoint, Join::Routes)?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "egress", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": [{ "port": "names", "protocol": "UDP" }] }],
        },
    });
    cluster.plane.client().apply(&policy)?;
    let web = cluster.lab.pod("web-3")?;
    let vips = cluster.cluster_ips("web")?;
    // P19: it may reach itself.
    wait_for("web-3 to be sessions back", IN_FORCE, || {
        let mut held_back = true;
        for ip in &vips {
            let tally = ask(web.ns(), Kind::Http, *ip, 80, 6)?;
            held_back &= tally.unserved() > 0 && tally.pods().iter().all(|pod| *pod == "web-3");
        }
        Ok(held_back.then_some(()))
    })?;
    for ip in vips {
        let names = ask(web.ns(), Kind::Udp, ip, 53, 12)?;
        ensure!(names.served() == 12, "the port that is allowed: {names}");
    }
    // Answers of an isolated pod pass.
    reach(&cluster, "visitor", &["web-1", "web-2", "web-3"])?;
    let served = outside(&cluster, "node3")?;
    ensure!(served.unserved() == 0, "clients outside: {served}");
    Ok(())
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn policy_ref(name: &str) -> ObjectRef {
    ObjectRef::namespaced("networking.k8s.io/v1", "NetworkPolicy", "default", name)
}

fn deny(cluster: &Cluster) -> Result<()> {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "deny", "namespace": "default" },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"] },
    });
    cluster.plane.client().apply(&policy).map(drop)
}

fn apply(cluster: &Cluster, name: &str, from: Value) -> Result<()> {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": from }] },
    });
    cluster.plane.client().apply(&policy).map(drop)
}

fn label(cluster: &Cluster, pod: &str, app: Value) -> Result<()> {
    cluster
        .plane
        .client()
        .patch(
            &cluster.pod_ref(pod),
            &json!({ "metadata": { "labels": { "app": app } } }),
        )
        .map(drop)
}

/// Waits until just these pods answer a pod, each at its own addresses and all by the cluster IPs.
fn reach(cluster: &Cluster, from: &str, wanted: &[&str]) -> Result<()> {
    let pod = cluster.lab.pod(from)?;
    let mut lacks = String::new();
    let reached = wait_for("the pods to answer as they ought to", IN_FORCE, || {
        lacks.clear();
        for name in ["web-1", "web-2", "web-3"] {
            for ip in cluster.lab.pod(name)?.addresses().both() {
                let served = ask(pod.ns(), Kind::Http, ip, 8080, 2)?;
                if served.served() != if wanted.contains(&name) { 2 } else { 0 } {
                    lacks = format!("{from} asks {name} at {ip}: {served}");
                    return Ok(None);
                }
            }
        }
        for ip in cluster.cluster_ips("web")? {
            let served = ask(
                pod.ns(),
                Kind::Http,
                ip,
                80,
                if wanted.is_empty() { 2 } else { 30 },
            )?;
            if served.pods() != wanted {
                lacks = format!("{from} asks the cluster IP {ip}: {served}");
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    reached.map_err(|error| error.context(lacks))
}

fn outside(cluster: &Cluster, node: &str) -> Result<Tally> {
    let ip = cluster.lab.node(node)?.addresses().v4;
    cluster.far(Kind::Http, ip.into(), WEB, 30)
}

/// Nobody gets through from outside or from pods.
fn shut(cluster: &Cluster) -> Result<()> {
    reach(cluster, "visitor", &[])?;
    for node in cluster.lab.nodes() {
        for ip in node.addresses().both() {
            let served = cluster.far(Kind::Http, ip, WEB, 4)?;
            ensure!(served.served() == 0, "by {}: {served}", node.name());
        }
    }
    Ok(())
}

/// Connections that are sessions open: from outside by each node, and from a pod to each.
fn sessions(cluster: &Cluster) -> Result<Vec<(SocketAddr, Session)>> {
    let mut sessions = Vec::new();
    let mut open = |from: &xtask::lab::netns::Namespace, addr: SocketAddr| {
        let mut session = from.run(|| Ok(Session::open(addr)?))?;
        session.ask()?;
        sessions.push((addr, session));
        anyhow::Ok(())
    };
    for node in cluster.lab.nodes() {
        node.addresses()
            .both()
            .into_iter()
            .try_for_each(|ip| open(cluster.lab.far_client(), SocketAddr::new(ip, WEB)))?;
    }
    let visitor = cluster.lab.pod("visitor")?.ns();
    for name in ["web-1", "web-3"] {
        cluster
            .lab
            .pod(name)?
            .addresses()
            .both()
            .into_iter()
            .try_for_each(|ip| open(visitor, SocketAddr::new(ip, 8080)))?;
    }
    Ok(sessions)
}

fn own_node(cluster: &Cluster) -> Result<()> {
    for (node, pod, let_in) in [
        ("node1", "web-1", true),
        ("node2", "web-3", true),
        ("node2", "web-1", false),
        ("node3", "web-3", false),
    ] {
        for ip in cluster.lab.pod(pod)?.addresses().both() {
            let served = ask(cluster.lab.node(node)?.ns(), Kind::Http, ip, 8080, 2)?;
            ensure!(
                served.served() == if let_in { 2 } else { 0 },
                "{node} asks {pod} at {ip}: {served}"
            );
        }
    }
    Ok(())
}
