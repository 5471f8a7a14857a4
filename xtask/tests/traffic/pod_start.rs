//! P31: pods that have begun before anybody has said who they are, with and without the result
//! cache of their CNI plugin.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::probe::{self, Kind, Tally};
use xtask::lab::topology::{Join, PodSpec, Serves, Wiring};
use xtask::lab::{cluster, objects};

use crate::cluster::{Cluster, IN_FORCE, ask, load_average};
use crate::measured::{Log, Spread};

/// Number of links that come up and pods that start; half of them by each way.
const ROUNDS: usize = 60;
/// Time to wait for a pod's first answer before it is asked again: the kernel repeats a dropped SYN
/// after a second only.
const ONE_TRY: Duration = Duration::from_millis(2);

#[test]
fn p31_a_new_pod_over_point_to_point_links() -> Result<()> {
    new_pod(Wiring::PointToPoint)
}

#[test]
fn p31_a_new_pod_over_a_bridge() -> Result<()> {
    new_pod(Wiring::Bridge)
}

/// Denied both ways until it is known, its own node let in; then judged by its policies, which its
/// CNI result makes known first.
fn new_pod(wiring: Wiring) -> Result<()> {
    let results = Results::new()?;
    let mut cluster = Cluster::start_with(wiring, Join::Routes, &results.arguments(), |_| Ok(()))?;
    let ips = start(&mut cluster, "fresh-0")?;
    ensure!(
        reached(&cluster, "web-3", &ips)?.served() > 0,
        "without any policy nothing is denied"
    );
    cluster.plane.client().apply(&policy())?;
    wait_for("an unknown pod to be denied", IN_FORCE, || {
        Ok((reached(&cluster, "web-3", &ips)?.served() == 0).then_some(()))
    })?;
    let ips = start(&mut cluster, "fresh-1")?;
    unknown(&cluster, "fresh-1", &ips)?;
    cluster::apply_with_status(&cluster.plane, &object(&cluster, "fresh-1")?)?;
    known(&cluster, &ips)?;

    let ips = start(&mut cluster, "fresh-2")?;
    unknown(&cluster, "fresh-2", &ips)?;
    let mut object = object(&cluster, "fresh-2")?;
    let status = object
        .as_object_mut()
        .and_then(|fields| fields.remove("status"))
        .context("find the status")?;
    cluster.plane.client().apply(&object)?;
    unknown(&cluster, "fresh-2", &ips)?;
    results.give("fresh-2", &ips)?;
    known(&cluster, &ips)?;
    // The API server's word makes no difference, and stays when the container's result is gone.
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("fresh-2"), &status)?;
    results.take("fresh-2")?;
    known(&cluster, &ips)
}

#[test]
fn p31_pods_may_be_let_through_until_they_are_known() -> Result<()> {
    let mut cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--pod-start", "allow"],
        |_| Ok(()),
    )?;
    cluster.plane.client().apply(&policy())?;
    let ips = start(&mut cluster, "fresh-0")?;
    ensure!(
        reached(&cluster, "web-3", &ips)?.unserved() == 0,
        "--pod-start allow"
    );
    cluster::apply_with_status(&cluster.plane, &object(&cluster, "fresh-0")?)?;
    wait_for("web-3 to be held back", IN_FORCE, || {
        Ok((reached(&cluster, "web-3", &ips)?.served() == 0).then_some(()))
    })?;
    known(&cluster, &ips)
}

/// The node that starts pods.
const NODE: &str = "node2";

/// Pods with the label are isolated both ways; the visitor may ask them by HTTP.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "fresh", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "fresh" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "visitor" } } }], "ports": [{ "port": "http" }] }],
        },
    })
}

/// Starts a pod with its link and its server, without an object at the API server.
fn start(cluster: &mut Cluster, name: &str) -> Result<[IpAddr; 2]> {
    let spec = PodSpec::new(name)
        .label("app", "fresh")
        .serving_as("http", 8080, Serves::Http);
    Ok(cluster
        .lab
        .node_mut(NODE)?
        .add_pod(spec)?
        .addresses()
        .both())
}

/// The Pod as its kubelet will report it.
fn object(cluster: &Cluster, name: &str) -> Result<Value> {
    Ok(objects::pod(
        cluster.lab.node(NODE)?,
        cluster.lab.pod(name)?,
    ))
}

/// Returns the outcomes of asking both addresses from a pod of the same node.
fn reached(cluster: &Cluster, from: &str, ips: &[IpAddr]) -> Result<Tally> {
    let from = cluster.lab.pod(from)?;
    from.ns().run(|| {
        Ok(ips
            .iter()
            .flat_map(|ip: &IpAddr| probe::answers(Kind::Http, SocketAddr::new(*ip, 8080), 2))
            .collect())
    })
}

/// Denied both ways, counted, and reached by its own node.
fn unknown(cluster: &Cluster, name: &str, ips: &[IpAddr]) -> Result<()> {
    let node = cluster.lab.node(NODE)?;
    let before = cluster.metric(node, "portway_drops", "pod_unknown")?;
    for from in ["web-3", "visitor"] {
        let tally = reached(cluster, from, ips)?;
        ensure!(tally.served() == 0, "{from} reaches {name}: {tally}");
    }
    for ip in cluster.lab.pod("web-3")?.addresses().both() {
        let tally = ask(cluster.lab.pod(name)?.ns(), Kind::Http, ip, 8080, 2)?;
        ensure!(tally.served() == 0, "{name} reaches web-3: {tally}");
    }
    for ip in ips {
        let tally = ask(node.ns(), Kind::Http, *ip, 8080, 2)?;
        ensure!(
            tally.served() == 2,
            "its own node is held back from {name}: {tally}"
        );
    }
    ensure!(
        cluster.metric(node, "portway_drops", "pod_unknown")? > before,
        "nothing was counted"
    );
    Ok(())
}

