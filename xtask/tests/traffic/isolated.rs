//! Isolated pods and what tables cannot show: errors about connections, fragments, sources, and
//! addresses that change hands.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::netns::Namespace;
use xtask::lab::probe::{Kind, PATIENCE, Session};
use xtask::lab::topology::{FAR_CLIENT, Join, Wiring};
use xtask::lab::{cluster, objects};

use crate::cluster::{Cluster, IN_FORCE, WEB, WEB_UDP, ask};

/// A port that nobody listens on.
const NOBODY: u16 = 5354;
/// More than two frames hold.
const LARGE: usize = 4000;
/// More than the first window, so that full-sized segments are under way.
const BODY: usize = 1_000_000;

#[test]
fn isolated_pods_over_point_to_point_links() -> Result<()> {
    isolated_pods(Wiring::PointToPoint)
}

#[test]
fn isolated_pods_over_a_bridge() -> Result<()> {
    isolated_pods(Wiring::Bridge)
}

fn isolated_pods(wiring: Wiring) -> Result<()> {
    let cluster = Cluster::start(wiring, Join::Routes)?;
    errors_about_a_connection(&cluster)?;
    packets_too_big(&cluster)?;
    fragments(&cluster)?;
    sources(&cluster)?;
    namespaces(&cluster)?;
    finished_pods(&cluster)?;
    addresses_change_hands(&cluster)
}

/// P25: the visitor may ask the web pods, nobody may ask it, and it still receives the error that a
/// port is closed.
fn errors_about_a_connection(cluster: &Cluster) -> Result<()> {
    let policy = policy(
        "visitor",
        &json!({ "egress": [{ "to": web(), "ports": [{ "protocol": "UDP", "port": NOBODY }] }], "ingress": [] }),
    );
    cluster.plane.client().apply(&policy)?;
    let visitor = cluster.lab.pod("visitor")?.ns();
    for pod in ["web-1", "web-3"] {
        for ip in cluster.lab.pod(pod)?.addresses().both() {
            wait_for("the visitor to be sessions back", IN_FORCE, || {
                Ok((ask(visitor, Kind::Http, ip, 8080, 2)?.served() == 0).then_some(()))
            })?;
            let tally = ask(visitor, Kind::Udp, ip, NOBODY, 3)?;
            ensure!(
                tally.refused == 3,
                "{pod} at {ip}, where nobody listens: {tally}"
            );
        }
    }
    cluster.plane.client().delete(&ObjectRef::of(&policy)?)
}

/// P25: a router on the way has a smaller MTU than both ends; its error reaches the isolated
/// server.
fn packets_too_big(cluster: &Cluster) -> Result<()> {
    let policy = policy(
        "web",
        &json!({ "ingress": [{ "from": far(), "ports": [{ "port": "http" }] }], "egress": [] }),
    );
    cluster.plane.client().apply(&policy)?;
    let router = cluster.lab.router();
    let narrow = |ip: IpAddr| {
        format!(
            "route add {ip}/{} dev eth1 mtu lock 1280\n",
            if ip.is_ipv4() { 32 } else { 128 }
        )
    };
    router
        .ip(&FAR_CLIENT.both().map(narrow).concat())
        .context("narrow the way")?;
    for ip in cluster.lab.pod("web-3")?.addresses().both() {
        let addr = SocketAddr::new(ip, 8080);
        wait_for("the visitor to be sessions back", IN_FORCE, || {
            Ok(
                (ask(cluster.lab.pod("visitor")?.ns(), Kind::Http, ip, 8080, 2)?.served() == 0)
                    .then_some(()),
            )
        })?;
        let body = cluster
            .lab
            .far_client()
            .run(|| Ok(Session::open(addr)?.get(&format!("/bytes/{BODY}"))?));
        ensure!(
            body.with_context(|| format!("fetch from {addr} by a narrow way"))?
                .len()
                == BODY
        );
        let far = if ip.is_ipv4() {
            FAR_CLIENT.both()[0]
        } else {
            FAR_CLIENT.both()[1]
        };
        let learnt = cluster
            .lab
            .pod("web-3")?
            .ns()
            .output(Command::new("ip").args(["route", "get", &far.to_string()]))?;
        ensure!(
            learnt.contains("mtu 1280"),
            "web-3 has not learnt how narrow the way is: {learnt}"
        );
    }
    cluster.plane.client().delete(&ObjectRef::of(&policy)?)
}

