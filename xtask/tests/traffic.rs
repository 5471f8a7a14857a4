//! Traffic through Portway in the lab, with a real API server as the source of the objects and an agent on each node.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::agent::{Agent, AgentSpec, Source};
use xtask::lab::controlplane::{ControlPlane, ControlPlaneSpec, ObjectRef, User, wait_for};
use xtask::lab::host::Tools;
use xtask::lab::load::{self, Load};
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Kind, Tally};
use xtask::lab::topology::{FAR_CLIENT, Family, Join, NEAR_CLIENT, PodSpec, ROUTER, Serves, Topology, Wiring};
use xtask::lab::{Lab, objects};

/// How long a change may take to be in force everywhere; generous, for the machine is shared.
const IN_FORCE: Duration = Duration::from_secs(10);
const DEPLOY: &str = include_str!("../../deploy/portway.yaml");
const WEB: u16 = 30080;
const WEB_UDP: u16 = 30053;
const HOST: u16 = 30090;

/// A lab, a control plane beside its router, and an agent on each node. Agents go first.
struct Cluster {
    agents: Vec<Agent>,
    spec: AgentSpec,
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    fn start(wiring: Wiring, join: Join) -> Result<Self> {
        let lab = Lab::start(topology(wiring, join), Tools::beside(env!("CARGO_BIN_EXE_xtask")))?;
        let ranges = ["10.96.0.0/12", "fd00:10:96::/112"].map(|range| range.parse().expect("a prefix"));
        let netns = lab.router().path();
        let plane = ControlPlane::start(&ControlPlaneSpec { netns, address: ROUTER.v4.into(), service_ranges: ranges.to_vec() })?;
        plane.client().apply_yaml(DEPLOY)?;
        for node in lab.nodes() {
            apply_with_status(&plane, &objects::node(node))?;
        }
        for (node, pod) in lab.pods() {
            apply_with_status(&plane, &objects::pod(node, pod))?;
        }
        for object in services() {
            plane.client().apply(&object)?;
        }
        let account = User::ServiceAccount { namespace: "portway".into(), name: "portway".into() };
        let spec = AgentSpec::new(lab.tools(), Source::Kubeconfig(plane.kubeconfig(&account)?), lab.directory());
        let agents = lab.nodes().iter().map(|node| spec.start(node)).collect::<Result<Vec<_>>>()?;
        let cluster = Self { agents, spec, plane, lab };
        cluster.settle()?;
        Ok(cluster)
    }

    /// Waits until every node leads to all three web pods, by both families, and to the backend in a node's own network.
    fn settle(&self) -> Result<()> {
        wait_for("all nodes to serve", IN_FORCE, || {
            for node in self.lab.nodes() {
                for ip in node.addresses().both() {
                    if self.far(Kind::Http, ip, WEB, 30)?.pods() != ["web-1", "web-2", "web-3"] {
                        return Ok(None);
                    }
                    if self.far(Kind::Http, ip, HOST, 2)?.served() != 2 {
                        return Ok(None);
                    }
                }
            }
            Ok(Some(()))
        })
    }

    fn far(&self, kind: Kind, ip: IpAddr, port: u16, count: usize) -> Result<Tally> {
        ask(self.lab.far_client(), kind, ip, port, count)
    }

    fn pod_ref(&self, name: &str) -> ObjectRef {
        ObjectRef::namespaced("v1", "Pod", "default", name)
    }

    fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let target = ObjectRef::namespaced("v1", "Service", "default", service);
        let object = self.plane.client().get(&target)?.context("find the Service")?;
        let ips = object["spec"]["clusterIPs"].as_array().context("find its cluster IPs")?;
        ips.iter().map(|ip| ip.as_str().unwrap_or_default().parse().context("read a cluster IP")).collect()
    }

    /// A counter of a node's packet path, as `/metrics` tells it.
    fn event(&self, node: &Node, name: &str) -> Result<u64> {
        let text = node.ns().run(|| metrics().context("ask for metrics"))?;
        let line = text.lines().find(|line| line.starts_with("portway_events") && line.contains(&format!("\"{name}\"")));
        let line = line.with_context(|| format!("find {name} in\n{text}"))?;
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).with_context(|| format!("read {line}"))
    }
}

