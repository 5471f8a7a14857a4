//! A node's firewall for forwarded packets: `--host-firewall respect` leads translated packets
//! through it, `bypass` past it.

use std::process::Command;

use anyhow::{Result, ensure};
use xtask::lab::Lab;
use xtask::lab::node::Node;
use xtask::lab::probe::Kind;
use xtask::lab::topology::{Join, NEAR_CLIENT, Wiring};

use crate::cluster::{Cluster, WEB, WEB_UDP, ask};
use crate::reach::everything_is_reached;

/// Forwarded packets from the near client are dropped, whatever they were before their translation.
fn refuse_the_near_client(lab: &mut Lab) -> Result<()> {
    for node in lab.nodes() {
        nft(node, "add table inet edge")?;
        nft(
            node,
            "add chain inet edge guard { type filter hook forward priority 0 ; policy accept ; }",
        )?;
        nft(
            node,
            &format!("add rule inet edge guard ip saddr {} drop", NEAR_CLIENT.v4),
        )?;
        nft(
            node,
            &format!("add rule inet edge guard ip6 saddr {} drop", NEAR_CLIENT.v6),
        )?;
    }
    Ok(())
}

fn nft(node: &Node, command: &str) -> Result<()> {
    node.ns().output(Command::new("nft").arg(command)).map(drop)
}

/// Returns the number of the near client's requests that are served, by way of each node and
/// family.
fn served(cluster: &Cluster) -> Result<Vec<usize>> {
    let ways = cluster
        .lab
        .nodes()
        .iter()
        .flat_map(|node| node.addresses().both());
    let both = ways.flat_map(|ip| [(Kind::Http, ip, WEB), (Kind::Udp, ip, WEB_UDP)]);
    both.map(|(kind, ip, port)| Ok(ask(cluster.lab.near_client(), kind, ip, port, 4)?.served()))
        .collect()
}

#[test]
fn respected_it_drops_what_it_would_and_lets_all_else_through() -> Result<()> {
    respected(Wiring::PointToPoint, Join::Routes)
}

#[test]
fn respected_before_bridges_and_beside_a_tunnel() -> Result<()> {
    respected(Wiring::Bridge, Join::Vxlan)
}

fn respected(wiring: Wiring, join: Join) -> Result<()> {
    let cluster = Cluster::start_with(
        wiring,
        join,
        &["--host-firewall", "respect"],
        refuse_the_near_client,
    )?;
    let served = served(&cluster)?;
    ensure!(
        served.iter().all(|served| *served == 0),
        "the near client was served: {served:?}"
    );
    for node in cluster.lab.nodes() {
        nft(node, "flush chain inet edge guard")?;
    }
    everything_is_reached(&cluster)
}

#[test]
fn bypassed_it_does_not_meet_redirected_packets() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &[],
        refuse_the_near_client,
    )?;
    let served = served(&cluster)?;
    ensure!(
        served.iter().all(|served| *served == 4),
        "the near client was not served: {served:?}"
    );
    everything_is_reached(&cluster)
}
