//! `cargo xtask tidy`: checks that keep the sources, the rules and the documents as they are meant
//! to be; then rustfmt and clippy, for the host and for the kernel.
//!
//! Each check is a file below `tidy/` with tests that show it failing and passing:
//!
//! | check | fails on |
//! |---|---|
//! | `absences` | words of the design's invariants outside their home; unused permits |
//! | `dependencies`, `whole_compile` | breaches of the invariants 1, 2 and 6 |
//! | `safety` | an `unsafe` without a SAFETY note |
//! | `first_line` | a file without a `//!` sentence |
//! | `rules` | a rule V… or P… that is cited and has no entry, or that no test names; false entries |
//! | `markdown` | links, paths and commands in documents that lead nowhere |
//! | `english` | more than 1 in 50 doc lines begin with What, Whether, The same, How often or Whose |
//! | `kernel` | lints of what is compiled for the kernel |
//!
//! Then rustdoc builds without warnings, and the pages that `cargo xtask docs` makes are not stale.

mod absences;
mod dependencies;
mod english;
mod first_line;
mod kernel;
mod markdown;
mod repository;
mod rules;
mod safety;
mod source;
mod violation;
mod whole_compile;
mod word;

use crate::docs;
use crate::setup::{self, Component};
use crate::sh;
use anyhow::{Context, Result, ensure};
use repository::Repository;
use std::process::Command;
use violation::Violation;

/// Check the design's invariants, the rules, the documents, the format and the lints
#[derive(clap::Args, Default)]
pub struct Args {
    /// Check texts only: no rustfmt, no clippy
    #[arg(long)]
    texts: bool,
}

/// Runs all checks, also after one has failed, and prints each violation with its place and reason.
pub fn run(args: &Args) -> Result<()> {
    let repository = Repository::read()?;
    let violations = report(&repository);
    if args.texts {
        return verdict(violations);
    }
    setup::ensure(&[
        Component::Lints,
        Component::KernelCore,
        Component::BpfLinker,
    ])?;
    let format = sh::run(sh::cargo().args(["fmt", "--all", "--check"]));
    let lints = sh::run(&mut clippy());
    let kernel_lints = kernel::lint();
    let rustdoc = sh::run(&mut rustdoc());
    let pages = docs::check();
    verdict(violations)?;
    format.context("check the format (`cargo fmt --all` mends it)")?;
    lints.context("check the lints")?;
    kernel_lints?;
    rustdoc.context("check the doc comments")?;
    pages
}

fn verdict(violations: usize) -> Result<()> {
    ensure!(
        violations == 0,
        "the repository breaks {violations} of its own rules, see above"
    );
    Ok(())
}

/// Prints the violations of all checks and a line about each check; returns their number.
fn report(repository: &Repository) -> usize {
    let english = english::count(repository);
    let (rules, unbuilt) = rules::counts(repository);
    let checks = [
        (
            format!("invariants in {} files", repository.sources.len()),
            invariants(repository),
        ),
        (
            format!("{rules} rules, {unbuilt} of them not wholly built"),
            rules::check(repository),
        ),
        (
            format!("{} documents", repository.ending(&[".md"]).count()),
            markdown::check(repository),
        ),
        (
            format!(
                "{} of {} doc lines begin with What, Whether, The same, How often or Whose (at most 1 in 50)",
                english.riddles, english.lines
            ),
            english::check(&english),
        ),
    ];
    for (name, violations) in &checks {
        violations.iter().for_each(|found| println!("{found}"));
        println!("tidy: {name}: {} violations", violations.len());
    }
    checks.iter().map(|(_, violations)| violations.len()).sum()
}

fn invariants(repository: &Repository) -> Vec<Violation> {
    let mut found = absences::check(repository);
    for source in &repository.sources {
        found.extend(dependencies::check(source));
        found.extend(first_line::check(source));
        found.extend(safety::check(source));
        found.extend(whole_compile::check(source));
    }
    found
}

fn rustdoc() -> Command {
    let mut rustdoc = sh::cargo();
    rustdoc
        .args(["doc", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings");
    rustdoc
}

fn clippy() -> Command {
    let mut clippy = sh::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--quiet"]);
    clippy.args(["--", "-D", "warnings"]);
    clippy
}
