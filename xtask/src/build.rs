//! `cargo xtask build`: one binary, `portway`, with the eBPF object inside.

use crate::setup::{self, Component};
use crate::sh;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

/// Build the agent `portway` with its eBPF object inside
#[derive(clap::Args)]
pub struct Args {
    /// Optimised, as it is shipped; slower to build
    #[arg(long)]
    release: bool,
}

/// Compile profiles of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// Optimised, as it is shipped.
    Release,
}

/// Builds and prints where the binary is and how large.
pub fn run(args: &Args) -> Result<()> {
    let binary = agent(if args.release {
        Profile::Release
    } else {
        Profile::Dev
    })?;
    let size = fs::metadata(&binary)
        .context("look at the built binary")?
        .len();
    println!("{} ({:.1} MB)", binary.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds the agent with the tools that this needs, and returns its path.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    setup::ensure(&Component::BUILD)?;
    executable(
        &["build", "--package", "proxy-userspace", "--bin", "portway"],
        "portway",
        profile,
    )
}

/// Runs a cargo command that builds the target `name`, perhaps among others, and returns the path
/// of its executable.
pub fn executable(command: &[&str], name: &str, profile: Profile) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo
        .args(command)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let messages = cargo
        .output()
        .with_context(|| format!("start {}", sh::shown(&cargo)))?;
    anyhow::ensure!(messages.status.success(), "`{}` failed", sh::shown(&cargo));
    let messages = String::from_utf8(messages.stdout).context("read cargo's messages")?;
    executable_of(&messages, name)
        .with_context(|| format!("find what `{}` built", sh::shown(&cargo)))
}

fn executable_of(messages: &str, name: &str) -> Option<PathBuf> {
    let parsed = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_target = parsed.filter(|message| message["target"]["name"] == name);
    of_target
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_targets_executable_out_of_cargos_messages() {
        let artifact = |name: &str, executable: &str| {
            serde_json::json!({ "reason": "compiler-artifact", "target": { "name": name }, "executable": executable }).to_string()
        };
        // A package's integration tests bring its binaries along, in any order.
        let messages = [
            artifact("kernel", "/t/kernel-1"),
            artifact("portway", "/t/portway"),
        ]
        .join("\n");
        assert_eq!(
            executable_of(&messages, "kernel"),
            Some(PathBuf::from("/t/kernel-1"))
        );
        assert_eq!(
            executable_of(&messages, "portway"),
            Some(PathBuf::from("/t/portway"))
        );
        assert_eq!(
            executable_of(
                "{\"reason\":\"build-finished\",\"success\":true}",
                "portway"
            ),
            None
        );
    }
}
