//! The binary `portway`: parses the command line, sets up the log, and hands over.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use portway::args::{Cli, Command};
use portway::doctor;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("portway: {error:#}");
        ExitCode::from(2)
    })
}

#[tokio::main]
async fn run(cli: Cli) -> Result<ExitCode> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {}", cli.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.command {
        Command::Doctor(args) => doctor::run(args).await,
        other => anyhow::bail!("{other:?} is not part of this build"),
    }
}
