//! Owns the demo's stage: the lab, the directory of manifests that the agents watch, and an agent
//! on each node.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::say::Say;
use crate::lab::agent::{Agent, AgentSpec, Source};
use crate::lab::host::Tools;
use crate::lab::node::Node;
use crate::lab::probe;
use crate::lab::topology::{FAR_CLIENT, Join, PodSpec, Serves, Topology, Wiring};
use crate::lab::{Lab, objects};

/// Directory of the lesson's manifests in the source tree.
const LESSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/lesson");

/// Everything that is up; agents go before the lab that they run in.
#[derive(Debug)]
pub struct Stage {
    /// One on each node, in their order.
    pub agents: Vec<Agent>,
    /// Clients, nodes and pods.
    pub lab: Lab,
    /// The directory that the agents watch.
    pub manifests: PathBuf,
}

/// A frontend in an agent's kernel, as `portway services` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name:port`.
    pub service: String,
    /// Its address; unspecified for nodePorts.
    pub addr: SocketAddr,
}

impl Stage {
    /// Brings up the lab and the agents.
    ///
    /// # Errors
    /// If any of it does not start.
    pub fn set(wiring: Wiring, join: Join, tools: Tools, say: &mut Say) -> Result<Self> {
        say.step(
            "Start a client, a router, three nodes, and pods on two of them, in network namespaces",
        );
        let lab = Lab::start(topology(wiring, join), tools)?;
        say.show(picture(&lab));
        say.done("the lab is up");
        say.step("Start an agent on each node: portway agent --manifests DIR …");
        let manifests = lab.directory().join("manifests");
        copy_lesson(Path::new(LESSON), &manifests)?;
        write_cluster(&lab, &manifests)?;
        let spec = AgentSpec::new(
            lab.tools(),
            Source::Manifests(manifests.clone()),
            lab.directory(),
        );
        let agents: Result<Vec<Agent>> = std::thread::scope(|scope| {
            let starts: Vec<_> = lab
                .nodes()
                .iter()
                .map(|node| scope.spawn(|| spec.start(node)))
                .collect();
            starts
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let stage = Self {
            agents: agents?,
            lab,
            manifests,
        };
        stage.wait_for_frontend("default/web-nodeport:http")?;
        stage.wait_until_served()?;
        say.show(format!(
            "DIR holds deploy/examples/lesson/{{{}}}",
            lesson_files()?.join(",")
        ));
        say.show("and cluster.yaml, with the lab's Nodes and Pods");
        say.done("all three agents are healthy");
        Ok(stage)
    }

    /// Writes the lab's Nodes and Pods of now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_cluster(&self) -> Result<()> {
        write_cluster(&self.lab, &self.manifests)
    }

    /// Writes a manifest, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        write_whole(&self.manifests, file, text)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// If there is none.
    pub fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.manifests.join(file)).with_context(|| format!("read {file}"))
    }

    /// Returns the output of `portway …` on a node, whatever its exit status.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn portway(&self, node: &Node, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.lab.tools().portway);
        command.args(arguments);
        let output = node.ns().run(|| command.output().context("run portway"))?;
        Ok([output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat())
    }

    /// Returns the IPv4 frontends of a service port, its cluster IP first, then its nodePort.
    ///
    /// # Errors
    /// If an agent's kernel does not have it within five seconds.
    pub fn wait_for_frontend(&self, service: &str) -> Result<Vec<SocketAddr>> {
        eventually(
            Duration::from_secs(5),
            &format!("{service} in `portway services`"),
            || {
                let mut everywhere = Vec::new();
                for node in self.lab.nodes() {
                    let text = self.portway(
                        node,
                        &[
                            "services",
                            "--output",
                            "json",
                            "--state-dir",
                            &node.state_dir().to_string_lossy(),
                        ],
                    )?;
                    let found = frontends(&text)
                        .unwrap_or_default()
                        .into_iter()
                        .filter(|f| f.service == service && f.addr.is_ipv4());
                    let mut found: Vec<SocketAddr> = found.map(|frontend| frontend.addr).collect();
                    found.sort_by_key(|addr| addr.ip().is_unspecified());
                    everywhere.push(found);
                }
                let first = everywhere.first().cloned().unwrap_or_default();
                Ok(
                    (!first.is_empty() && everywhere.iter().all(|found| *found == first))
                        .then_some(first),
                )
            },
        )
    }

    /// Waits until every node answers from outside: the agent fills the tables a moment before it
    /// attaches the programs.
    fn wait_until_served(&self) -> Result<()> {
        eventually(
            Duration::from_secs(5),
            "an answer by way of every node",
            || {
                let targets: Vec<SocketAddr> = self
                    .lab
                    .nodes()
                    .iter()
                    .flat_map(|node| node.addresses().both())
                    .map(|ip| SocketAddr::new(ip, 30080))
                    .collect();
                let answers = self.lab.far_client().run(|| {
                    Ok(targets
                        .iter()
                        .all(|addr| probe::http(*addr).served().is_some()))
                })?;
                Ok(answers.then_some(()))
            },
        )
    }

    /// Prints commands to try by hand.
    pub fn leave_up(&self, say: &mut Say) {
        say.step("The lab stays up until Ctrl-C. Try in another terminal:");
        let enter = |path: PathBuf| format!("nsenter --net={}", path.display());
        let (client, node) = (enter(self.lab.far_client().path()), &self.lab.nodes()[0]);
        let portway = self.lab.tools().portway.display();
        say.show(format!(
            "{client} curl -s http://{}:30080/",
            node.addresses().v4
        ));
        say.show(format!(
            "{client} curl -s 'http://[{}]:30080/'",
            node.addresses().v6
        ));
        say.show(format!(
            "$EDITOR {}/web-nodeport.yaml     # takes effect when saved",
            self.manifests.display()
        ));
        for what in ["status", "services", "flows"] {
            say.show(format!(
                "{} {portway} {what} --state-dir {}",
                enter(node.ns().path()),
                node.state_dir().display()
            ));
        }
        say.show(format!(
            "less {}/*-agent.log",
            self.lab.directory().display()
        ));
    }
}

