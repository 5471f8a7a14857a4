//! Direct server return: pods of other nodes than the asked one see the client and answer him
//! themselves.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::wait_for;
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::probe::{Kind, PATIENCE};
use xtask::lab::sctp;
use xtask::lab::topology::{FAR_CLIENT, Join, ROUTER, Wiring};
use xtask::lab::wire::switch_port;

use crate::cluster::{Cluster, IN_FORCE, WEB, WEB_ECHO, WEB_UDP, ask, of_web};
use crate::reach::{Elsewhere, everything};

const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// The nodePorts of a Service with an annotation of its forwarding mode.
const SAYS: u16 = 30071;
/// SCTP in the pods, and its nodePort.
const SCTP: u16 = 9899;
const SCTP_NODE_PORT: u16 = 30072;
/// MTU of a path between two nodes.
const NARROW: usize = 1400;
/// Size of an upload, in bytes.
const BODY: usize = 3_000_000;

#[test]
fn dsr_over_point_to_point_links() -> Result<()> {
    pods_see_the_client(Wiring::PointToPoint, Join::Routes, &[])
}

#[test]
fn dsr_beside_xdp() -> Result<()> {
    pods_see_the_client(Wiring::Bridge, Join::Routes, &["--xdp", "native"])
}

#[test]
fn dsr_over_a_tunnel() -> Result<()> {
    pods_see_the_client(Wiring::Bridge, Join::Vxlan, &[])
}

fn pods_see_the_client(wiring: Wiring, join: Join, more: &[&str]) -> Result<()> {
    let arguments = [&["--forwarding", "dsr"], more].concat();
    let cluster = Cluster::start_with(wiring, join, &arguments, |lab| lab.let_xdp_send())?;
    everything(&cluster, Elsewhere::Client)?;
    let node3 = cluster.lab.node("node3")?;
    let [sent, translated] = cluster.events(node3, ["encapsulated", "error_translated"])?;
    ensure!(
        sent > 1000 && translated == 0,
        "node3 has encapsulated {sent} packets, and translated {translated} errors"
    );
    for node in ["node1", "node2"] {
        let [met] = cluster.events(cluster.lab.node(node)?, ["decapsulated"])?;
        ensure!(met > 100, "{node} has met {met} packets of node3");
    }
    uploads(&cluster, node3)?;
    as_the_agent_tells(&cluster, node3)?;
    a_service_says(&cluster)?;
    by_sctp(&cluster)?;
    an_ip_block_sees_the_client(&cluster)
}

/// Uploads that fill the way to the pod, which encapsulation narrows: a sender of larger packets
/// gets an error.
fn uploads(cluster: &Cluster, node: &Node) -> Result<()> {
    for ip in node.addresses().both() {
        for client in [cluster.lab.far_client(), cluster.lab.near_client()] {
            for _ in 0..4 {
                client
                    .run(|| upload(SocketAddr::new(ip, WEB_ECHO)))
                    .with_context(|| format!("{} by {ip}", client.name()))?;
            }
        }
    }
    Ok(())
}

/// Sends [`BODY`] bytes and receives them back.
fn upload(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut who = [0];
    while who != *b"\n" {
        stream.read_exact(&mut who).context("hear who it is")?;
    }
    let sent: Vec<u8> = (0..BODY).map(|at| (at % 251) as u8).collect();
    let (mut writer, mut back) = (stream.try_clone()?, vec![0; BODY]);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.write_all(&sent));
        stream.read_exact(&mut back).context("hear it back")?;
        writing
            .join()
            .expect("writing does not panic")
            .context("send")
    })?;
    ensure!(back == sent, "what came back differs");
    Ok(())
}

/// `portway flows` names the way, `portway services` what was chosen.
fn as_the_agent_tells(cluster: &Cluster, node: &Node) -> Result<()> {
    let told = |what: &str| {
        let arguments = [
            what,
            "--output",
            "json",
            "--state-dir",
            &node.state_dir().to_string_lossy(),
        ]
        .map(str::to_owned);
        let text = node
            .ns()
            .output(Command::new(&cluster.lab.tools().portway).args(arguments))?;
        serde_json::from_str::<Value>(&text).with_context(|| format!("read {text}"))
    };
    let flows = told("flows")?;
    let flows = flows.as_array().context("a list")?;
    let encapsulated = flows.iter().filter(|flow| {
        flow["way"]
            .as_str()
            .is_some_and(|way| way.starts_with("encapsulated via"))
    });
    ensure!(
        encapsulated.count() > 10,
        "flows of {}: {flows:?}",
        node.name()
    );
    let services = told("services")?;
    let web = services
        .as_array()
        .into_iter()
        .flatten()
        .find(|service| service["service"] == "default/web:http");
    ensure!(
        web.context("the Service")?["frontends"][0]["forwarding"] == "dsr",
        "{services}"
    );
    Ok(())
}

