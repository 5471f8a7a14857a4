//! V21 without hooks of sockets: processes of nodes reach Services by packets, through a pair of
//! devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::node::Node;
use xtask::lab::probe::Kind;
use xtask::lab::sctp;
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, HOST, IN_FORCE, WEB as WEB_PORT, WEB_ECHO, WEB_UDP, of_web};

const SCTP: u16 = 9899;
const SCTP_NODE_PORT: u16 = 30132;
/// A nodePort of a Service that has no pods.
const NOBODY: u16 = 30099;
/// Addresses that the web Service has besides, and no device anywhere.
const ELSEWHERE: [&str; 2] = ["203.0.113.200", "2001:db8:ffff::200"];
const WEB: [&str; 3] = ["web-1", "web-2", "web-3"];

#[test]
fn processes_by_packets_over_point_to_point_links() -> Result<()> {
    by_packets(Wiring::PointToPoint, Join::Routes)
}

#[test]
fn processes_by_packets_over_a_bridge_and_a_tunnel() -> Result<()> {
    by_packets(Wiring::Bridge, Join::Vxlan)
}

fn by_packets(wiring: Wiring, join: Join) -> Result<()> {
    let mut cluster = Cluster::start_with(wiring, join, &["--cgroup", "off"], |_| Ok(()))?;
    WEB.iter().try_for_each(|name| {
        cluster
            .lab
            .pod(name)
            .map(|pod| sctp::start(pod.name(), pod.ns(), SCTP))
    })?;
    let client = cluster.plane.client();
    let port =
        json!({ "protocol": "SCTP", "port": 80, "targetPort": SCTP, "nodePort": SCTP_NODE_PORT });
    client.apply(&of_web("sctp", json!({}), port))?;
    client.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "nobody", "namespace": "default" },
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": "nobody" },
            "ports": [{ "protocol": "UDP", "port": 53, "nodePort": NOBODY }],
        },
    }))?;
    client.patch(
        &ObjectRef::namespaced("v1", "Service", "default", "web"),
        &json!({ "spec": { "externalIPs": ELSEWHERE } }),
    )?;
    for node in cluster.lab.nodes() {
        everything_is_reached(&cluster, node)?;
        own_node_ports_are_reached(node)?;
        addresses_that_are_elsewhere_are_reached(node, &WEB)?;
        whoever_listens_is_heard(node)?;
        filters_let_answers_in(&cluster, node)?;
    }
    // P18: whoever is isolated lets its own node in.
    client.apply(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "nobody", "namespace": "default" },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"] },
    }))?;
    let own = [
        ("node1", ["web-1", "web-2"].as_slice()),
        ("node2", &["web-3"]),
    ];
    for (node, pods) in own {
        let node = cluster.lab.node(node)?;
        for ip in cluster.cluster_ips("web")? {
            wait_for("own pods only", IN_FORCE, || {
                Ok((node
                    .survey_as_process(Kind::TcpEcho, (ip, 7).into(), 20)?
                    .pods()
                    == pods)
                    .then_some(()))
            })
            .with_context(|| format!("a process of {} asks {ip}", node.name()))?;
        }
    }
    nothing_stays(&mut cluster)
}

/// By TCP, UDP, long responses, fragments and SCTP; pods here and elsewhere, and a process of the
/// third node, by itself too.
fn everything_is_reached(cluster: &Cluster, node: &Node) -> Result<()> {
    for ip in cluster.cluster_ips("web")? {
        for (kind, port) in [
            (Kind::Http, 80),
            (Kind::Bulk, 80),
            (Kind::Udp, 53),
            (Kind::LargeUdp, 53),
            (Kind::TcpEcho, 7),
        ] {
            all_pods_serve(node, kind, (ip, port).into(), &WEB)?;
        }
        let tally = node.survey_as_process(Kind::Udp, (ip, 54).into(), 2)?;
        ensure!(
            tally.refused == 2,
            "a port that the Service does not have: {tally}"
        );
    }
    for ip in cluster.cluster_ips("host")? {
        let tally = node.survey_as_process(Kind::Http, (ip, 80).into(), 12)?;
        ensure!(
            tally.served() == 12,
            "a process of {} asks {ip}, and so host-1: {tally}",
            node.name()
        );
    }
    let by_node = node
        .addresses()
        .both()
        .into_iter()
        .map(|ip| SocketAddr::new(ip, SCTP_NODE_PORT));
    for addr in cluster
        .cluster_ips("sctp")?
        .into_iter()
        .map(|ip| SocketAddr::new(ip, 80))
        .chain(by_node)
    {
        let served = |port| {
            node.ns()
                .run(|| Ok(sctp::associate(port, addr, &[200, 1000])?))
                .is_ok()
        };
        wait_for("SCTP", IN_FORCE, || {
            Ok((40000..40012).all(served).then_some(()))
        })
        .with_context(|| format!("a process of {} asks {addr}", node.name()))?;
    }
    Ok(())
}