fn topology(wiring: Wiring, join: Join) -> Topology {
    let web = |name: &str| {
        let pod = PodSpec::new(name)
            .label("app", "demo")
            .label("tier", "web")
            .serving_as("http", 80, Serves::Http);
        pod.serving_as("names", 53, Serves::UdpEcho)
            .serving_as("admin", 9090, Serves::Http)
    };
    let topology = Topology::new(wiring, join).node("node1", vec![web("web-1"), web("web-2")]);
    topology
        .node("node2", vec![web("web-3"), PodSpec::new("visitor")])
        .node("node3", Vec::new())
}

fn picture(lab: &Lab) -> String {
    let mut lines = vec![format!(
        "client {} ── router ── the nodes' network 192.0.2.0/24",
        FAR_CLIENT.v4
    )];
    for (n, node) in (1..).zip(lab.nodes()) {
        let branch = if n == lab.nodes().len() { '└' } else { '├' };
        let pods = node
            .pods()
            .iter()
            .map(|pod| format!("{} {}", pod.name(), pod.addresses().v4));
        let pods = pods.collect::<Vec<_>>().join("   ");
        let pods = if pods.is_empty() { "no pods" } else { &pods };
        lines.push(format!(
            "   {branch}─ {} {}   {pods}",
            node.name(),
            node.addresses().v4
        ));
    }
    lines.join("\n")
}