/// P27: all fragments of an allowed datagram come through, none of a denied one.
fn fragments(cluster: &Cluster) -> Result<()> {
    let policy = policy(
        "web",
        &json!({ "ingress": [{ "ports": [{ "protocol": "UDP", "port": "names" }] }] }),
    );
    cluster.plane.client().apply(&policy)?;
    let node2 = cluster.lab.node("node2")?;
    let clients = [
        ("the far client", cluster.lab.far_client()),
        ("the visitor", cluster.lab.pod("visitor")?.ns()),
    ];
    for ip in cluster.lab.pod("web-3")?.addresses().both() {
        for (name, from) in clients {
            wait_for("HTTP to be denied", IN_FORCE, || {
                Ok((ask(from, Kind::Http, ip, 8080, 2)?.served() == 0).then_some(()))
            })?;
            ensure!(
                large_datagram(from, SocketAddr::new(ip, 53))?,
                "{name} sends {LARGE} bytes to {ip}"
            );
            let before = cluster.metric(node2, "portway_drops", "denied_ingress")?;
            ensure!(
                !large_datagram(from, SocketAddr::new(ip, 54))?,
                "{name} sends {LARGE} bytes to a denied port of {ip}"
            );
            let dropped = cluster.metric(node2, "portway_drops", "denied_ingress")? - before;
            ensure!(
                dropped >= 3,
                "{dropped} fragments from {name} to {ip} were dropped"
            );
        }
    }
    cluster.plane.client().delete(&ObjectRef::of(&policy)?)
}

/// Returns true if a datagram of several fragments is answered.
fn large_datagram(from: &Namespace, to: SocketAddr) -> Result<bool> {
    from.run(|| Ok(datagram(to, LARGE).is_ok()))
}

/// P33: what a pod sends with an address of another pod, of its node or of nobody here is dropped;
/// an annotation exempts it.
fn sources(cluster: &Cluster) -> Result<()> {
    let visitor = cluster.lab.pod("visitor")?;
    let node2 = cluster.lab.node("node2")?;
    let (web3, others) = (cluster.lab.pod("web-3")?, cluster.lab.pod("web-1")?);
    let forged = |exempt: bool| -> Result<()> {
        for (index, to) in web3.addresses().both().into_iter().enumerate() {
            for source in [
                others.addresses().both()[index],
                node2.addresses().both()[index],
                FAR_CLIENT.both()[index],
            ] {
                let before = cluster.metric(node2, "portway_drops", "spoofed_source")?;
                send_from(visitor.ns(), source, SocketAddr::new(to, 53))?;
                let dropped = cluster.metric(node2, "portway_drops", "spoofed_source")? - before;
                ensure!(
                    dropped == u64::from(!exempt),
                    "{dropped} packets from {source} to {to} were dropped"
                );
            }
        }
        Ok(())
    };
    forged(false)?;
    let annotate = |value: Value| json!({ "metadata": { "annotations": { "portway.dev/any-source": value } } });
    cluster
        .plane
        .client()
        .patch(&cluster.pod_ref("visitor"), &annotate(json!("true")))?;
    wait_for("the exemption to be in force", IN_FORCE, || {
        Ok(forged(true).ok())
    })?;
    cluster
        .plane
        .client()
        .patch(&cluster.pod_ref("visitor"), &annotate(Value::Null))?;
    wait_for("the exemption to be over", IN_FORCE, || {
        Ok(forged(false).ok())
    })
}

