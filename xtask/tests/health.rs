//! A node's reports in the lab with a real API server: Services' health, Events, metrics, and other
//! data planes on the host.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::controlplane::{ControlPlane, ObjectRef, wait_for};
use xtask::lab::host::Tools;
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::topology::{Join, PodSpec, Serves, Topology, Wiring};
use xtask::lab::{Lab, cluster, objects};

const SOON: Duration = Duration::from_secs(20);
const NODE_PORT: u16 = 30080;
const HEALTH_PORT: u16 = 31999;

/// Two nodes, one of them with pods, and an API server. Agents are dropped first.
struct Cluster {
    agents: Vec<Agent>,
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    /// `prepare` is done to each node before its agent starts.
    fn start(prepare: impl Fn(&Node) -> Result<()>) -> Result<Self> {
        let web = |name: &str| {
            PodSpec::new(name)
                .label("app", "web")
                .serving_as("http", 8080, Serves::Http)
        };
        let topology = Topology::new(Wiring::PointToPoint, Join::Routes);
        let topology = topology
            .node("node1", vec![web("web-1"), web("web-2")])
            .node("node2", Vec::new());
        let lab = Lab::start(topology, Tools::next_to(env!("CARGO_BIN_EXE_xtask")))?;
        lab.nodes().iter().try_for_each(prepare)?;
        let plane = cluster::begin(&lab)?;
        plane
            .client()
            .apply(&objects::local_load_balancer(NODE_PORT, HEALTH_PORT))?;
        let spec = AgentSpec::new(lab.tools(), cluster::source(&plane)?, lab.directory());
        let agents = lab
            .nodes()
            .iter()
            .map(|node| spec.start(node))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { agents, plane, lab })
    }

    /// Returns the answer at a node's health port to the client on the nodes' LAN; empty if nobody
    /// listens.
    fn health(&self, ip: IpAddr) -> Result<String> {
        self.lab
            .near_client()
            .run(|| Ok(get(SocketAddr::new(ip, HEALTH_PORT), "/").unwrap_or_default()))
    }

    fn until_health(&self, node: &Node, ip: IpAddr, status: &str, body: &str) -> Result<()> {
        let mut last = String::new();
        wait_for(
            &format!("{status} of {} at {ip}", node.name()),
            SOON,
            || {
                last = self.health(ip)?;
                Ok(
                    (last.starts_with(&format!("HTTP/1.1 {status} ")) && last.ends_with(body))
                        .then_some(()),
                )
            },
        )
        .with_context(|| format!("the last answer was {last:?}"))
    }

    /// The notes of the Events about the Service `web` with this reason.
    fn events(&self, reason: &str) -> Result<Vec<String>> {
        let uid = self.web()?["metadata"]["uid"].clone();
        let events = self
            .plane
            .client()
            .list("events.k8s.io/v1", "Event", Some("default"), "")?;
        let ours = events.iter().filter(|event| {
            event["reason"] == reason
                && event["type"] == "Warning"
                && event["regarding"]["uid"] == uid
        });
        Ok(ours
            .filter_map(|event| event["note"].as_str().map(str::to_owned))
            .collect())
    }

    fn web(&self) -> Result<Value> {
        let web = ObjectRef::namespaced("v1", "Service", "default", "web");
        self.plane.client().get(&web)?.context("find the Service")
    }
}