fn lesson_files() -> Result<Vec<String>> {
    let entries = fs::read_dir(LESSON).with_context(|| format!("read {LESSON}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

fn copy_lesson(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("create {}", to.display()))?;
    lesson_files()?.iter().try_for_each(|name| {
        fs::copy(from.join(name), to.join(name))
            .map(drop)
            .with_context(|| format!("copy {name}"))
    })
}

fn write_cluster(lab: &Lab, manifests: &Path) -> Result<()> {
    let nodes = lab.nodes().iter().map(objects::node);
    let all: Vec<_> = nodes
        .chain(lab.pods().map(|(node, pod)| objects::pod(node, pod)))
        .collect();
    write_whole(manifests, "cluster.yaml", &objects::yaml(&all)?)
}

/// Writes a file next to the directory and moves it in, so that nobody reads half a file.
fn write_whole(dir: &Path, file: &str, text: &str) -> Result<()> {
    let sibling = dir.with_extension("new");
    fs::write(&sibling, text)
        .and_then(|()| fs::rename(&sibling, dir.join(file)))
        .with_context(|| format!("write {file}"))
}

/// Asks until there is an answer.
///
/// # Errors
/// If asking fails, or there is none in time.
pub fn eventually<T>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads `portway services`: a line per service port, and below it a line `at ADDRESS:PORT/PROTOCOL
/// …` per frontend.
fn frontends(json: &str) -> Result<Vec<Frontend>> {
    let services: Vec<Value> =
        serde_json::from_str(json).with_context(|| format!("read `portway services`: {json}"))?;
    let mut found = Vec::new();
    for service in &services {
        let name = service["service"].as_str().unwrap_or_default();
        for frontend in service["frontends"].as_array().into_iter().flatten() {
            let (addr, port) = (
                frontend["address"].as_str().unwrap_or_default(),
                frontend["port"].as_u64().unwrap_or_default(),
            );
            let addr: IpAddr = addr
                .parse()
                .with_context(|| format!("read the frontend {frontend}"))?;
            found.push(Frontend {
                service: name.to_owned(),
                addr: SocketAddr::new(addr, u16::try_from(port)?),
            });
        }
    }
    Ok(found)
}

/// The name that cluster DNS has for a Service in namespace `default`.
pub fn dns_name(service: &str) -> String {
    format!("{service}.default.svc.cluster.local")
}

/// The cluster IP and the nodePort among a service port's frontends.
///
/// # Errors
/// If one of the two is missing.
pub fn cluster_ip_and_node_port(frontends: &[SocketAddr]) -> Result<(IpAddr, u16)> {
    let (node_ports, cluster): (Vec<_>, Vec<_>) = frontends
        .iter()
        .partition(|addr| addr.ip().is_unspecified());
    let cluster: &SocketAddr = cluster.first().context("find a cluster IP")?;
    let node_port: &SocketAddr = node_ports.first().context("find a nodePort")?;
    Ok((cluster.ip(), node_port.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_read_from_what_programs_read() {
        let json = r#"[{ "service": "default/web:http", "frontends": [
            { "address": "0.0.0.0", "port": 30080 }, { "address": "fd00:96::7", "port": 80 }] }]"#;
        let web = |addr: &str| Frontend {
            service: "default/web:http".to_owned(),
            addr: addr.parse().expect("address"),
        };
        assert_eq!(
            frontends(json).expect("frontends"),
            [web("0.0.0.0:30080"), web("[fd00:96::7]:80")]
        );
        assert!(frontends("[{").is_err());
    }

    #[test]
    fn the_lesson_is_yaml_and_its_services_select_the_deployments_pods() {
        let labels = |text: &str, path: &[&str]| {
            let value: serde_json::Value = serde_norway::from_str(text).expect("yaml");
            path.iter().fold(value, |value, key| value[*key].clone())
        };
        let read = |file: &str| fs::read_to_string(Path::new(LESSON).join(file)).expect("lesson");
        let pods = labels(
            &read("web.yaml"),
            &["spec", "template", "metadata", "labels"],
        );
        assert_eq!(pods, serde_json::json!({ "app": "demo", "tier": "web" }));
        for service in ["web-nodeport.yaml", "web-ports.yaml"] {
            assert_eq!(labels(&read(service), &["spec", "selector"]), pods);
        }
    }
}