/// By the node's own addresses and by loopback; where nobody serves they are refused.
fn own_node_ports_are_reached(node: &Node) -> Result<()> {
    let loopback = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for ip in node.addresses().both().into_iter().chain(loopback) {
        for (kind, port) in [
            (Kind::Http, WEB_PORT),
            (Kind::Bulk, WEB_PORT),
            (Kind::Udp, WEB_UDP),
            (Kind::LargeUdp, WEB_UDP),
            (Kind::TcpEcho, WEB_ECHO),
        ] {
            all_pods_serve(node, kind, (ip, port).into(), &WEB)?;
        }
        let tally = node.survey_as_process(Kind::Http, (ip, HOST).into(), 12)?;
        ensure!(
            tally.served() == 12,
            "a process of {} asks {ip}, and so host-1: {tally}",
            node.name()
        );
        let tally = node.survey_as_process(Kind::Udp, (ip, NOBODY).into(), 2)?;
        ensure!(
            tally.refused == 2,
            "a process of {} asks {ip} where nobody serves: {tally}",
            node.name()
        );
    }
    Ok(())
}

fn addresses_that_are_elsewhere_are_reached(node: &Node, pods: &[&str]) -> Result<()> {
    for ip in ELSEWHERE {
        let ip: IpAddr = ip.parse().context("read an address")?;
        for (kind, port) in [
            (Kind::Http, 80),
            (Kind::Bulk, 80),
            (Kind::Udp, 53),
            (Kind::LargeUdp, 53),
            (Kind::TcpEcho, 7),
        ] {
            all_pods_serve(node, kind, (ip, port).into(), pods)?;
        }
    }
    Ok(())
}

fn all_pods_serve(node: &Node, kind: Kind, addr: SocketAddr, pods: &[&str]) -> Result<()> {
    let mut last = None;
    let all = wait_for("all pods", IN_FORCE, || {
        let tally = node.survey_as_process(kind, addr, 24)?;
        let whole = tally.pods() == pods && tally.unserved() == 0;
        last = Some(tally);
        Ok(whole.then_some(()))
    });
    all.with_context(|| {
        format!(
            "a process of {} asks {addr} {kind:?}: {last:?}",
            node.name()
        )
    })
}

/// V21: a nodePort hides nobody who listens on loopback.
fn whoever_listens_is_heard(node: &Node) -> Result<()> {
    node.ns().run(|| {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let listener = TcpListener::bind((ip, WEB_ECHO))?;
            let asked = TcpStream::connect((ip, WEB_ECHO))?;
            ensure!(
                listener.accept()?.1 == asked.local_addr()?,
                "somebody else has asked"
            );
        }
        Ok(())
    })
}

/// Reverse-path filters, as distributions set them (2) and as careful operators do (1).
fn filters_let_answers_in(cluster: &Cluster, node: &Node) -> Result<()> {
    let filter = |mode: &'static str| {
        node.ns().run(move || {
            Ok(std::fs::write(
                "/proc/sys/net/ipv4/conf/all/rp_filter",
                mode,
            )?)
        })
    };
    filter("2")?;
    addresses_that_are_elsewhere_are_reached(node, &WEB)?;
    filter("1")?;
    own_node_ports_are_reached(node)?;
    for ip in cluster.cluster_ips("web")? {
        all_pods_serve(node, Kind::Http, (ip, 80).into(), &WEB)?;
    }
    filter("0")
}

fn of_loopback(setting: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/lo/{setting}"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The devices go with the rest, and what loopback lets in is as it was.
fn nothing_stays(cluster: &mut Cluster) -> Result<()> {
    cluster.agents.clear();
    for node in cluster.lab.nodes() {
        let devices = || {
            node.ns()
                .output(Command::new("ip").args(["-o", "link", "show"]))
        };
        ensure!(
            devices()?.contains("portway0"),
            "an agent that ends leaves its devices: {}",
            devices()?
        );
        let unload =
            ["unload", "--state-dir", &node.state_dir().to_string_lossy()].map(str::to_owned);
        node.ns()
            .output(Command::new(&cluster.lab.tools().portway).args(unload))?;
        ensure!(!devices()?.contains("portway0"), "left: {}", devices()?);
        let settings = || {
            node.ns()
                .run(|| Ok(["accept_local", "route_localnet"].map(of_loopback)))
        };
        ensure!(
            settings()?.iter().all(|value| value == "0"),
            "what loopback lets in stays: {:?}",
            settings()?
        );
    }
    Ok(())
}