fn metrics() -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:10249")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn apply_with_status(plane: &ControlPlane, object: &Value) -> Result<()> {
    let mut bare = object.clone();
    let status = bare.as_object_mut().and_then(|fields| fields.remove("status")).context("find the status")?;
    plane.client().apply(&bare)?;
    plane.client().patch_status(&ObjectRef::of(object)?, &status).map(drop)
}

fn topology(wiring: Wiring, join: Join) -> Topology {
    let web = |name: &str| {
        let pod = PodSpec::new(name).label("app", "web");
        pod.serving_as("http", 8080, Serves::Http).serving_as("names", 53, Serves::UdpEcho)
    };
    let host = PodSpec::new("host-1").label("app", "host").serving_as("http", 8088, Serves::Http).on_host_network();
    let topology = Topology::new(wiring, join).node("node1", vec![web("web-1"), web("web-2")]);
    topology.node("node2", vec![web("web-3"), PodSpec::new("visitor")]).node("node3", vec![host])
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
    ]);
    vec![service("web", web), service("host", json!([{ "name": "http", "port": 80, "targetPort": 8088, "nodePort": HOST }]))]
}

fn ask(from: &Namespace, kind: Kind, ip: IpAddr, port: u16, count: usize) -> Result<Tally> {
    from.run(|| Ok(probe::survey(kind, SocketAddr::new(ip, port), count)))
}

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// All rows of what must work from outside and from pods, for one wiring and one join.
fn everything_is_reached(wiring: Wiring, join: Join) -> Result<()> {
    let cluster = Cluster::start(wiring, join)?;
    for node in cluster.lab.nodes() {
        for ip in node.addresses().both() {
            from_outside(&cluster, node, ip)?;
        }
    }
    for from in ["web-1", "web-3", "visitor"] {
        from_a_pod(&cluster, from)?;
    }
    bulk(&cluster)?;
    for node in cluster.lab.nodes() {
        ensure!(cluster.event(node, "fallback")? == 0, "{}: packets of redirectable flows went through the stack", node.name());
        ensure!(cluster.event(node, "forwarded")? > 0, "{}: nothing was counted", node.name());
    }
    Ok(())
}

