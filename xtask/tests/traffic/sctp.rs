//! SCTP by crafted packets, for this kernel may have none: associations live through all their
//! chunks by every frontend, and tshark finds all checksums right where they arrive.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::lab::capture::{Capture, Direction};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::netns::Namespace;
use xtask::lab::sctp::{self, DATA_HEADER, associate};
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, IN_FORCE};

const PORT: u16 = 9999;
const NODE_PORT: u16 = 30412;
/// The external IPs and load balancer IPs, which the router sends to node1.
const EXTERNAL: [&str; 2] = ["203.0.113.50", "2001:db8:0:50::1"];
const BALANCED: [&str; 2] = ["203.0.113.51", "2001:db8:0:51::1"];
const WEB: [&str; 3] = ["web-1", "web-2", "web-3"];

#[test]
fn sctp_by_tc() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--xdp", "off"],
        |_| Ok(()),
    )?;
    associations(&cluster)
}

#[test]
fn sctp_by_xdp() -> Result<()> {
    let cluster = Cluster::start_with(Wiring::Bridge, Join::Routes, &["--xdp", "native"], |lab| {
        lab.let_xdp_send()
    })?;
    associations(&cluster)?;
    let node = cluster.lab.node("node3")?;
    let [early, all] = cluster.events(node, ["forwarded_early", "forwarded"])?;
    // The control plane is asked through it, too, but most is ours.
    ensure!(early * 2 > all, "XDP forwarded {early} of {all} packets");
    Ok(())
}

fn associations(cluster: &Cluster) -> Result<()> {
    let lab = &cluster.lab;
    WEB.iter().try_for_each(|name| {
        lab.pod(name)
            .map(|pod| sctp::start(pod.name(), pod.ns(), PORT))
    })?;
    apply(cluster)?;
    let ways = ways(cluster)?;
    for (from, addr) in &ways {
        let served = |port| from.run(|| Ok(associate(port, *addr, &[200])?)).is_ok();
        wait_for("the Service", IN_FORCE, || {
            Ok((50000..50012).all(served).then_some(()))
        })
        .with_context(|| format!("ask {addr}"))?;
    }
    let mut captures = Vec::new();
    for ns in [
        lab.far_client(),
        lab.pod("visitor")?.ns(),
        lab.pod("web-1")?.ns(),
        lab.pod("web-3")?.ns(),
    ] {
        captures.push((
            ns.name(),
            Capture::start(ns, "eth0", Direction::In, lab.directory())?,
        ));
    }
    for (from, addr) in &ways {
        let header = if addr.is_ipv4() { 20 } else { 40 };
        let sizes = [8, 9, 1001, 1500 - header - 12 - DATA_HEADER];
        let mut seen = BTreeSet::new();
        // Of 60 ports none chooses one of three pods in one of ten billion runs; from the first
        // ones what is over is opened anew (V17).
        for port in (40000..40060).chain(40000..40012) {
            let facts = from
                .run(|| Ok(associate(port, *addr, &sizes)?))
                .with_context(|| format!("from {port} to {addr}"))?;
            seen.insert(facts.pod);
        }
        ensure!(seen.iter().map(String::as_str).eq(WEB), "{addr}: {seen:?}");
    }
    captures
        .into_iter()
        .try_for_each(|(name, capture)| judge(name, &capture.sctp()?))
}

/// The Service, with every kind of frontend, and the router's ways to them.
fn apply(cluster: &Cluster) -> Result<()> {
    let (lab, client) = (&cluster.lab, cluster.plane.client());
    client.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "sctp", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": EXTERNAL,
            "selector": { "app": "web" },
            "ports": [{ "protocol": "SCTP", "port": 36412, "targetPort": PORT, "nodePort": NODE_PORT }],
        },
    }))?;
    let ingress: Vec<_> = BALANCED.iter().map(|ip| json!({ "ip": ip })).collect();
    let service = ObjectRef::namespaced("v1", "Service", "default", "sctp");
    client.patch_status(&service, &json!({ "loadBalancer": { "ingress": ingress } }))?;
    let by = lab.node("node1")?.addresses().both();
    for ip in EXTERNAL.iter().chain(&BALANCED) {
        let (len, via) = if ip.contains(':') {
            (128, by[1])
        } else {
            (32, by[0])
        };
        lab.router()
            .ip(&format!("route add {ip}/{len} via {via}\n"))?;
    }
    Ok(())
}

/// Returns pairs of a client and a frontend.
fn ways(cluster: &Cluster) -> Result<Vec<(&Namespace, SocketAddr)>> {
    let lab = &cluster.lab;
    let mut ways = Vec::new();
    for node in lab.nodes() {
        ways.extend(
            node.addresses()
                .both()
                .map(|ip| (lab.far_client(), SocketAddr::new(ip, NODE_PORT))),
        );
    }
    for ip in EXTERNAL.iter().chain(&BALANCED) {
        ways.push((
            lab.far_client(),
            SocketAddr::new(ip.parse().context("read an address")?, 36412),
        ));
    }
    for ip in cluster.cluster_ips("sctp")? {
        ways.push((lab.pod("visitor")?.ns(), SocketAddr::new(ip, 36412)));
    }
    Ok(ways)
}

/// All checksums are right, and all chunks of an association's life are among what arrives.
fn judge(name: &str, packets: &[(u8, bool)]) -> Result<()> {
    let wrong = packets.iter().filter(|(_, right)| !right).count();
    let kinds: BTreeSet<u8> = packets.iter().map(|(kind, _)| *kind).collect();
    println!(
        "{name}: {} packets, {wrong} of them wrong, of chunks {kinds:?}",
        packets.len()
    );
    ensure!(
        wrong == 0,
        "{name}: {wrong} of {} packets have a wrong checksum",
        packets.len()
    );
    let asks = name.ends_with("client") || name.ends_with("visitor");
    let expected: &[u8] = if asks {
        &[0, 2, 3, 5, 8, 11]
    } else {
        &[0, 1, 3, 4, 7, 10, 14]
    };
    ensure!(
        kinds.iter().eq(expected),
        "{name}: chunks {kinds:?} instead of {expected:?}"
    );
    Ok(())
}
