//! The binary `portway`: parses the command line and hands over.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use portway::cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    // These two commands print the source's warnings as part of their output.
    let log = if matches!(command, Command::Doctor(_) | Command::Explain(_)) {
        format!("{log},portway::source=error")
    } else {
        log
    };
    match start_log(&log).and_then(|()| command.run()) {
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
