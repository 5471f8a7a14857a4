//! The binary `portway`: parses the command line and hands over.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use portway::args::{Cli, Command};
use portway::dataplane::unload;
use portway::{agent, cli, doctor, explain};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    // What the source would warn of is among what these say.
    let log = if matches!(command, Command::Doctor(_) | Command::Explain(_)) {
        format!("{log},portway::source=error")
    } else {
        log
    };
    match start_log(&log).and_then(|()| run(command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
    Ok(())
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Agent(args) => {
            let settings = args.settings()?;
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            runtime.block_on(agent::run(settings))?;
        }
        Command::Status(args) => print!("{}", cli::status(&args)?),
        Command::Services(args) => print!("{}", cli::services(&args)?),
        Command::Flows(args) => print!("{}", cli::flows(&args)?),
        Command::Unload(pins) => {
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            runtime.block_on(unload(&pins.state_dir))?;
        }
        Command::Doctor(args) => return verdict(doctor::run(args)),
        Command::Explain(args) => return verdict(explain::run(args)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a command says of what it was asked to judge (0 or 1), or 2 if that could not be found out.
fn verdict(judged: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(judged).or_else(|error| {
        eprintln!("Error: {error:#}");
        Ok(ExitCode::from(2))
    })
}