/// The annotation has the last word.
fn a_service_says(cluster: &Cluster) -> Result<()> {
    for (forwarding, kept) in [("masquerade", false), ("dsr", true)] {
        let port = json!({ "port": 80, "targetPort": "http", "nodePort": SAYS });
        cluster.plane.client().apply(&of_web(
            "says",
            json!({ "portway.dev/forwarding": forwarding }),
            port,
        ))?;
        for ip in cluster.lab.node("node3")?.addresses().both() {
            let address = if ip.is_ipv4() {
                FAR_CLIENT.v4.into()
            } else {
                IpAddr::from(FAR_CLIENT.v6)
            };
            wait_for("the annotation", IN_FORCE, || {
                let answers = cluster
                    .lab
                    .far_client()
                    .run(|| Ok(xtask::lab::probe::answers(Kind::Http, (ip, SAYS).into(), 6)))?;
                let facts: Vec<_> = answers
                    .iter()
                    .filter_map(|answer| answer.served())
                    .collect();
                Ok((facts.len() == 6
                    && facts
                        .iter()
                        .all(|facts| (facts.client_ip() == address) == kept))
                .then_some(()))
            })
            .with_context(|| format!("{forwarding} at {ip}"))?;
        }
    }
    Ok(())
}

fn by_sctp(cluster: &Cluster) -> Result<()> {
    PODS.iter().try_for_each(|name| {
        cluster
            .lab
            .pod(name)
            .map(|pod| sctp::start(pod.name(), pod.ns(), SCTP))
    })?;
    let port =
        json!({ "protocol": "SCTP", "port": 80, "targetPort": SCTP, "nodePort": SCTP_NODE_PORT });
    cluster
        .plane
        .client()
        .apply(&of_web("sctp", json!({}), port))?;
    for ip in cluster.lab.node("node3")?.addresses().both() {
        let to = SocketAddr::new(ip, SCTP_NODE_PORT);
        let client = cluster.lab.far_client();
        let served = |port| {
            client
                .run(|| Ok(sctp::associate(port, to, &[200])?))
                .is_ok()
        };
        wait_for("the Service", IN_FORCE, || {
            Ok((50000..50012).all(served).then_some(()))
        })
        .with_context(|| format!("ask {to}"))?;
        for port in 40000..40012 {
            let facts = client
                .run(|| Ok(sctp::associate(port, to, &[8, 1001])?))
                .with_context(|| format!("{port} to {to}"))?;
            ensure!(
                facts.client.port() == port && FAR_CLIENT.both().contains(&facts.client_ip()),
                "{facts}"
            );
        }
    }
    Ok(())
}

/// P16: whoever is allowed by his address is let in by way of every node, and nobody else is.
fn an_ip_block_sees_the_client(cluster: &Cluster) -> Result<()> {
    let block = |ip: IpAddr| json!({ "ipBlock": { "cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }) } });
    cluster.plane.client().apply(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "far-client", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": FAR_CLIENT.both().map(block) }],
        },
    }))?;
    let (far, near) = (cluster.lab.far_client(), cluster.lab.near_client());
    for ip in cluster
        .lab
        .nodes()
        .iter()
        .flat_map(|node| node.addresses().both())
    {
        wait_for("near client to be denied", IN_FORCE, || {
            Ok((ask(near, Kind::Udp, ip, WEB_UDP, 5)?.served() == 0).then_some(()))
        })
        .with_context(|| format!("near client by {ip}"))?;
        let tally = ask(far, Kind::Http, ip, WEB, 20)?;
        ensure!(
            tally.served() == 20 && tally.pods() == PODS,
            "far client by {ip}: {tally}"
        );
    }
    Ok(())
}

