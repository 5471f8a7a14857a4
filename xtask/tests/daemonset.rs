//! deploy/portway.yaml on a real API server, and its containers played: exactly its capabilities,
//! its account, its environment.
//!
//! Not played: the runtime's seccomp and AppArmor profiles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::agent::Agent;
use xtask::lab::container::{Container, capabilities};
use xtask::lab::controlplane::{ControlPlane, ObjectRef, wait_for};
use xtask::lab::host::Tools;
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Kind};
use xtask::lab::topology::{Join, PodSpec, ROUTER, Serves, Topology, Wiring};
use xtask::lab::{Lab, cluster};

const SOON: Duration = Duration::from_secs(20);
const WEB: u16 = 30080;
/// Words by which the agent, the kernel and the API server say that something was not allowed.
const REFUSALS: [&str; 4] = ["refused", "denied", "not permitted", "forbidden"];

/// A lab with a control plane that has the DaemonSet and a Service; no agent runs yet.
struct Cluster {
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    fn start(wiring: Wiring) -> Result<Self> {
        let web = |name: &str| {
            PodSpec::new(name)
                .label("app", "web")
                .serving_as("http", 8080, Serves::Http)
        };
        let topology = Topology::new(wiring, Join::Routes);
        let topology = topology
            .node("node1", vec![web("web-1")])
            .node("node2", vec![web("web-2")]);
        let lab = Lab::start(topology, Tools::next_to(env!("CARGO_BIN_EXE_xtask")))?;
        let plane = cluster::begin(&lab)?;
        plane.client().apply(&service())?;
        // As the manifest advises for clusters without kube-proxy.
        let (host, port) = (ROUTER.v4.to_string(), "6443");
        plane.client().apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "portway", "namespace": "portway" },
            "data": { "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port },
        }))?;
        Ok(Self { plane, lab })
    }

    /// The Pod that the DaemonSet's controller has made for `node`, with the API server's defaults.
    fn pod(&self, node: &Node) -> Result<Value> {
        let chosen = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0";
        wait_for("the DaemonSet's Pod", SOON, || {
            let pods = self.plane.client().list(
                "v1",
                "Pod",
                Some("portway"),
                "app.kubernetes.io/name=portway",
            )?;
            Ok(pods
                .into_iter()
                .find(|pod| pod.pointer(chosen).and_then(Value::as_str) == Some(node.name())))
        })
    }

    /// Starts what a kubelet would: the Pod's container, with the token of its account.
    fn start_agent(&self, node: &Node, pod: Value) -> Result<Agent> {
        let place = self.lab.directory().join(format!("{}-pod", node.name()));
        let root = place.join("root");
        fs::create_dir_all(&root).context("create the container's root")?;
        if !node.state_dir().exists() {
            fs::create_dir(node.state_dir()).context("create the node's bpffs")?;
        }
        let bpffs = (PathBuf::from("/sys/fs/bpf"), node.state_dir().to_owned());
        let cgroup = (PathBuf::from("/sys/fs/cgroup"), node.cgroup().to_owned());
        let results = (
            PathBuf::from("/var/lib/cni/results"),
            place.join("cni-results"),
        );
        fs::create_dir_all(&results.1).context("create the directory of CNI results")?;
        let container = Container {
            node: node.name().to_owned(),
            config: self.config(&pod)?,
            host_paths: BTreeMap::from([bpffs, cgroup, results]),
            account: self.account(&pod)?,
            root,
            pod,
        };
        Agent::spawn(
            node,
            container.command(self.lab.tools())?,
            self.lab.directory(),
        )
    }

    fn config(&self, pod: &Value) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for from in pod["spec"]["containers"][0]["envFrom"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = from["configMapRef"]["name"]
                .as_str()
                .context("read the name of a ConfigMap")?;
            let map = self.plane.client().get(&ObjectRef::namespaced(
                "v1",
                "ConfigMap",
                "portway",
                name,
            ))?;
            let data = map.context("find the ConfigMap")?["data"].clone();
            all.extend(
                serde_json::from_value::<BTreeMap<String, String>>(data)
                    .context("read the ConfigMap")?,
            );
        }
        Ok(all)
    }

    /// Makes the files that the kubelet mounts for the Pod's account.
    fn account(&self, pod: &Value) -> Result<PathBuf> {
        let text = |pointer: &str| {
            pod.pointer(pointer)
                .and_then(Value::as_str)
                .with_context(|| format!("find {pointer}"))
        };
        let (namespace, name) = (
            text("/metadata/namespace")?,
            text("/spec/serviceAccountName")?,
        );
        let dir = self.lab.directory().join("account");
        fs::create_dir_all(&dir).context("create the account's directory")?;
        fs::write(
            dir.join("token"),
            self.plane.service_account_token(namespace, name)?,
        )
        .context("write the token")?;
        fs::write(dir.join("namespace"), namespace).context("write the namespace")?;
        fs::copy(self.plane.ca(), dir.join("ca.crt")).context("copy the certificate")?;
        Ok(dir)
    }

    fn wait_until_served(&self) -> Result<()> {
        for ip in self
            .lab
            .nodes()
            .iter()
            .flat_map(|node| node.addresses().both())
        {
            wait_for("both pods by way of every node", SOON, || {
                let tally = self
                    .lab
                    .far_client()
                    .run(|| Ok(probe::survey(Kind::Http, SocketAddr::new(ip, WEB), 20)))?;
                Ok((tally.pods() == ["web-1", "web-2"] && tally.unserved() == 0).then_some(()))
            })?;
        }
        Ok(())
    }
}