/// Sends one datagram with an address that the sender has only for this; nobody waits for an
/// answer.
fn send_from(from: &Namespace, source: IpAddr, to: SocketAddr) -> Result<()> {
    let len = if source.is_ipv4() { 32 } else { 128 };
    let nodad = if source.is_ipv4() { "" } else { " nodad" };
    from.ip(&format!("addr add {source}/{len} dev eth0{nodad}\n"))?;
    let sent = from.run(|| {
        let socket = UdpSocket::bind((source, 0)).with_context(|| format!("bind to {source}"))?;
        socket
            .send_to(b"forged", to)
            .map(drop)
            .with_context(|| format!("send to {to}"))
    });
    from.ip(&format!("addr del {source}/{len} dev eth0\n"))?;
    sent
}

/// P24: a namespace's label lets its pods in, and its loss holds them back at once.
fn namespaces(cluster: &Cluster) -> Result<()> {
    let team = json!([{ "namespaceSelector": { "matchLabels": { "team": "a" } } }]);
    let policy = policy("web", &json!({ "ingress": [{ "from": team }] }));
    cluster.plane.client().apply(&policy)?;
    let label = |value: Value| {
        let target = ObjectRef::cluster("v1", "Namespace", "default");
        cluster
            .plane
            .client()
            .patch(
                &target,
                &json!({ "metadata": { "labels": { "team": value } } }),
            )
            .map(drop)
    };
    reach(cluster, false)?;
    label(json!("a"))?;
    reach(cluster, true)?;
    label(Value::Null)?;
    reach(cluster, false)?;
    cluster.plane.client().delete(&ObjectRef::of(&policy)?)
}

/// Waits until the visitor reaches the web pods, or none of them.
fn reach(cluster: &Cluster, wanted: bool) -> Result<()> {
    let visitor = cluster.lab.pod("visitor")?.ns();
    for pod in ["web-1", "web-3"] {
        for ip in cluster.lab.pod(pod)?.addresses().both() {
            wait_for("the visitor to be judged anew", IN_FORCE, || {
                Ok(
                    (ask(visitor, Kind::Http, ip, 8080, 2)?.served() == if wanted { 2 } else { 0 })
                        .then_some(()),
                )
            })?;
        }
    }
    Ok(())
}

/// P20: a pod that has finished is no peer any more, although it has not gone.
fn finished_pods(cluster: &Cluster) -> Result<()> {
    let from = json!([{ "podSelector": { "matchLabels": { "app": "visitor" } } }]);
    let policy = policy("web", &json!({ "ingress": [{ "from": from }] }));
    cluster.plane.client().apply(&policy)?;
    reach(cluster, true)?;
    let phase = |phase: &str| {
        cluster
            .plane
            .client()
            .patch_status(&cluster.pod_ref("visitor"), &json!({ "phase": phase }))
            .map(drop)
    };
    phase("Succeeded")?;
    reach(cluster, false)?;
    phase("Running")?;
    reach(cluster, true)
}

/// P22: another pod gets the address: it has its own verdicts, and the connections of the one
/// before are over.
fn addresses_change_hands(cluster: &Cluster) -> Result<()> {
    let visitor = cluster.lab.pod("visitor")?;
    let mut sessions = Vec::new();
    for pod in ["web-1", "web-3"] {
        for ip in cluster.lab.pod(pod)?.addresses().both() {
            let mut session = visitor
                .ns()
                .run(|| Ok(Session::open(SocketAddr::new(ip, 8080))?))?;
            session.ask()?;
            sessions.push((ip, session));
        }
    }
    cluster.plane.client().delete(&cluster.pod_ref("visitor"))?;
    let mut heir = objects::pod(cluster.lab.node("node2")?, visitor);
    heir["metadata"]["name"] = json!("heir");
    heir["metadata"]["labels"]["app"] = json!("heir");
    cluster::apply_with_status(&cluster.plane, &heir)?;
    reach(cluster, false)?;
    for (ip, session) in &mut sessions {
        ensure!(
            session.ask().is_err(),
            "a connection of the pod before to {ip} goes on"
        );
    }
    // Also where the heir may do what the other one did.
    let from = json!([{ "podSelector": { "matchLabels": { "app": "heir" } } }]);
    cluster
        .plane
        .client()
        .apply(&policy("web", &json!({ "ingress": [{ "from": from }] })))?;
    reach(cluster, true)
}

