//! Portway and the real kube-proxy give the same answers, except where a rule wants another one: a
//! few rows of `cargo xtask compare`. Needs root.

use anyhow::{Result, ensure};
use xtask::compare::rows::Extent;
use xtask::compare::{compare, table};
use xtask::lab::host::Tools;
use xtask::lab::topology::{Join, Wiring};

#[test]
fn a_few_rows_differ_exactly_as_intended() -> Result<()> {
    let all = compare(
        Extent::Quick,
        Wiring::PointToPoint,
        Join::Routes,
        &Tools::next_to(env!("CARGO_BIN_EXE_xtask")),
    )?;
    let sums = table::sums(&all);
    println!("{}", table::report(&all));
    ensure!(sums.wrong == 0, "{sums}");
    ensure!(
        sums.same > 0 && sums.intended > 0 && sums.same + sums.intended == all.len(),
        "{sums}"
    );
    Ok(())
}
