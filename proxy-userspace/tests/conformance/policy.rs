//! NetworkPolicy five ways: the text read literally; the compiled tables in the library, changed
//! step by step and made anew; the kernel's tables as `portway explain` reads them; the loaded
//! programs.

pub mod cases;
mod oracle;
mod tables;
mod world;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use self::cases::{Case, Row, Step};
use self::oracle::Port;
use self::tables::Tables;
use self::world::World;
use crate::kernel::Kernel;
use crate::report::Tally;

/// Checks every row of every step.
pub fn check(case: &Case, kernel: &mut Kernel, tally: &mut Tally) -> Result<()> {
    let mut tables = Tables::new(kernel)?;
    for (number, step) in case.steps.iter().enumerate() {
        tables
            .bring_to(step, kernel)
            .with_context(|| format!("step {number}"))?;
        let fresh = tables
            .world
            .made_anew(step)
            .with_context(|| format!("step {number}"))?;
        let policies: Vec<NetworkPolicy> = step
            .policies
            .iter()
            .flatten()
            .map(read)
            .collect::<Result<_>>()?;
        for row in step.expected.iter().filter(|row| row.from != row.to) {
            check_row(
                number,
                step,
                &policies,
                row,
                (&tables, &fresh),
                kernel,
                tally,
            )?;
        }
    }
    tables.empty(kernel)
}

fn read(policy: &serde_json::Value) -> Result<NetworkPolicy> {
    serde_json::from_value(policy.clone()).context("read a NetworkPolicy")
}

fn check_row(
    number: usize,
    step: &Step,
    policies: &[NetworkPolicy],
    row: &Row,
    (tables, fresh): (&Tables, &World),
    kernel: &mut Kernel,
    tally: &mut Tally,
) -> Result<()> {
    let (from, to) = step.ends(row)?;
    ensure!(
        from.ip.is_ipv4() == to.ip.is_ipv4(),
        "step {number}: {} and {} are of two families",
        row.from,
        row.to
    );
    let port = Port {
        protocol: &row.protocol,
        number: row.port,
    };
    let what = format!(
        "step {number}: {} to {}:{}/{}",
        row.from, row.to, row.port, row.protocol
    );
    let ways = [
        ("the text", oracle::verdict(step, policies, from, to, port)),
        ("the tables", tables.world.verdict(from, to, port)),
        ("the tables from nothing", fresh.verdict(from, to, port)),
        (
            "explain's way",
            tables.verdict_of_explain(from, to, port, kernel)?,
        ),
        (
            "the programs",
            tables.verdict_of_programs(from, to, port, kernel)?,
        ),
    ];
    for (count, (way, (ingress, egress))) in ways.into_iter().enumerate() {
        let found = [ingress, egress, ingress && egress];
        let owed = [row.ingress, row.egress, row.combined];
        for ((found, owed), name) in found
            .into_iter()
            .zip(owed)
            .zip(["ingress", "egress", "combined"])
        {
            if owed.is_some_and(|owed| owed != found) {
                tally.differs(&what, format!("{name} by {way}: {found}, owed {}", !found));
            }
        }
        tally.policies[count] += 1;
    }
    Ok(())
}