/// `--policy-deny reject`: a denied client gets an error at once, by both protocols, in either
/// direction, from pods and from outside.
#[test]
fn denials_are_told_where_that_is_wanted() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--policy-deny", "reject"],
        |_| Ok(()),
    )?;
    let visitor = cluster.lab.pod("visitor")?.ns();
    for isolated in [
        policy("web", &json!({ "ingress": [] })),
        policy("visitor", &json!({ "egress": [] })),
    ] {
        cluster.plane.client().apply(&isolated)?;
        for pod in ["web-1", "web-3"] {
            for ip in cluster.lab.pod(pod)?.addresses().both() {
                told(visitor, ip, 8080, 53).with_context(|| format!("{pod} under {isolated}"))?;
            }
        }
        // Also by the cluster IP, whichever pod of whichever node it leads to.
        for ip in cluster.cluster_ips("web")? {
            (0..4)
                .try_for_each(|_| told(visitor, ip, 80, 53))
                .with_context(|| format!("{ip} under {isolated}"))?;
        }
        if isolated["spec"]["ingress"].is_array() {
            for ip in cluster.lab.node("node1")?.addresses().both() {
                told(cluster.lab.far_client(), ip, WEB, WEB_UDP)?;
            }
        }
        cluster.plane.client().delete(&ObjectRef::of(&isolated)?)?;
        reach(&cluster, true)?;
    }
    Ok(())
}

/// Expects "administratively prohibited" by both protocols: it must differ from a port that nobody
/// listens on. For TCP the second SYN may be the one that is answered: see
/// [`xtask::lab::probe::is_refused`].
fn told(from: &Namespace, ip: IpAddr, tcp: u16, udp: u16) -> Result<()> {
    let wanted = if ip.is_ipv4() {
        ErrorKind::HostUnreachable
    } else {
        ErrorKind::PermissionDenied
    };
    wait_for("to be told", IN_FORCE, || {
        from.run(|| {
            let tcp = TcpStream::connect_timeout(&SocketAddr::new(ip, tcp), PATIENCE * 3)
                .map_err(|error| error.kind());
            let udp = datagram(SocketAddr::new(ip, udp), 100).map_err(|error| error.kind());
            Ok((tcp.err() == Some(wanted) && udp.err() == Some(wanted)).then_some(()))
        })
    })
}

/// Sends so many bytes and gives the number that came back.
fn datagram(to: SocketAddr, len: usize) -> io::Result<usize> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&vec![b'x'; len])?;
    socket.recv(&mut [0; LARGE])
}

/// A policy for the pods of an app, isolated in the directions that it has rules for.
fn policy(app: &str, rules: &Value) -> Value {
    let directions = [("ingress", "Ingress"), ("egress", "Egress")];
    let types: Vec<_> = directions
        .iter()
        .filter(|(rule, _)| rules[rule].is_array())
        .map(|(_, direction)| direction)
        .collect();
    let mut spec =
        json!({ "podSelector": { "matchLabels": { "app": app } }, "policyTypes": types });
    for (rule, _) in directions.iter().filter(|(rule, _)| rules[rule].is_array()) {
        spec[rule] = rules[rule].clone();
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "isolated", "namespace": "default" },
        "spec": spec,
    })
}

fn web() -> Value {
    json!([{ "podSelector": { "matchLabels": { "app": "web" } } }])
}

fn far() -> Value {
    let blocks =
        FAR_CLIENT.both().map(|ip| json!({ "ipBlock": { "cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }) } }));
    json!(blocks)
}
