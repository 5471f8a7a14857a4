//! HAProxy in front of three nodes while pods are drained and a node is taken out under load: with
//! Portway no more requests fail than with the real kube-proxy in the same run. Needs root.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::compare::cluster::{DataPlane, Side};
use xtask::lab::controlplane::{ControlPlane, ObjectRef, wait_for};
use xtask::lab::haproxy::{Again, Haproxy, Server, Standing};
use xtask::lab::host::Tools;
use xtask::lab::load::{self, Load, LoadReport};
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Kind};
use xtask::lab::topology::{FAR_CLIENT, Family, Join, PodSpec, Serves, Topology, Wiring};
use xtask::lab::{Lab, cluster, objects};

const NODE_PORT: u16 = 30080;
const HEALTH_PORT: u16 = 31999;
/// HAProxy's address: behind the router, as seen from the nodes.
const FRONT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(FAR_CLIENT.v4), 8080);
/// Requests per second, each over a new connection.
const RATE: u32 = 300;
/// The load goes on so long before a step begins and after it is done.
const MARGIN: Duration = Duration::from_secs(1);
/// Time for which a pod that is to end goes on serving: longer than a check of HAProxy takes, and
/// than kube-proxy's second between two syncs.
const SERVES_ON: Duration = Duration::from_secs(2);
/// Grace period of a pod before the API server deletes it; the lab ends it earlier.
const GRACE: Duration = Duration::from_secs(30);
/// Time limit for a change to be seen; generous, since machines are slow in CI.
const SOON: Duration = Duration::from_secs(20);

/// The outcomes of all requests of one side.
struct Tally {
    answered: usize,
    failed: usize,
    /// Connections that failed are hidden from the clients by being tried again.
    again: Again,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            answered,
            failed,
            again: Again { same, other },
        } = self;
        write!(
            f,
            "{answered} answered, {failed} failed; connections tried again: {same} at the same node, {other} at another"
        )
    }
}

/// One side with HAProxy in front, and what its clients have been through. HAProxy goes first.
struct Scene {
    side: Side,
    haproxy: Haproxy,
    _data_plane: DataPlane,
    plane: ControlPlane,
    lab: Lab,
    steps: Vec<(&'static str, LoadReport)>,
}

impl Scene {
    fn start(side: Side) -> Result<Self> {
        let topology = Topology::new(Wiring::PointToPoint, Join::Routes);
        let topology = topology
            .node("node1", vec![web("web-1"), web("web-2")])
            .node("node2", vec![web("web-3")]);
        let lab = Lab::start(
            topology.node("node3", Vec::new()),
            Tools::next_to(env!("CARGO_BIN_EXE_xtask")),
        )?;
        let plane = cluster::begin(&lab)?;
        plane
            .client()
            .apply(&objects::local_load_balancer(NODE_PORT, HEALTH_PORT))?;
        let data_plane = DataPlane::start(side, &plane, &lab)?;
        let servers: Vec<Server> = lab.nodes().iter().flat_map(servers).collect();
        let haproxy = Haproxy::start(lab.far_client(), lab.directory(), FRONT, &servers)?;
        let scene = Self {
            side,
            haproxy,
            _data_plane: data_plane,
            plane,
            lab,
            steps: Vec::new(),
        };
        scene.wait_until_served()?;
        Ok(scene)
    }

    /// Waits until HAProxy sees the pods' nodes as up, and each of the three pods has answered
    /// through it.
    fn wait_until_served(&self) -> Result<()> {
        for (node, standing) in [
            ("node1", Standing::Up),
            ("node2", Standing::Up),
            ("node3", Standing::Down),
        ] {
            self.wait_until(node, standing)?;
        }
        wait_for("all pods to answer", SOON, || {
            let tally = self
                .lab
                .near_client()
                .run(|| Ok(probe::survey(Kind::Http, FRONT, 16)))?;
            Ok((tally.pods().len() == 3 && tally.unserved() == 0).then_some(()))
        })
    }

    fn wait_until(&self, node: &str, standing: Standing) -> Result<()> {
        Family::BOTH.into_iter().try_for_each(|family| {
            self.haproxy
                .wait_until(&server_name(node, family), standing)
        })
    }

    /// Does `what` under load, and keeps what came of the requests.
    fn step(
        &mut self,
        name: &'static str,
        what: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let load = Load {
            kept_alive: 0,
            fresh_percent: 100,
            patience: Duration::from_secs(8),
            ..Load::new(FRONT, RATE, 6 * SOON)
        };
        let enough = Arc::new(AtomicBool::new(false));
        let heard = enough.clone();
        let running = self
            .lab
            .near_client()
            .start(move || load::run_until(&load, &heard));
        std::thread::sleep(MARGIN);
        let done = what(self);
        std::thread::sleep(MARGIN);
        enough.store(true, Ordering::Relaxed);
        let report = running.join().expect("the load does not panic")?;
        println!("{:?}: {name}: {report}; by {:?}", self.side, report.by_pod);
        done.with_context(|| format!("{name} with {:?}", self.side))?;
        if report.failed() > 0 {
            println!("HAProxy said:\n{}", self.haproxy.log());
        }
        let asked = report.answered() + report.failed();
        ensure!(
            asked > RATE as usize,
            "too few to say anything while {name}: {report}"
        );
        self.steps.push((name, report));
        Ok(())
    }