/// The policy decides: the visitor gets in, others do not, and never did.
fn known(cluster: &Cluster, ips: &[IpAddr]) -> Result<()> {
    wait_for("the visitor to be let in", IN_FORCE, || {
        let other = reached(cluster, "web-3", ips)?;
        ensure!(other.served() == 0, "web-3 gets in: {other}");
        Ok((reached(cluster, "visitor", ips)?.unserved() == 0).then_some(()))
    })
}

/// A directory as libcni keeps it.
struct Results(PathBuf);

impl Results {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "portway-cni-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::create_dir_all(&path).context("make a directory")?;
        Ok(Self(path))
    }

    fn arguments(&self) -> [&str; 2] {
        ["--cni-results", self.0.to_str().unwrap_or_default()]
    }

    fn path(&self, pod: &str) -> PathBuf {
        Path::new(&self.0).join(format!("lab-{pod}-eth0"))
    }

    /// Writes a CNI result for a pod of the namespace `default`.
    fn give(&self, pod: &str, ips: &[IpAddr]) -> Result<()> {
        let ips: Vec<_> = ips
            .iter()
            .map(|ip| json!({ "address": format!("{ip}/{}", if ip.is_ipv4() { 24 } else { 64 }) }))
            .collect();
        let cached = json!({
            "kind": "cniCacheV1",
            "containerId": pod,
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "lab",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", pod]],
            "result": { "cniVersion": "1.0.0", "interfaces": [], "ips": ips },
        });
        fs::write(self.path(pod), cached.to_string()).context("write a CNI result")
    }

    fn take(&self, pod: &str) -> Result<()> {
        fs::remove_file(self.path(pod)).context("remove a CNI result")
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The figures of the issue: from a link that is up to its programs, and from what makes the pod
/// known to its first answer.
#[test]
fn p31_how_long_a_new_pod_waits() -> Result<()> {
    let results = Results::new()?;
    let mut cluster =
        Cluster::start_alone(Wiring::PointToPoint, Join::Routes, &results.arguments())?;
    cluster.plane.client().apply(&policy())?;
    let linked = Spread::of(
        (0..ROUNDS)
            .map(|round| link(&cluster, round))
            .collect::<Result<_>>()?,
    );
    let mut by_api = Vec::new();
    let mut by_cni = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("fresh-{round}");
        let ips = start(&mut cluster, &name)?;
        let mut object = object(&cluster, &name)?;
        let status = object
            .as_object_mut()
            .and_then(|fields| fields.remove("status"))
            .context("find the status")?;
        cluster.plane.client().apply(&object)?;
        let target = cluster.pod_ref(&name);
        if round % 2 == 0 {
            let begin = Instant::now();
            cluster.plane.client().patch_status(&target, &status)?;
            by_api.push(first_answer(&cluster, ips[0], begin)?);
        } else {
            wait_for_pod(&cluster, &name)?;
            let begin = Instant::now();
            results.give(&name, &ips)?;
            by_cni.push(first_answer(&cluster, ips[0], begin)?);
        }
        cluster.plane.client().delete(&target)?;
        cluster.lab.node_mut(NODE)?.remove_pod(&name)?;
    }
    let (by_api, by_cni) = (Spread::of(by_api), Spread::of(by_cni));
    println!("load average {}", load_average()?);
    println!("  from a link that is up to both programs on it: {linked}");
    println!(
        "  from the request that gives the API server its addresses to its first answer: {by_api}"
    );
    println!(
        "  from its CNI result to its first answer, the API server without its addresses: {by_cni}"
    );
    let goal = Duration::from_millis(250);
    ensure!(
        linked.p50 < goal && by_api.p50 < goal && by_cni.p50 < goal,
        "a median is beyond {goal:?}"
    );
    Ok(())
}

/// From the moment at which a veth with a pod's route is up to its second program.
fn link(cluster: &Cluster, round: usize) -> Result<Duration> {
    let node = cluster.lab.node(NODE)?;
    let agent = cluster.agents.get(1).context("find the node's agent")?;
    let mut log = Log::from_here(agent);
    let device = format!("cali-{round}");
    let begin = SystemTime::now();
    let peer = format!("{device}-peer");
    let addr = format!("10.244.2.{}", 190 + round);
    let lines = format!(
        "link add {device} type veth peer name {peer}\nlink set {peer} up\nlink set {device} up\nroute add {addr}/32 dev {device}\n"
    );
    node.ns().ip(&lines)?;
    let up = SystemTime::now();
    let words = format!("attached device=\"{device}\"");
    let last = log.when(&words, begin)?.max(log.when(&words, begin)?);
    node.ns().ip(&format!("link del {device}\n"))?;
    Ok(last.duration_since(up).unwrap_or_default())
}

/// The agent has heard of the pod, which has no addresses yet: its watch is at least as fast as a
/// second one.
fn wait_for_pod(cluster: &Cluster, name: &str) -> Result<()> {
    let target = ObjectRef::namespaced("v1", "Pod", "default", name);
    cluster
        .plane
        .client()
        .get(&target)?
        .context("find the Pod")?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

/// Until the visitor is answered, asking again at once.
fn first_answer(cluster: &Cluster, ip: IpAddr, begin: Instant) -> Result<Duration> {
    let visitor = cluster.lab.pod("visitor")?;
    visitor.ns().run(|| {
        while begin.elapsed() < IN_FORCE {
            if TcpStream::connect_timeout(&SocketAddr::new(ip, 8080), ONE_TRY).is_ok() {
                return Ok(begin.elapsed());
            }
        }
        anyhow::bail!("{ip} does not answer the visitor in {IN_FORCE:?}")
    })
}