fn service() -> Value {
    let ports = json!([{ "name": "http", "port": 80, "targetPort": "http", "nodePort": WEB }]);
    let spec = json!({ "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": { "app": "web" }, "ports": ports });
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec })
}

/// A field of `/proc/PID/status`.
fn status_of(agent: &Agent, field: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.process().pid()))
        .context("read the process's status")?;
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(found
        .with_context(|| format!("find {field}"))?
        .trim()
        .to_owned())
}

fn added(pod: &Value) -> BTreeSet<&str> {
    let add = pod
        .pointer("/spec/containers/0/securityContext/capabilities/add")
        .and_then(Value::as_array);
    add.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Returns the capabilities that the manifest adds and this host can grant: where the tests run in
/// a container, they may lack the one that old kernels need.
fn granted(pod: &Value) -> Result<BTreeSet<&str>> {
    let own = fs::read_to_string("/proc/self/status").context("read this process's status")?;
    let bound = own
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .context("find this process's capabilities")?;
    let (added, bound) = (added(pod), capabilities(bound.trim())?);
    let missing: Vec<_> = added.difference(&bound).copied().collect();
    println!("the manifest adds {added:?}; this host cannot give {missing:?}");
    ensure!(
        missing.iter().all(|name| *name == "SYS_RESOURCE"),
        "this host cannot give {missing:?}"
    );
    Ok(added.intersection(&bound).copied().collect())
}

/// The process is the agent, with the capabilities of the manifest and no others.
fn holds_what_the_pod_says(agent: &Agent, pod: &Value) -> Result<()> {
    ensure!(
        status_of(agent, "Name")? == "portway",
        "the container has not become the agent"
    );
    ensure!(
        status_of(agent, "Uid")?
            .split_whitespace()
            .all(|id| id == "0"),
        "another user"
    );
    ensure!(
        status_of(agent, "NoNewPrivs")? == "1",
        "it may gain privileges"
    );
    let granted = granted(pod)?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let effective = capabilities(&status_of(agent, set)?)?;
        ensure!(
            effective == granted,
            "{set} is {effective:?} instead of {granted:?}"
        );
    }
    for set in ["CapInh", "CapAmb"] {
        ensure!(
            capabilities(&status_of(agent, set)?)?.is_empty(),
            "{set} is not empty"
        );
    }
    Ok(())
}

fn serves_with_the_manifests_capabilities(wiring: Wiring) -> Result<()> {
    let cluster = Cluster::start(wiring)?;
    let pods: Vec<Value> = cluster
        .lab
        .nodes()
        .iter()
        .map(|node| cluster.pod(node))
        .collect::<Result<_>>()?;
    let nodes = || cluster.lab.nodes().iter().zip(&pods);
    let mut agents: Vec<Agent> = nodes()
        .map(|(node, pod)| cluster.start_agent(node, pod.clone()))
        .collect::<Result<_>>()?;
    for (agent, node) in agents.iter_mut().zip(cluster.lab.nodes()) {
        agent.wait_until_healthy(node)?;
    }
    cluster.wait_until_served()?;
    for (agent, pod) in agents.iter().zip(&pods) {
        holds_what_the_pod_says(agent, pod)?;
        let log = agent.log();
        let refusal = REFUSALS.iter().find(|word| log.contains(*word));
        ensure!(refusal.is_none(), "{refusal:?} in the log:\n{log}");
    }
    // A second one adopts what the first has pinned, with no more than the first had.
    let (node, pod) = nodes().next().context("find a node")?;
    agents.remove(0).stop()?;
    let mut again = cluster.start_agent(node, pod.clone())?;
    again.wait_until_healthy(node)?;
    cluster.wait_until_served()?;
    ensure!(
        REFUSALS.iter().all(|word| !again.log().contains(word)),
        "the second agent had trouble:\n{}",
        again.log()
    );
    Ok(())
}

#[test]
fn the_daemonset_serves_pods_on_a_bridge() -> Result<()> {
    serves_with_the_manifests_capabilities(Wiring::Bridge)
}

#[test]
fn the_daemonset_serves_pods_on_links_of_their_own() -> Result<()> {
    serves_with_the_manifests_capabilities(Wiring::PointToPoint)
}

/// Every capability is needed: without any one of them the agent ends, and its error names it.
/// (5.11 and later do not look at SYS_RESOURCE, so it cannot be missed here.)
#[test]
fn without_one_of_its_capabilities_an_agent_does_not_start() -> Result<()> {
    let cluster = Cluster::start(Wiring::Bridge)?;
    let node = cluster.lab.node("node1")?;
    let pod = cluster.pod(node)?;
    for name in added(&pod)
        .into_iter()
        .filter(|name| *name != "SYS_RESOURCE")
    {
        let mut less = pod.clone();
        let add = less
            .pointer_mut("/spec/containers/0/securityContext/capabilities/add")
            .and_then(Value::as_array_mut);
        add.context("find the capabilities")?
            .retain(|other| other != name);
        let mut agent = cluster.start_agent(node, less)?;
        let outcome = agent
            .wait_until_healthy(node)
            .map_err(|error| error.to_string());
        ensure!(
            outcome.as_ref().is_err_and(|error| error.contains("ended")),
            "without {name}: {outcome:?}\n{}",
            agent.log()
        );
    }
    Ok(())
}
