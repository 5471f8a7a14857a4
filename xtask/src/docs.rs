//! Owns `cargo xtask docs`: writes the reference pages from the code, and the picture of the demo.

mod picture;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Component};
use crate::sh;

/// The folder of the pages that are made, from the workspace's root.
const REFERENCE: &str = "deploy/docs/reference";
/// The picture of the demo, from the workspace's root.
const PICTURE: &str = "deploy/docs/demo.svg";

/// Write the pages of deploy/docs/reference from the code
#[derive(clap::Args, Default)]
pub struct Args {
    /// Write nothing, and fail if a page is stale
    #[arg(long)]
    check: bool,
    /// Run the demo (as root, about 20 seconds) and make its picture, deploy/docs/demo.svg, too
    #[arg(long, conflicts_with = "check")]
    picture: bool,
}

/// Writes the pages, or checks them.
///
/// # Errors
/// If a page cannot be made or written, or is stale with `--check`.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    let dir = sh::workspace().join(REFERENCE);
    fs::create_dir_all(&dir).with_context(|| format!("make {REFERENCE}"))?;
    write_pages(&dir)?;
    if args.picture {
        fs::write(sh::workspace().join(PICTURE), picture::of_demo()?)
            .with_context(|| format!("write {PICTURE}"))?;
        println!("{PICTURE}");
    }
    Ok(())
}

/// Checks that the pages are what the code makes of them.
///
/// # Errors
/// If a page is stale, or is there and not made.
pub fn check() -> Result<()> {
    let made = tempfile::tempdir().context("make a temporary directory")?;
    write_pages(made.path())?;
    let stale = stale(made.path(), &sh::workspace().join(REFERENCE))?;
    ensure!(
        stale.is_empty(),
        "stale in {REFERENCE}: {}; `cargo xtask docs` writes them again",
        stale.join(", ")
    );
    Ok(())
}

/// Runs the example that sees the agent's code.
fn write_pages(dir: &Path) -> Result<()> {
    setup::ensure(&Component::BUILD)?;
    let mut cargo = sh::cargo();
    cargo
        .args(["run", "--quiet", "--package", "proxy-userspace"])
        .args(["--example", "reference", "--"])
        .arg(dir);
    sh::run(&mut cargo)
}

/// Returns the names of files that differ, or are in one of the directories only.
fn stale(made: &Path, kept: &Path) -> Result<Vec<String>> {
    let mut names = names(made)?;
    if kept.exists() {
        names.extend(self::names(kept)?);
    }
    names.sort();
    names.dedup();
    names.retain(|name| fs::read(made.join(name)).ok() != fs::read(kept.join(name)).ok());
    Ok(names)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Returns what the demo prints on a terminal.
fn demo_output() -> Result<String> {
    let mut demo = Command::new(std::env::current_exe().context("find this program")?);
    sh::output(demo.arg("demo").env("CLICOLOR_FORCE", "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_changed_came_or_went_is_stale() {
        let [made, kept] = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
        for (dir, name, text) in [
            (&made, "same.md", "a"),
            (&kept, "same.md", "a"),
            (&made, "changed.md", "new"),
            (&kept, "changed.md", "old"),
            (&made, "came.md", ""),
            (&kept, "went.md", ""),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        assert_eq!(
            stale(made.path(), kept.path()).expect("compared"),
            ["came.md", "changed.md", "went.md"]
        );
    }
}
