//! The project's own commands: `cargo xtask …`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use xtask::demo;
use xtask::lab::{hold, probe, server};

/// Portway's own commands.
#[derive(Parser)]
enum Cli {
    Demo(demo::Args),
    Lab(hold::LabArgs),
    #[command(hide = true)]
    PodServer(server::PodServerArgs),
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli {
        Cli::Demo(args) => demo::run(&args),
        Cli::Lab(args) => hold::hold(&args),
        Cli::PodServer(args) => server::serve(&args),
        Cli::Probe(args) => {
            probe::print_answers(&args);
            Ok(())
        }
    }
}