/// The asked node merges what it receives, and cuts what it has encapsulated again: the pieces
/// arrive as what they are, for nobody merges them there.
#[test]
fn dsr_of_merged_segments_that_are_cut_again() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--forwarding", "dsr"],
        |_| Ok(()),
    )?;
    let lab = &cluster.lab;
    let node3 = lab.node("node3")?;
    let hosts = [
        (lab.far_client(), "eth0"),
        (lab.router(), "eth0"),
        (lab.router(), "eth1"),
        (node3.ns(), "eth0"),
    ];
    hosts
        .into_iter()
        .try_for_each(|(ns, device)| ns.switch_checksum_offload_off(device))?;
    (2..2 + lab.nodes().len())
        .map(switch_port)
        .try_for_each(|port| lab.lan().switch_checksum_offload_off(&port))?;
    lab.nodes()
        .iter()
        .try_for_each(|node| node.ns().merge_received("eth0", node.name() == "node3"))?;
    let counts = || -> Result<[u64; 3]> {
        let [sent] = cluster.events(node3, ["encapsulated"])?;
        let others = [lab.node("node1")?, lab.node("node2")?];
        let met = others
            .map(|node| cluster.event(node, "decapsulated"))
            .into_iter()
            .sum::<Result<u64>>()?;
        let lost = others
            .map(|node| cluster.metric(node, "portway_drops", "not_served_here"))
            .into_iter()
            .sum::<Result<u64>>()?;
        Ok([sent, met, lost])
    };
    for ip in node3.addresses().both() {
        let before = counts()?;
        lab.far_client()
            .run(|| (0..4).try_for_each(|_| upload(SocketAddr::new(ip, WEB_ECHO))))
            .with_context(|| format!("by {ip}"))?;
        let after = counts()?;
        let [sent, met, lost] = [0, 1, 2].map(|at| after[at] - before[at]);
        println!("by {ip}: {sent} packets encapsulated, {met} taken out, {lost} dropped");
        ensure!(
            met > 2 * sent,
            "{sent} packets came to {met}: nothing was merged, or nothing cut"
        );
        ensure!(lost == 0, "{lost} of {met} pieces were dropped");
    }
    Ok(())
}

/// A router between two nodes has a smaller MTU than their devices: its error about the
/// encapsulating packet reaches the client as one about his own.
#[test]
fn dsr_through_a_narrow_path_between_nodes() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--forwarding", "dsr"],
        |_| Ok(()),
    )?;
    let lab = &cluster.lab;
    let (node3, router) = (lab.node("node3")?, lab.router());
    redirects_off(router)?;
    for name in PODS {
        let owner = lab
            .nodes()
            .iter()
            .find(|node| node.pods().iter().any(|pod| pod.name() == name))
            .context("its node")?;
        for (index, ip) in lab.pod(name)?.addresses().both().into_iter().enumerate() {
            let len = if ip.is_ipv4() { 32 } else { 128 };
            let (by, via) = (ROUTER.both()[index], owner.addresses().both()[index]);
            node3.ns().ip(&format!("route add {ip}/{len} via {by}\n"))?;
            router.ip(&format!(
                "route add {ip}/{len} via {via} mtu lock {NARROW}\n"
            ))?;
        }
    }
    for ip in node3.addresses().both() {
        for client in [lab.far_client(), lab.near_client()] {
            for _ in 0..4 {
                client
                    .run(|| upload(SocketAddr::new(ip, WEB_ECHO)))
                    .with_context(|| format!("{} by {ip}", client.name()))?;
            }
            let learnt =
                client.output(Command::new("ip").args(["route", "get", &ip.to_string()]))?;
            let owed = format!("mtu {}", NARROW - if ip.is_ipv4() { 20 } else { 40 });
            ensure!(
                learnt.contains(&owed),
                "{} learnt of the path to {ip}: {learnt}",
                client.name()
            );
        }
    }
    Ok(())
}

/// Switches off ICMP redirects to the hosts of one LAN.
fn redirects_off(router: &Namespace) -> Result<()> {
    router
        .output(Command::new("sysctl").args([
            "-w",
            "net.ipv4.conf.all.send_redirects=0",
            "net.ipv4.conf.eth0.send_redirects=0",
        ]))
        .map(drop)
}
