//! `cargo xtask setup`: installs on a Debian or Ubuntu host the tools that the other commands need,
//! and prints each step.
//!
//! Every other command calls [`ensure`] for the part of it that it needs. Nothing that is found is
//! installed again.

mod apt;
mod component;
mod found;
mod go;
mod rust;

pub use apt::DEBIAN_KEYS;
pub use component::Component;
pub use go::go;
pub use rust::{Core, TARGET, Toolchain, kernel_toolchain};

use anyhow::{Context, Result, bail};
use component::Bringer;
use found::Found;

/// Install what building, lab and tests need on this host
#[derive(clap::Args)]
pub struct Args {
    /// Only report; exit status 1 if something is missing
    #[arg(long)]
    check: bool,
}

/// Reports every component and, without `--check`, installs the missing ones.
pub fn run(args: &Args) -> Result<()> {
    let missing = report(&Component::ALL);
    if missing.is_empty() {
        println!("all {} components are here", Component::ALL.len());
        return Ok(());
    }
    if args.check {
        bail!(
            "{} missing; `cargo xtask setup` brings what apt, rustup and cargo have",
            names(&missing)
        );
    }
    bring(&missing)
}

/// Installs those of `needed` that are missing; prints nothing if none is.
pub fn ensure(needed: &[Component]) -> Result<()> {
    let missing: Vec<Component> = needed
        .iter()
        .copied()
        .filter(|component| component.find().is_err())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!(
        "this command needs {}, which this host does not have yet",
        names(&missing)
    );
    bring(&missing)
}

fn report(components: &[Component]) -> Vec<Component> {
    let mut missing = Vec::new();
    for component in components {
        match component.find() {
            Ok(Found(what)) => println!("found    {:<14} {what}", component.name()),
            Err(why) => {
                println!(
                    "missing  {:<14} {why}; needed for {}",
                    component.name(),
                    component.needed_for()
                );
                missing.push(*component);
            }
        }
    }
    missing
}

fn bring(missing: &[Component]) -> Result<()> {
    let mut packages: Vec<&str> = missing
        .iter()
        .flat_map(|component| component.packages())
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages).with_context(|| format!("bring {}", names(missing)))?;
    }
    for component in missing {
        match component.bringer() {
            Bringer::Apt => {}
            Bringer::Rust => rust::bring_core()?,
            Bringer::Lints => rust::bring_lints()?,
            Bringer::Linker => rust::bring_linker()?,
            Bringer::Go => go::bring()?,
        }
        component
            .find()
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("find {} after bringing it", component.name()))?;
    }
    println!("brought {}", names(missing));
    Ok(())
}

fn names(components: &[Component]) -> String {
    components
        .iter()
        .map(|component| component.name())
        .collect::<Vec<_>>()
        .join(", ")
}
