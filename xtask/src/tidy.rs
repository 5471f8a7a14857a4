//! `cargo xtask tidy`: what the design says is absent from the sources stays absent; then rustfmt and clippy, for the host and for the kernel.

mod confined;
mod kernel;
mod numbers;
mod policy;
mod rules;
mod source;

use crate::setup::{self, Component};
use crate::sh;
use anyhow::{Context, Result, bail};
use rules::Violation;
use source::Source;
use std::fs;
use std::process::Command;

/// Check the design's invariants, the format and the lints
#[derive(clap::Args)]
pub struct Args {}

/// Checks all sources that git does not ignore; every violation is printed with its place, the invariant and why it is one.
pub fn run(_: &Args) -> Result<()> {
    let sources = sources()?;
    let violations: Vec<Violation> = sources.iter().flat_map(rules::check).collect();
    for violation in &violations {
        println!("{violation}");
    }
    println!(
        "tidy: {} files, {} violations of the design's invariants",
        sources.len(),
        violations.len()
    );
    let unnamed = numbers::unnamed(&sources, &fixtures()?);
    println!(
        "tidy: rules that no test names: {}",
        if unnamed.is_empty() {
            "none".to_owned()
        } else {
            unnamed.join(", ")
        }
    );
    let table = policy::violations(&sh::workspace())?;
    table.iter().for_each(|wrong| println!("{wrong}"));
    println!(
        "tidy: the table of NetworkPolicy's rules: {} violations",
        table.len()
    );
    setup::ensure(&[
        Component::Lints,
        Component::KernelCore,
        Component::BpfLinker,
    ])?;
    let format = sh::run(sh::cargo().args(["fmt", "--all", "--check"]));
    let lints = sh::run(sh::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]));
    let kernel_lints = kernel::lint();
    if !violations.is_empty() {
        bail!(
            "the sources break {} of the design's invariants",
            violations.len()
        );
    }
    if !unnamed.is_empty() {
        bail!("no test names {}", unnamed.join(", "));
    }
    if !table.is_empty() {
        bail!("the table of NetworkPolicy's rules is not true");
    }
    format.context("check the format (`cargo fmt --all` mends it)")?;
    lints.context("check the lints")?;
    kernel_lints
}

fn sources() -> Result<Vec<Source>> {
    let root = sh::workspace();
    // Also what is not yet added, so that a person sees it before the commit does.
    let mut git = Command::new("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
        "*/Cargo.toml",
    ])
    .current_dir(&root);
    let listed = sh::output(&mut git).context("list the sources")?;
    let existing = listed
        .split('\0')
        .filter(|path| !path.is_empty() && root.join(path).is_file());
    existing.map(|path| read(&root, path)).collect()
}

/// The texts of the compiler's fixtures.
fn fixtures() -> Result<Vec<String>> {
    let dir = sh::workspace().join("proxy-userspace/tests/fixtures");
    let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let text = |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry?.path());
    entries
        .map(text)
        .collect::<std::io::Result<_>>()
        .context("read the fixtures")
}

fn read(root: &std::path::Path, path: &str) -> Result<Source> {
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))?;
    Ok(Source::new(path, &text))
}
