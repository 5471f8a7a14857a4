//! Puts the questions to one side, many at once, each often enough that every endpoint has its
//! turn.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::cluster::Cluster;
use super::outcome::{self, Outcome};
use super::rows::{Client, Protocol, Row};
use crate::lab::node::Node;
use crate::lab::probe::{self, Answer};
use crate::lab::topology::Family;

/// Number of rows that are asked at a time; most of them wait for an answer that will not come.
const WORKERS: usize = 6;
/// Number of probes in a row's burst. Of two endpoints one is missed twice in a row in one of eight
/// million cases.
const BURST: usize = 12;
/// By then a SYN has been sent twice.
const TWO_SYNS: Duration = Duration::from_millis(1800);

/// Asks all rows, and gives what came of each.
///
/// # Errors
/// If a client is missing or cannot ask.
pub fn ask_all(cluster: &Cluster, rows: &[Row]) -> Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = std::iter::from_fn(|| {
            Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < rows.len())
        });
        mine.map(|at| Ok((at, ask(cluster, &rows[at])?)))
            .collect::<Result<Vec<_>>>()
    };
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let parts = workers.into_iter().map(|t| {
            t.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        parts.collect::<Result<Vec<_>>>()
    })?;
    let mut outcomes = vec![Outcome::default(); rows.len()];
    parts
        .into_iter()
        .flatten()
        .for_each(|(at, outcome)| outcomes[at] = outcome);
    again_where_mixed(cluster, rows, &mut outcomes)?;
    Ok(outcomes)
}

/// A busy machine loses an answer now and then: what was answered in part is asked again, alone,
/// and that counts.
fn again_where_mixed(cluster: &Cluster, rows: &[Row], outcomes: &mut [Outcome]) -> Result<()> {
    for (row, outcome) in rows
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| outcome.is_mixed())
    {
        *outcome = ask(cluster, row)?;
    }
    Ok(())
}

/// Asks one row: twice where the first is refused, for refusals are limited; else in bursts.
fn ask(cluster: &Cluster, row: &Row) -> Result<Outcome> {
    let own = own_address(cluster, row)?;
    let mut answers = burst(cluster, row, 1)?;
    if answers == [Answer::TimedOut] && is_refused_late(cluster, row)? {
        return Ok(Outcome::new(row, own, &[Answer::Refused]));
    }
    let refused = answers == [Answer::Refused];
    answers.extend(burst(cluster, row, if refused { 1 } else { BURST })?);
    let outcome = Outcome::new(row, own, &answers);
    let all_served = answers.iter().all(|answer| answer.served().is_some());
    if all_served && outcome.pods().len() < row.service.endpoints().len() {
        answers.extend(burst(cluster, row, BURST)?);
    }
    Ok(Outcome::new(row, own, &answers))
}

/// Returns true if a TCP client that waits for its second SYN is refused.
fn is_refused_late(cluster: &Cluster, row: &Row) -> Result<bool> {
    if (row.family, row.protocol) != (Family::V6, Protocol::Tcp) {
        return Ok(false);
    }
    cluster
        .namespace(row.client)?
        .run(|| Ok(probe::is_refused(row.addr(), TWO_SYNS)))
}

fn own_address(cluster: &Cluster, row: &Row) -> Result<IpAddr> {
    match (outcome::fixed_address(row), row.client) {
        (Some(ip), _) => Ok(ip),
        (None, Client::Pod(name, _)) => Ok(cluster.lab().pod(name)?.addresses().of(row.family)),
        (None, client) => anyhow::bail!("find the address of {client}"),
    }
}

/// Asks so many times at once, each time as a new client.
fn burst(cluster: &Cluster, row: &Row, count: usize) -> Result<Vec<Answer>> {
    if let Client::Process(node) | Client::Unhooked(node) = row.client {
        return by_processes(
            cluster.lab().node(&format!("node{node}"))?,
            cluster,
            row,
            count,
        );
    }
    cluster.namespace(row.client)?.run(|| {
        // A thread is born in the namespace of the one that starts it.
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|_| scope.spawn(|| probe::ask(row.kind(), row.addr())))
                .collect();
            Ok(threads
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect())
        })
    })
}

/// By processes in the node's cgroup, where socket hooks see them.
fn by_processes(node: &Node, cluster: &Cluster, row: &Row, count: usize) -> Result<Vec<Answer>> {
    let kind = row
        .kind()
        .to_possible_value()
        .context("name the kind of probe")?;
    let processes = (0..count)
        .map(|_| {
            let mut command = Command::new(&cluster.lab().tools().xtask);
            command.args(["probe", "--kind", kind.get_name(), &row.addr().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            node.spawn(command)
        })
        .collect::<Result<Vec<_>>>()?;
    processes
        .into_iter()
        .map(|process| process.all_output()?.trim_end().parse())
        .collect()
}