    /// Ends a pod as its node's kubelet does: it serves for a while without being wanted any more,
    /// then it goes.
    fn drain(&mut self, node: &str, pod: &str) -> Result<()> {
        let object = ObjectRef::namespaced("v1", "Pod", "default", pod);
        let ip = self.lab.pod(pod)?.addresses().v4;
        self.plane.client().delete_after(&object, GRACE)?;
        wait_for("a terminating endpoint", SOON, || {
            Ok((self.conditions(ip)? == [false, true, true]).then_some(()))
        })?;
        std::thread::sleep(SERVES_ON);
        self.lab.node_mut(node)?.remove_pod(pod)?;
        self.plane.client().delete(&object)
    }

    /// Returns the conditions of the endpoint in its slice: ready, serving, terminating.
    fn conditions(&self, ip: Ipv4Addr) -> Result<[bool; 3]> {
        let slices = self.plane.client().list(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            Some("default"),
            "kubernetes.io/service-name=web",
        )?;
        let mut endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ours = endpoints
            .find(|endpoint| endpoint["addresses"][0] == json!(ip))
            .context("find the endpoint of a pod")?;
        Ok(["ready", "serving", "terminating"].map(|name| ours["conditions"][name] == true))
    }

    /// Starts another pod and waits until HAProxy has its node back.
    fn bring_back(&mut self, node: &str, pod: &str) -> Result<()> {
        self.lab.node_mut(node)?.add_pod(web(pod))?;
        cluster::apply_with_status(
            &self.plane,
            &objects::pod(self.lab.node(node)?, self.lab.pod(pod)?),
        )?;
        self.wait_until(node, Standing::Up)
    }

    /// Takes a node out as the cluster autoscaler does: it is marked, then drained, and then its
    /// machine is gone.
    fn take_out(&mut self, node: &str) -> Result<()> {
        let object = ObjectRef::cluster("v1", "Node", node);
        let taint = json!({ "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] } });
        self.plane.client().patch(&object, &taint)?;
        wait_for("503 of /healthz", SOON, || {
            Ok((self.healthz(node)? == "503").then_some(()))
        })?;
        let pods: Vec<String> = self
            .lab
            .node(node)?
            .pods()
            .iter()
            .map(|pod| pod.name().to_owned())
            .collect();
        pods.iter().try_for_each(|pod| self.drain(node, pod))?;
        self.wait_until(node, Standing::Down)?;
        self.lab.node(node)?.ns().ip("link set eth0 down\n")?;
        self.plane.client().delete(&object)
    }

    /// The status of the node's own health check.
    fn healthz(&self, node: &str) -> Result<String> {
        let ask = [
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://127.0.0.1:10256/healthz",
        ];
        self.lab
            .node(node)?
            .ns()
            .output(Command::new("curl").args(ask))
    }

    fn tally(&self) -> Result<Tally> {
        let sum = |count: fn(&LoadReport) -> usize| {
            self.steps.iter().map(|(_, report)| count(report)).sum()
        };
        Ok(Tally {
            answered: sum(LoadReport::answered),
            failed: sum(LoadReport::failed),
            again: self.haproxy.again()?,
        })
    }

    /// Only the pods that are still there answer in the end.
    fn ended_well(&self) -> Result<()> {
        let (_, last) = self.steps.last().context("find the last step")?;
        let pods: Vec<&String> = last.by_pod.keys().collect();
        ensure!(
            pods == ["web-4"],
            "{:?}: others than the last pod answered in the end: {:?}",
            self.side,
            last.by_pod
        );
        Ok(())
    }
}

fn web(name: &str) -> PodSpec {
    PodSpec::new(name)
        .label("app", "web")
        .serving_as("http", 8080, Serves::Http)
}

/// A node is two servers to HAProxy, one for each family.
fn servers(node: &Node) -> [Server; 2] {
    Family::BOTH.map(|family| {
        let at = SocketAddr::new(node.addresses().of(family), NODE_PORT);
        Server {
            name: server_name(node.name(), family),
            at,
            health_port: HEALTH_PORT,
        }
    })
}

fn server_name(node: &str, family: Family) -> String {
    format!("{node}-{family:?}")
}

/// The whole story with one data plane.
fn play(side: Side) -> Result<Tally> {
    let begin = Instant::now();
    let mut scene = Scene::start(side).with_context(|| format!("start {side:?}"))?;
    let started = begin.elapsed();
    scene.step("drain one of two pods of a node", |scene| {
        scene.drain("node1", "web-2")
    })?;
    scene.step("drain the only pod of a node", |scene| {
        scene.drain("node2", "web-3")
    })?;
    scene.step("bring a pod back", |scene| {
        scene.bring_back("node2", "web-4")
    })?;
    scene.step("take out a node", |scene| scene.take_out("node1"))?;
    scene.step("go on without it", |_| Ok(()))?;
    scene.ended_well()?;
    let tally = scene.tally()?;
    println!(
        "{side:?}: {tally} in {:.1?}, of which the start took {started:.1?}",
        begin.elapsed()
    );
    Ok(tally)
}

/// Connections of thousands that a busy machine may delay on one side only; without terminating
/// endpoints it is twenty and more.
const UNLUCKY: u64 = 5;

#[test]
fn v22_behind_haproxy_drained_pods_and_nodes_fail_no_more_requests_than_with_kube_proxy()
-> Result<()> {
    let (kube_proxy, portway) = (play(Side::KubeProxy)?, play(Side::Portway)?);
    let average = std::fs::read_to_string("/proc/loadavg").context("read the load average")?;
    println!(
        "with kube-proxy {kube_proxy}\nwith Portway    {portway}\nload average {}",
        average.trim()
    );
    ensure!(
        portway.failed <= kube_proxy.failed,
        "more requests failed with Portway"
    );
    ensure!(
        portway.again.total() <= kube_proxy.again.total() + UNLUCKY,
        "HAProxy had to connect again more often with Portway"
    );
    Ok(())
}