fn get(at: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A listener of the host on all its addresses.
fn listener(ns: &Namespace, port: u16) -> Result<TcpListener> {
    ns.run(|| TcpListener::bind(("0.0.0.0", port)).context("take a port"))
}

#[test]
fn v22_load_balancers_learn_which_node_has_backends_and_a_taken_port_becomes_an_event() -> Result<()>
{
    let cluster = Cluster::start(|_| Ok(()))?;
    let [node1, node2] = [cluster.lab.node("node1")?, cluster.lab.node("node2")?];
    let weight = |n: usize| format!("\"localEndpoints\":{n},\"serviceProxyHealthy\":true}}");
    for ip in node1.addresses().both() {
        cluster.until_health(node1, ip, "200", &weight(2))?;
    }
    for ip in node2.addresses().both() {
        cluster.until_health(node2, ip, "503", &weight(0))?;
    }
    let not_ready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    cluster.plane.client().patch_status(
        &ObjectRef::namespaced("v1", "Pod", "default", "web-2"),
        &not_ready,
    )?;
    cluster.until_health(node1, node1.addresses().v4.into(), "200", &weight(1))?;
    ensure!(
        cluster
            .events("FailedToStartServiceHealthcheck")?
            .is_empty(),
        "nothing has failed yet"
    );

    // Given up and taken by somebody else, the port cannot be had back.
    let web = ObjectRef::namespaced("v1", "Service", "default", "web");
    cluster.plane.client().patch(
        &web,
        &json!({ "spec": { "externalTrafficPolicy": "Cluster" } }),
    )?;
    wait_for("the port to be given up", SOON, || {
        Ok(cluster
            .health(node1.addresses().v4.into())?
            .is_empty()
            .then_some(()))
    })?;
    let taker = listener(node1.ns(), HEALTH_PORT)?;
    let local =
        json!({ "spec": { "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH_PORT } });
    cluster.plane.client().patch(&web, &local)?;
    let notes = wait_for("an Event", SOON, || {
        let notes = cluster.events("FailedToStartServiceHealthcheck")?;
        Ok((!notes.is_empty()).then_some(notes))
    })?;
    let at = SocketAddr::new(node1.addresses().v4.into(), HEALTH_PORT);
    ensure!(
        notes[0].contains(&at.to_string()) && notes[0].contains("in use"),
        "{notes:?}"
    );
    std::thread::sleep(Duration::from_secs(3));
    let again = cluster.events("FailedToStartServiceHealthcheck")?;
    ensure!(
        again.len() == 1,
        "once for a cause, although it was tried again: {again:?}"
    );
    drop(taker);
    cluster.until_health(node1, node1.addresses().v4.into(), "200", &weight(1))?;
    Ok(())
}

#[test]
fn v8_a_listener_on_a_node_port_becomes_an_event_and_others_on_the_host_are_named() -> Result<()> {
    let taken = std::cell::RefCell::new(Vec::new());
    let cluster = Cluster::start(|node| {
        if node.name() == "node1" {
            taken.borrow_mut().push(listener(node.ns(), NODE_PORT)?);
            nft(node, "add table ip kube-proxy")?;
            nft(node, "add table inet edge")?;
            nft(
                node,
                "add chain inet edge guard { type filter hook forward priority 0 ; policy accept ; }",
            )?;
            nft(
                node,
                "add rule inet edge guard ip saddr 203.0.113.0/24 drop",
            )?;
        }
        Ok(())
    })?;
    let notes = wait_for("an Event", SOON, || {
        let notes = cluster.events("NodePortTakesOver")?;
        Ok((!notes.is_empty()).then_some(notes))
    })?;
    ensure!(
        notes.len() == 1 && notes[0].contains("nodePort 30080/TCP leads clients to the Service"),
        "{notes:?}"
    );

    let marks = [
        "nftables ip table kube-proxy",
        "chain guard in nftables inet table edge: a rule refuses",
    ];
    let [log1, log2] = [cluster.agents[0].log(), cluster.agents[1].log()];
    let node1 = cluster.lab.node("node1")?;
    let portway = &cluster.lab.tools().portway;
    let state_dir = node1.state_dir();
    let status = node1.ns().output(
        Command::new(portway)
            .arg("status")
            .arg("--state-dir")
            .arg(state_dir),
    )?;
    for mark in marks {
        ensure!(
            log1.contains(mark),
            "the log of node1 does not name {mark}:\n{log1}"
        );
        ensure!(!log2.contains(mark), "the log of node2 names {mark}");
        ensure!(
            status.contains(mark),
            "status does not name {mark}:\n{status}"
        );
    }
    let json = node1.ns().output(
        Command::new(portway)
            .args(["status", "-o", "json", "--state-dir"])
            .arg(state_dir),
    )?;
    let json: Value = serde_json::from_str(&json)?;
    let kinds: Vec<_> = json["foreign"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|foreign| &foreign["kind"])
        .collect();
    ensure!(kinds == ["dataPlane", "firewall"], "{json}");
    Ok(())
}

fn nft(node: &Node, command: &str) -> Result<()> {
    node.ns().output(Command::new("nft").arg(command)).map(drop)
}

#[test]
fn v23_v24_a_node_that_is_leaving_says_so_and_changes_of_endpoints_are_timed() -> Result<()> {
    let cluster = Cluster::start(|_| Ok(()))?;
    let node1 = cluster.lab.node("node1")?;
    let local = |port: u16, path: &str| {
        node1
            .ns()
            .run(|| get(SocketAddr::from(([127, 0, 0, 1], port)), path))
    };
    let pod = ObjectRef::namespaced("v1", "Pod", "default", "web-2");
    // The controller dates a slice by this time, which kubelets set, in whole seconds, and the
    // lab's pods do not have. It is to be after the agent's start.
    std::thread::sleep(Duration::from_millis(1100));
    let now = node1
        .ns()
        .output(Command::new("date").args(["-u", "+%FT%TZ"]))?;
    let not_ready = json!({ "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": now.trim() }] });
    cluster.plane.client().patch_status(&pod, &not_ready)?;
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ";
    let metrics = wait_for("a change of endpoints to be timed", SOON, || {
        let text = local(10249, "/metrics")?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(count))
            .map(str::to_owned);
        Ok(value.filter(|value| value != "0").map(|_| text))
    })?;
    ensure!(
        metrics.contains("kubeproxy_proxy_healthz_total{code=\"200\"} "),
        "{metrics}"
    );
    ensure!(
        local(10256, "/healthz")?.contains("\"nodeEligible\":true"),
        "a node that stays"
    );

    let taint = json!({ "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] } });
    cluster
        .plane
        .client()
        .patch(&ObjectRef::cluster("v1", "Node", "node1"), &taint)?;
    let answer = wait_for("503", SOON, || {
        Ok(Some(local(10256, "/healthz")?).filter(|answer| answer.starts_with("HTTP/1.1 503 ")))
    })?;
    ensure!(
        answer.contains("\"nodeEligible\":false,\"healthy\":true"),
        "{answer}"
    );
    ensure!(
        local(10256, "/livez")?.starts_with("HTTP/1.1 200 "),
        "the agent itself is well"
    );
    ensure!(
        local(10249, "/metrics")?.contains("kubeproxy_proxy_healthz_total{code=\"503\"} "),
        "503s are counted"
    );
    Ok(())
}
