//! Destinations that must be reachable, from outside and from pods, with any wiring, join and
//! hooks.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Kind};
use xtask::lab::topology::{FAR_CLIENT, Family, Join, NEAR_CLIENT, Wiring};

use crate::cluster::{Cluster, HOST, WEB, WEB_UDP, ask};

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The client address that pods of other nodes than the asked one see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// The asked node.
    Node,
    /// The client.
    Client,
}

/// All rows of what must work from outside and from pods.
pub fn everything_is_reached(cluster: &Cluster) -> Result<()> {
    everything(cluster, Elsewhere::Node)
}

/// Reaches everything; `elsewhere` is the client address that pods of other nodes must see.
pub fn everything(cluster: &Cluster, elsewhere: Elsewhere) -> Result<()> {
    for node in cluster.lab.nodes() {
        for ip in node.addresses().both() {
            from_outside(cluster, node, ip, elsewhere)?;
        }
    }
    for from in ["web-1", "web-3", "visitor"] {
        from_a_pod(cluster, from)?;
    }
    bulk(cluster)?;
    for node in cluster.lab.nodes() {
        ensure!(
            cluster.event(node, "fallback")? == 0,
            "{}: packets of redirectable flows went through the stack",
            node.name()
        );
        ensure!(
            cluster.event(node, "forwarded")? > 0,
            "{}: nothing was counted",
            node.name()
        );
    }
    Ok(())
}

/// V9: a pod of the asked node sees the client, a process elsewhere sees the asked node, and a pod
/// elsewhere one of both; TCP and UDP, both clients.
fn from_outside(cluster: &Cluster, node: &Node, ip: IpAddr, elsewhere: Elsewhere) -> Result<()> {
    let here: Vec<&str> = node.pods().iter().map(|pod| pod.name()).collect();
    for (client, address) in [
        (cluster.lab.near_client(), NEAR_CLIENT),
        (cluster.lab.far_client(), FAR_CLIENT),
    ] {
        let address = address.of(family(ip));
        for (kind, port) in [(Kind::Http, WEB), (Kind::Udp, WEB_UDP), (Kind::Http, HOST)] {
            client.run(|| {
                for _ in 0..12 {
                    let answer = probe::ask(kind, SocketAddr::new(ip, port));
                    let facts = answer.served().with_context(|| {
                        format!("{} asks {ip} {kind:?} {port}: {answer}", client.name())
                    })?;
                    let kept = here.contains(&facts.pod.as_str())
                        || port != HOST && elsewhere == Elsewhere::Client;
                    ensure!(
                        (facts.client_ip() == address) == kept,
                        "by way of {}: {facts}, client {address}",
                        node.name()
                    );
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
                    let facts = answer
                        .served()
                        .with_context(|| format!("{name} asks {ip} {kind:?}: {answer}"))?;
                    let expected = if facts.pod == name { ip } else { own };
                    ensure!(
                        facts.client_ip() == expected,
                        "{name} asks {ip}: {facts} instead of {expected}"
                    );
                }
                Ok(())
            })?;
        }
    }
    for ip in cluster.cluster_ips("host")? {
        let tally = ask(pod.ns(), Kind::Http, ip, 80, 5)?;
        ensure!(
            tally.by_pod.get("host-1") == Some(&5),
            "{name} asks for host-1 at {ip}: {tally:?}"
        );
    }
    Ok(())
}

/// Segments and acknowledgements in both directions, with the offloads that the devices have;
/// datagrams of several fragments.
fn bulk(cluster: &Cluster) -> Result<()> {
    for ip in cluster
        .lab
        .node("node3")?
        .addresses()
        .both()
        .into_iter()
        .chain(cluster.lab.node("node1")?.addresses().both())
    {
        cluster.lab.far_client().run(|| {
            for _ in 0..4 {
                let bytes = probe::Session::open(SocketAddr::new(ip, WEB))?
                    .get("/bytes/3000000")
                    .context("fetch 3 MB")?;
                ensure!(
                    bytes.len() == 3_000_000,
                    "{} bytes instead of 3 MB by way of {ip}",
                    bytes.len()
                );
            }
            Ok(())
        })?;
        let tally = cluster.far(Kind::LargeUdp, ip, WEB_UDP, 12)?;
        ensure!(
            tally.served() == 12,
            "datagrams of several fragments by way of {ip}: {tally}"
        );
    }
    Ok(())
}

#[test]
fn point_to_point_over_routes() -> Result<()> {
    everything_is_reached(&Cluster::start(Wiring::PointToPoint, Join::Routes)?)
}

#[test]
fn bridge_over_routes() -> Result<()> {
    everything_is_reached(&Cluster::start(Wiring::Bridge, Join::Routes)?)
}

#[test]
fn point_to_point_over_vxlan() -> Result<()> {
    everything_is_reached(&Cluster::start(Wiring::PointToPoint, Join::Vxlan)?)
}

#[test]
fn bridge_over_vxlan() -> Result<()> {
    everything_is_reached(&Cluster::start(Wiring::Bridge, Join::Vxlan)?)
}
