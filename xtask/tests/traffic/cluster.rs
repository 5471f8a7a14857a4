//! The cluster that the traffic goes through: a lab, a control plane next to its router, and an
//! agent on each node.

use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::controlplane::{ControlPlane, ObjectRef, wait_for};
use xtask::lab::host::Tools;
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Kind, Tally};
use xtask::lab::topology::{Join, PodSpec, Serves, Topology, Wiring};
use xtask::lab::{Lab, cluster};

/// Time limit for a change to be in force everywhere; generous, since the machine is shared.
pub const IN_FORCE: Duration = Duration::from_secs(10);
/// The nodePort of the web pods' HTTP.
pub const WEB: u16 = 30080;
/// The nodePort of their UDP echo.
pub const WEB_UDP: u16 = 30053;
/// The nodePort of their TCP echo.
pub const WEB_ECHO: u16 = 30007;
/// The nodePort of the backend in a node's own network.
pub const HOST: u16 = 30090;

/// A lab, a control plane next to its router, and an agent on each node. Agents are dropped first.
pub struct Cluster {
    pub agents: Vec<Agent>,
    pub spec: AgentSpec,
    pub plane: ControlPlane,
    pub lab: Lab,
    _turn: Turn,
}

/// Tests that measure run alone, the others in parallel.
enum Turn {
    Shared(
        #[expect(dead_code, reason = "locked until the cluster is dropped")]
        RwLockReadGuard<'static, ()>,
    ),
    Alone(
        #[expect(dead_code, reason = "locked until the cluster is dropped")]
        RwLockWriteGuard<'static, ()>,
    ),
}

static TURNS: RwLock<()> = RwLock::new(());

