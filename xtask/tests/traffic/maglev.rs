//! Maglev: all nodes choose alike, and a backend that leaves takes little along.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::lab::controlplane::wait_for;
use xtask::lab::probe::{self, Kind};
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, IN_FORCE, of_web};

/// The nodePort of the web pods' UDP echo, by the table.
const BY_TABLE: u16 = 30071;
/// A nodePort that chooses by each node's own hash.
const BY_HASH: u16 = 30072;
/// The ports that the client asks from.
const FROM: std::ops::Range<u16> = 20000..20120;

#[test]
fn with_maglev_nodes_choose_alike_and_few_choices_change() -> Result<()> {
    let cluster = Cluster::start_with(
        Wiring::PointToPoint,
        Join::Routes,
        &["--algorithm", "maglev"],
        |_| Ok(()),
    )?;
    let udp = |node_port: u16| json!({ "protocol": "UDP", "port": 53, "targetPort": "names", "nodePort": node_port });
    cluster
        .plane
        .client()
        .apply(&of_web("by-table", json!({}), udp(BY_TABLE)))?;
    cluster.plane.client().apply(&of_web(
        "by-hash",
        json!({ "portway.dev/algorithm": "random" }),
        udp(BY_HASH),
    ))?;
    let mut nodes = Vec::new();
    for node in cluster.lab.nodes() {
        nodes.push(node.addresses().both());
    }
    let [first, second, third] = nodes[..] else {
        anyhow::bail!("three nodes")
    };
    for ip in [first, second, third].concat() {
        for port in [BY_TABLE, BY_HASH] {
            wait_for("the Service", IN_FORCE, || {
                Ok((cluster.far(Kind::Udp, ip, port, 20)?.pods().len() == 3).then_some(()))
            })
            .with_context(|| format!("{ip} port {port}"))?;
        }
    }
    let mut before = Vec::new();
    for family in [0, 1] {
        let by_table = choices(&cluster, first[family], BY_TABLE)?;
        let other = choices(&cluster, second[family], BY_TABLE)?;
        ensure!(
            by_table == other,
            "the nodes differ: {by_table:?} {other:?}"
        );
        for name in ["web-1", "web-2", "web-3"] {
            ensure!(
                by_table.iter().any(|pod| pod == name),
                "{name} is never chosen: {by_table:?}"
            );
        }
        let by_hash = [first, second].map(|node| choices(&cluster, node[family], BY_HASH));
        let [ours, theirs] = by_hash;
        ensure!(ours? != theirs?, "each node has a key of its own");
        before.push(by_table);
    }
    let not_ready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("web-2"), &not_ready)?;
    for ip in third {
        wait_for("web-2 to leave", IN_FORCE, || {
            Ok(
                (cluster.far(Kind::Udp, ip, BY_TABLE, 30)?.pods() == ["web-1", "web-3"])
                    .then_some(()),
            )
        })?;
    }
    // No flow of these is known to the third node yet.
    for (family, before) in before.iter().enumerate() {
        let after = choices(&cluster, third[family], BY_TABLE)?;
        ensure!(after.iter().all(|pod| pod != "web-2"), "{after:?}");
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| *before != "web-2" && before != after)
            .count();
        println!(
            "IPv{}: {moved} of {} connections that had another backend chose anew",
            4 + 2 * family,
            before.len()
        );
        ensure!(
            moved <= before.len() / 20,
            "{moved} of {} choices changed",
            before.len()
        );
    }
    Ok(())
}

/// Returns the pod that answers each of the client's ports.
fn choices(cluster: &Cluster, ip: IpAddr, port: u16) -> Result<Vec<String>> {
    cluster.lab.far_client().run(|| {
        FROM.map(|from: u16| {
            Ok(probe::udp_from(from, SocketAddr::new(ip, port))
                .with_context(|| format!("ask {ip} from {from}"))?
                .pod)
        })
        .collect()
    })
}
