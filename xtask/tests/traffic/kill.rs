//! The cost of an agent's end to the packets: none.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::counters::Counters;
use xtask::lab::load::{self, Load};
use xtask::lab::netns::Namespace;
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, WEB, load_average};

/// Requests per second.
const RATE: u32 = 10_000;
/// The load goes on so long before the agent ends and after the new one is there.
const MARGIN: Duration = Duration::from_secs(3);
/// Time for a new agent to start while the load goes on.
const STARTING: Duration = Duration::from_secs(4);
/// Kernel counters of packets that were lost or late.
const LOSSES: [&str; 8] = [
    "Retrans",
    "Timeout",
    "Overflow",
    "ListenDrops",
    "ReqQFull",
    "Discards",
    "Reject",
    "PAWS",
];

/// Returns the time without an agent: in CI some seconds, a minute by hand.
fn time_without() -> Result<Duration> {
    let seconds = std::env::var("PORTWAY_SECONDS_WITHOUT_AGENT").unwrap_or_else(|_| "4".to_owned());
    seconds
        .parse()
        .map(Duration::from_secs)
        .context("read PORTWAY_SECONDS_WITHOUT_AGENT")
}

/// `kill -9` of the agent under load, a while without one, and a new one: no request fails, and no
/// packet is dropped.
#[test]
fn killing_and_restarting_the_agent_fails_no_request() -> Result<()> {
    let mut cluster = Cluster::start_alone(Wiring::Bridge, Join::Routes, &[])?;
    let without = time_without()?;
    let before = losses(&cluster)?;
    let dropped = cluster.drops("node1")?;
    let target = SocketAddr::new(cluster.lab.node("node1")?.addresses().v4.into(), WEB);
    let load = Load::new(target, RATE, MARGIN + without + STARTING + MARGIN);
    let running = cluster.lab.near_client().start(move || load::run(&load));
    std::thread::sleep(MARGIN);
    cluster.agents.remove(0).kill();
    std::thread::sleep(without);
    let begin = Instant::now();
    let again = cluster.spec.start(cluster.lab.node("node1")?)?;
    let started = begin.elapsed();
    let report = running.join().expect("the load does not panic")?;
    println!(
        "{without:?} without an agent, {started:.1?} to start one, load average {}: {report}",
        load_average()?
    );
    for ((name, now), (_, then)) in losses(&cluster)?.iter().zip(&before) {
        println!("  {name}: {}", now.growth(then, &LOSSES));
    }
    ensure!(report.failed() == 0, "{report}");
    ensure!(
        report.rate() > f64::from(RATE) / 2.0,
        "too few to say anything: {report}"
    );
    ensure!(
        cluster.drops("node1")? == dropped,
        "packets were dropped: {} instead of {dropped}",
        cluster.drops("node1")?
    );
    let log = again.log();
    ensure!(
        !log.contains("refused"),
        "the new agent had trouble:\n{log}"
    );
    cluster.agents.push(again);
    cluster.settle()
}

/// The counters of all who took part.
fn losses(cluster: &Cluster) -> Result<Vec<(String, Counters)>> {
    let lab = &cluster.lab;
    let web = lab
        .pods()
        .filter(|(_, pod)| pod.spec().labels.get("app").is_some_and(|app| app == "web"));
    let all: Vec<&Namespace> = std::iter::once(lab.near_client())
        .chain(web.map(|(_, pod)| pod.ns()))
        .collect();
    all.into_iter()
        .map(|ns| Ok((ns.name().to_owned(), Counters::of(ns)?)))
        .collect()
}