/// V9: a pod of the asked node sees the client, a pod elsewhere sees the asked node; TCP and UDP, both clients.
fn from_outside(cluster: &Cluster, node: &Node, ip: IpAddr) -> Result<()> {
    let here: Vec<&str> = node.pods().iter().map(|pod| pod.name()).collect();
    for (client, address) in [(cluster.lab.near_client(), NEAR_CLIENT), (cluster.lab.far_client(), FAR_CLIENT)] {
        let address = address.of(family(ip));
        for (kind, port) in [(Kind::Http, WEB), (Kind::Udp, WEB_UDP), (Kind::Http, HOST)] {
            client.run(|| {
                for _ in 0..12 {
                    let answer = probe::ask(kind, SocketAddr::new(ip, port));
                    let facts =
                        answer.served().with_context(|| format!("{} asks {ip} {kind:?} {port}: {answer}", client.name()))?;
                    let local = here.contains(&facts.pod.as_str());
                    ensure!((facts.client_ip() == address) == local, "by way of {}: {facts}, client {address}", node.name());
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A pod keeps its address towards pods, here and elsewhere, and itself (V10 aside).
fn from_a_pod(cluster: &Cluster, name: &str) -> Result<()> {
    let pod = cluster.lab.pod(name)?;
    for ip in cluster.cluster_ips("web")? {
        let own = pod.addresses().of(family(ip));
        for (kind, port) in [(Kind::Http, 80), (Kind::Udp, 53)] {
            pod.ns().run(|| {
                for _ in 0..12 {
                    let answer = probe::ask(kind, SocketAddr::new(ip, port));
                    let facts = answer.served().with_context(|| format!("{name} asks {ip} {kind:?}: {answer}"))?;
                    let expected = if facts.pod == name { ip } else { own };
                    ensure!(facts.client_ip() == expected, "{name} asks {ip}: {facts} instead of {expected}");
                }
                Ok(())
            })?;
        }
    }
    for ip in cluster.cluster_ips("host")? {
        let tally = ask(pod.ns(), Kind::Http, ip, 80, 5)?;
        ensure!(tally.by_pod.get("host-1") == Some(&5), "{name} asks for host-1 at {ip}: {tally:?}");
    }
    Ok(())
}

/// Segments and acknowledgements in both directions, with the offloads that the devices have.
fn bulk(cluster: &Cluster) -> Result<()> {
    for ip in cluster.lab.node("node3")?.addresses().both().into_iter().chain(cluster.lab.node("node1")?.addresses().both()) {
        cluster.lab.far_client().run(|| {
            for _ in 0..4 {
                let bytes = probe::Session::open(SocketAddr::new(ip, WEB))?.get("/bytes/3000000").context("fetch 3 MB")?;
                ensure!(bytes.len() == 3_000_000, "{} bytes instead of 3 MB by way of {ip}", bytes.len());
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn point_to_point_over_routes() -> Result<()> {
    everything_is_reached(Wiring::PointToPoint, Join::Routes)
}

#[test]
fn bridge_over_routes() -> Result<()> {
    everything_is_reached(Wiring::Bridge, Join::Routes)
}

#[test]
fn point_to_point_over_vxlan() -> Result<()> {
    everything_is_reached(Wiring::PointToPoint, Join::Vxlan)
}

#[test]
fn bridge_over_vxlan() -> Result<()> {
    everything_is_reached(Wiring::Bridge, Join::Vxlan)
}

/// Endpoints come and go; a bad object costs itself; a lost API server costs nothing.
#[test]
fn changes_take_effect_and_bad_objects_cost_only_themselves() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::Bridge, Join::Routes)?;
    let node3 = cluster.lab.node("node3")?.addresses().v4.into();
    let ready = |status: &str| json!({ "conditions": [{ "type": "Ready", "status": status }] });
    cluster.plane.client().patch_status(&cluster.pod_ref("web-3"), &ready("False"))?;
    wait_for("web-3 to leave", IN_FORCE, || {
        Ok((cluster.far(Kind::Http, node3, WEB, 30)?.pods() == ["web-1", "web-2"]).then_some(()))
    })?;
    let bad = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "bad", "namespace": "default", "labels": { "kubernetes.io/service-name": "host" } },
        "addressType": "FQDN",
        "endpoints": [{ "addresses": ["no-address.example"] }],
        "ports": [{ "name": "http", "port": 8088 }],
    });
    cluster.plane.client().apply(&bad)?;
    cluster.plane.client().patch_status(&cluster.pod_ref("web-3"), &ready("True"))?;
    cluster.settle()?;
    cluster.plane.stop_apiserver();
    let tally = cluster.far(Kind::Http, node3, WEB, 60)?;
    ensure!(tally.pods().len() == 3 && tally.unserved() == 0, "without an API server: {tally:?}");
    cluster.plane.start_apiserver()?;
    cluster.plane.client().patch_status(&cluster.pod_ref("web-1"), &ready("False"))?;
    wait_for("web-1 to leave after the API server came back", Duration::from_secs(60), || {
        Ok((cluster.far(Kind::Http, node3, WEB, 30)?.pods() == ["web-2", "web-3"]).then_some(()))
    })
}

/// `kill -9` of the agent under load, a while without one, and a new one: no request fails.
#[test]
fn killing_and_restarting_the_agent_fails_no_request() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::Bridge, Join::Routes)?;
    let target = SocketAddr::new(cluster.lab.node("node1")?.addresses().v4.into(), WEB);
    let load = Load::new(target, 10_000, Duration::from_secs(12));
    let running = cluster.lab.near_client().start(move || load::run(&load));
    std::thread::sleep(Duration::from_secs(3));
    cluster.agents.remove(0).kill();
    std::thread::sleep(Duration::from_secs(4));
    let again = cluster.spec.start(cluster.lab.node("node1")?)?;
    let report = running.join().expect("the load does not panic")?;
    println!("{report}");
    ensure!(report.failed() == 0, "{report}");
    ensure!(report.answered() > 60_000, "too few to say anything: {report}");
    let log = again.log();
    ensure!(!log.contains("refused"), "the new agent had trouble:\n{log}");
    cluster.agents.push(again);
    cluster.settle()
}
