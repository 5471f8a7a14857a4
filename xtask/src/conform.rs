//! `cargo xtask conform`: checks Portway against cases written by others, on fake tables and in the
//! kernel.

use crate::setup::{self, Component};
use crate::sh;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Check Portway against cases written by others
#[derive(clap::Args)]
pub struct Args {
    /// Directories of cases, or single files; the checks of a single file are all listed
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// List every check of every file
    #[arg(long)]
    verbose: bool,
}

/// Runs the cases; fails if one differs, is not covered, or is missing.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(&Component::BUILD)?;
    let flags = args.verbose.then_some("--verbose");
    sh::run(
        sh::cargo()
            .args(["test", "--quiet"])
            .args(arguments(&args.paths)?)
            .args(flags),
    )
}

/// Returns the arguments of `cargo test` that run the cases in these places.
pub fn arguments(paths: &[PathBuf]) -> Result<Vec<String>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the programs are loaded for it: run it as root"
    );
    let places = paths
        .iter()
        .map(|path| place(path))
        .collect::<Result<Vec<_>>>()?;
    let test = ["--package", "proxy-userspace", "--test", TARGET, "--"].map(str::to_owned);
    Ok(test.into_iter().chain(places).collect())
}

/// The target of integration tests that runs them.
pub const TARGET: &str = "conformance";

/// The path from the root, as the test runs elsewhere.
fn place(path: &Path) -> Result<String> {
    let Ok(place) = fs::canonicalize(path) else {
        bail!("no cases at {}", path.display())
    };
    place
        .into_os_string()
        .into_string()
        .ok()
        .with_context(|| format!("name {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_that_are_not_there_are_an_error_that_names_the_place() {
        let why = place(Path::new("/nowhere/cases")).expect_err("found");
        assert_eq!(why.to_string(), "no cases at /nowhere/cases");
    }
}
