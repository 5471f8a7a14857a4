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
    /// As it is shipped: optimised, and slower to build
    #[arg(long)]
    release: bool,
}

/// How the agent is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// As it is shipped.
    Release,
}

/// Builds and prints where the binary is and how large.
pub fn run(args: &Args) -> Result<()> {
    let binary = agent(if args.release { Profile::Release } else { Profile::Dev })?;
    let size = fs::metadata(&binary).context("look at the built binary")?.len();
    println!("{} ({:.1} MB)", binary.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds the agent, with the tools that it takes, and tells where it is.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    setup::ensure(&Component::BUILD)?;
    executable(&["build", "--package", "proxy-userspace", "--bin", "portway"], profile)
}

/// Runs a cargo command that builds one executable, and tells where it is.
pub fn executable(command: &[&str], profile: Profile) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(command).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let messages = cargo.output().with_context(|| format!("start {}", sh::shown(&cargo)))?;
    anyhow::ensure!(messages.status.success(), "`{}` failed", sh::shown(&cargo));
    let messages = String::from_utf8(messages.stdout).context("read cargo's messages")?;
    last_executable(&messages).with_context(|| format!("find what `{}` built", sh::shown(&cargo)))
}

fn last_executable(messages: &str) -> Option<PathBuf> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from)).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_executable_out_of_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/portway\"}\n{\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(last_executable(messages), Some(PathBuf::from("/t/portway")));
        assert_eq!(last_executable("{\"reason\":\"build-finished\",\"success\":true}\n"), None);
    }
}
