//! What an agent's end costs the packets: nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::lab::load::{self, Load};
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, WEB};

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
