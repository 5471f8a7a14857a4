//! `cargo xtask compare`: gives the same objects and sends the same requests to kube-proxy and to
//! Portway, in two labs, and judges each difference.

pub mod ask;
pub mod cluster;
pub mod outcome;
pub mod rows;
pub mod rules;
pub mod scene;
pub mod table;

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::lab::host::Tools;
use crate::lab::topology::{Join, Wiring};
use crate::setup::{self, Component};
use cluster::{Cluster, Side};
use outcome::Outcome;
use rows::{Extent, Row};
use table::Compared;

/// Send the same requests through kube-proxy and Portway in two labs; fail if they differ other than
/// intended
#[derive(clap::Args)]
pub struct Args {
    /// Only the rows that the test asks.
    #[arg(long)]
    quick: bool,
    /// Wiring of pods to their node.
    #[arg(long, value_enum, default_value = "point-to-point")]
    wiring: Wiring,
    /// Connection of the nodes to each other's pods.
    #[arg(long, value_enum, default_value = "routes")]
    join: Join,
}

/// Builds, compares, and prints.
///
/// # Errors
/// If a side does not start, or the two differ otherwise than intended.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(&Component::LAB)?;
    let tools = Tools {
        portway: build::agent(build::Profile::Dev)?,
        ..Tools::of_this_program()?
    };
    let extent = if args.quick {
        Extent::Quick
    } else {
        Extent::Full
    };
    let all = compare(extent, args.wiring, args.join, &tools)?;
    print!("{}", table::report(&all));
    let sums = table::sums(&all);
    ensure!(
        sums.wrong == 0,
        "{} of {} rows are not what the rules make of kube-proxy's outcome",
        sums.wrong,
        all.len()
    );
    Ok(())
}

/// Puts the rows of `extent` to both sides, one after the other, those of processes to Portway once
/// more where no hooks of sockets serve them, and judges what came of them.
///
/// # Errors
/// If a side does not start, or cannot be asked.
pub fn compare(extent: Extent, wiring: Wiring, join: Join, tools: &Tools) -> Result<Vec<Compared>> {
    let rows = rows::rows(extent);
    let outcomes = |side: Side, rows: &[Row]| ask_side(side, wiring, join, tools, rows);
    let kube_proxy = outcomes(Side::KubeProxy, &rows)?;
    let portway = outcomes(Side::Portway, &rows)?;
    let unhooked = rows
        .iter()
        .zip(&kube_proxy)
        .filter_map(|(row, outcome)| Some((row.unhooked()?, outcome.clone())));
    let (unhooked, of_kube_proxy): (Vec<_>, Vec<_>) = unhooked.unzip();
    let by_packets = outcomes(Side::PortwayByPackets, &unhooked)?;
    let mut all = judged(rows, kube_proxy, portway);
    all.extend(judged(unhooked, of_kube_proxy, by_packets));
    Ok(all)
}

fn judged(rows: Vec<Row>, kube_proxy: Vec<Outcome>, portway: Vec<Outcome>) -> Vec<Compared> {
    let judge = |((row, kube_proxy), portway): ((Row, Outcome), Outcome)| {
        let verdict = rules::judge(&row, &kube_proxy, &portway);
        Compared {
            row,
            kube_proxy,
            portway,
            verdict,
        }
    };
    rows.into_iter()
        .zip(kube_proxy)
        .zip(portway)
        .map(judge)
        .collect()
}

fn ask_side(
    side: Side,
    wiring: Wiring,
    join: Join,
    tools: &Tools,
    rows: &[Row],
) -> Result<Vec<Outcome>> {
    let begin = Instant::now();
    let cluster = Cluster::start(side, wiring, join, tools.clone())
        .with_context(|| format!("start {side:?}"))?;
    let started = begin.elapsed();
    let outcomes = ask::ask_all(&cluster, rows).with_context(|| format!("ask {side:?}"))?;
    eprintln!(
        "{side:?}: {} rows asked in {:.1?}, after a start of {started:.1?}",
        rows.len(),
        begin.elapsed() - started
    );
    Ok(outcomes)
}