impl Turn {
    fn shared() -> Self {
        Self::Shared(TURNS.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn alone() -> Self {
        Self::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cluster {
    pub fn start(wiring: Wiring, join: Join) -> Result<Self> {
        Self::start_with(wiring, join, &[], |_| Ok(()))
    }

    /// Starts a cluster while no other cluster of this program runs, for measurements.
    pub fn start_alone(wiring: Wiring, join: Join, arguments: &[&str]) -> Result<Self> {
        Self::start_in(Turn::alone(), wiring, join, arguments, |_| Ok(()))
    }

    /// `prepare` changes the lab before there are agents; these get `arguments` besides the usual
    /// ones.
    pub fn start_with(
        wiring: Wiring,
        join: Join,
        arguments: &[&str],
        prepare: impl FnOnce(&mut Lab) -> Result<()>,
    ) -> Result<Self> {
        Self::start_in(Turn::shared(), wiring, join, arguments, prepare)
    }

    fn start_in(
        turn: Turn,
        wiring: Wiring,
        join: Join,
        arguments: &[&str],
        prepare: impl FnOnce(&mut Lab) -> Result<()>,
    ) -> Result<Self> {
        let mut lab = Lab::start(
            topology(wiring, join),
            Tools::next_to(env!("CARGO_BIN_EXE_xtask")),
        )?;
        prepare(&mut lab)?;
        let plane = cluster::begin(&lab)?;
        for object in services() {
            plane.client().apply(&object)?;
        }
        let spec =
            AgentSpec::new(lab.tools(), cluster::source(&plane)?, lab.directory()).with(arguments);
        let agents = lab
            .nodes()
            .iter()
            .map(|node| spec.start(node))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Self {
            agents,
            spec,
            plane,
            lab,
            _turn: turn,
        };
        cluster.settle()?;
        Ok(cluster)
    }

    /// Waits until every node leads to all three web pods, by both families, and to the backend in
    /// a node's own network.
    pub fn settle(&self) -> Result<()> {
        let mut lacks = String::new();
        let settled = wait_for("all nodes to serve", IN_FORCE, || {
            lacks = self.lacks()?.unwrap_or_default();
            Ok(lacks.is_empty().then_some(()))
        });
        settled
            .with_context(|| {
                self.agents
                    .iter()
                    .map(Agent::log_tail)
                    .collect::<Vec<_>>()
                    .join("\n---\n")
            })
            .with_context(|| lacks)
    }

    /// The first node that does not lead to all that it ought to, and what came of the requests.
    fn lacks(&self) -> Result<Option<String>> {
        for node in self.lab.nodes() {
            for ip in node.addresses().both() {
                let web = self.far(Kind::Http, ip, WEB, 30)?;
                let host = self.far(Kind::Http, ip, HOST, 2)?;
                if web.pods() != ["web-1", "web-2", "web-3"] || host.served() != 2 {
                    return Ok(Some(format!(
                        "{} by {ip}: web {web:?}, host {host:?}",
                        node.name()
                    )));
                }
            }
        }
        Ok(None)
    }

    pub fn far(&self, kind: Kind, ip: IpAddr, port: u16, count: usize) -> Result<Tally> {
        ask(self.lab.far_client(), kind, ip, port, count)
    }

    pub fn pod_ref(&self, name: &str) -> ObjectRef {
        ObjectRef::namespaced("v1", "Pod", "default", name)
    }

    pub fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let target = ObjectRef::namespaced("v1", "Service", "default", service);
        let object = self
            .plane
            .client()
            .get(&target)?
            .context("find the Service")?;
        let ips = object["spec"]["clusterIPs"]
            .as_array()
            .context("find its cluster IPs")?;
        ips.iter()
            .map(|ip| {
                ip.as_str()
                    .unwrap_or_default()
                    .parse()
                    .context("read a cluster IP")
            })
            .collect()
    }

    /// Returns a counter of a node's packet path, from `/metrics`.
    pub fn event(&self, node: &Node, name: &str) -> Result<u64> {
        self.metric(node, "portway_events", name)
    }

    /// Returns the number of packets that a node's packet path has dropped, for any reason.
    pub fn drops(&self, node: &str) -> Result<u64> {
        self.metric(self.lab.node(node)?, "portway_drops", "")
    }

    /// Returns the sum of a metric's values with the label value `label`, or of all if that is
    /// empty, from `/metrics`.
    pub fn metric(&self, node: &Node, name: &str, label: &str) -> Result<u64> {
        sum(
            &node.ns().run(|| metrics().context("ask for metrics"))?,
            name,
            label,
        )
    }

    /// Several counters of a node's packet path, read at one moment.
    pub fn events<const N: usize>(&self, node: &Node, names: [&str; N]) -> Result<[u64; N]> {
        let text = node.ns().run(|| metrics().context("ask for metrics"))?;
        let mut values = [0; N];
        for (value, name) in values.iter_mut().zip(names) {
            *value = sum(&text, "portway_events", name)?;
        }
        Ok(values)
    }
}

/// Returns the sum of a metric's values with the label value `label`, or of all if that is empty.
fn sum(text: &str, name: &str, label: &str) -> Result<u64> {
    let values: Vec<&str> = text
        .lines()
        .filter(|line: &&str| {
            line.starts_with(name) && (label.is_empty() || line.contains(&format!("\"{label}\"")))
        })
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    ensure!(!values.is_empty(), "no {name} {label} in\n{text}");
    values
        .into_iter()
        .map(|value| {
            value
                .parse::<u64>()
                .with_context(|| format!("read {name} {label}"))
        })
        .sum()
}

fn metrics() -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:10249")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn topology(wiring: Wiring, join: Join) -> Topology {
    let web = |name: &str| {
        let pod = PodSpec::new(name).label("app", "web");
        pod.serving_as("http", 8080, Serves::Http)
            .serving_as("names", 53, Serves::UdpEcho)
            .serving_as("echo", 7, Serves::TcpEcho)
    };
    let host = PodSpec::new("host-1")
        .label("app", "host")
        .serving_as("http", 8088, Serves::Http)
        .on_host_network();
    let topology = Topology::new(wiring, join).node("node1", vec![web("web-1"), web("web-2")]);
    topology
        .node(
            "node2",
            vec![
                web("web-3"),
                PodSpec::new("visitor").label("app", "visitor"),
            ],
        )
        .node("node3", vec![host])
}

fn services() -> Vec<Value> {
    let service = |name: &str, ports: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": { "app": name }, "ports": ports },
        })
    };
    let web = json!([
        { "name": "http", "port": 80, "targetPort": "http", "nodePort": WEB },
        { "name": "names", "protocol": "UDP", "port": 53, "targetPort": "names", "nodePort": WEB_UDP },
        { "name": "echo", "port": 7, "targetPort": "echo", "nodePort": WEB_ECHO },
    ]);
    vec![
        service("web", web),
        service(
            "host",
            json!([{ "name": "http", "port": 80, "targetPort": 8088, "nodePort": HOST }]),
        ),
    ]
}

/// One more Service of the web pods, of both families, with one port and its nodePort.
pub fn of_web(name: &str, annotations: Value, port: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "annotations": annotations },
        "spec": { "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": { "app": "web" }, "ports": [port] },
    })
}

pub fn ask(from: &Namespace, kind: Kind, ip: IpAddr, port: u16, count: usize) -> Result<Tally> {
    from.run(|| Ok(probe::survey(kind, SocketAddr::new(ip, port), count)))
}

/// The host's load averages, for figures that depend on them.
pub fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read the load average")?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}
