//! The command line: one line for each command here, its arguments and its work in its own file.

mod flows;
pub(crate) mod print;
mod services;
pub(crate) mod status;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::agent::{self, AgentArgs};
use crate::args::StateDirArg;
use crate::dataplane;
use crate::doctor::{self, DoctorArgs};
use crate::explain::{self, ExplainArgs};
use crate::gate;
pub use print::PinArgs;

/// Kubernetes Services in eBPF: one agent per node in place of kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "portway", version)]
pub struct Cli {
    /// Log filter: `error`, `warn`, `info`, `debug`, `trace`, or per module:
    /// `info,portway::source=debug`.
    #[arg(long, env = "PORTWAY_LOG", global = true, default_value = "info")]
    pub log: String,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `portway`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Services on this node: attach the programs and keep the kernel's tables right,
    /// until stopped.
    Agent(Box<AgentArgs>),
    /// Show whether the agent runs, the attached programs, and the sizes of the tables; reads the
    /// kernel.
    Status(PinArgs),
    /// List the Services in the kernel's tables, with their backends.
    Services(PinArgs),
    /// List the connections in the kernel's tables.
    Flows(PinArgs),
    /// Remove the programs, maps and devices of the agent with this state directory. Stop the agent
    /// first.
    Unload(StateDirArg),
    /// Find common mistakes in objects and on this host, each with its remedy.
    Doctor(DoctorArgs),
    /// Show which NetworkPolicies apply to a connection, and the rule that allows it or why none
    /// does.
    Explain(ExplainArgs),
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// On failures that the exit status 1 stands for. `doctor` and `explain`, where 1 is a verdict,
    /// print theirs and return 2.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Agent(args) => {
                let settings = args.settings()?;
                runtime()?.block_on(agent::run(settings))?;
            }
            Self::Status(args) => print!("{}", status::run(&args)?),
            Self::Services(args) => print!("{}", services::run(&args)?),
            Self::Flows(args) => print!("{}", flows::run(&args)?),
            Self::Unload(StateDirArg { state_dir }) => {
                runtime()?.block_on(unload(&state_dir))?;
            }
            Self::Doctor(args) => return verdict(doctor::run(args)),
            Self::Explain(args) => return verdict(explain::run(args)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the exit status of a command that judges (0 or 1), or 2 if it could not judge.
fn verdict(judged: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    runtime()?.block_on(judged).or_else(|error| {
        eprintln!("Error: {error:#}");
        Ok(ExitCode::from(2))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().context("start the runtime")
}

/// Removes all that an agent has left in the kernel: hooks, programs, maps and the gate.
async fn unload(state_dir: &Path) -> Result<()> {
    // A slip of the pen in --state-dir must not take another agent's gate away.
    if !state_dir.exists() {
        return Ok(());
    }
    dataplane::unload(state_dir).await?;
    gate::remove().await
}
