//! The project's own commands: `cargo xtask …` parses the command line and hands over to the
//! command's module.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::lab::{container, hold, probe, server};
use xtask::{build, compare, conform, demo, docs, load, setup, test, tidy, vm};

/// Setup, build, lab, demo and tests of Portway
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Load(load::LoadArgs),
    Unload(load::UnloadArgs),
    Conform(conform::Args),
    Demo(demo::Args),
    Docs(docs::Args),
    Compare(compare::Args),
    Test(test::Args),
    Tidy(tidy::Args),
    Vm(vm::Args),
    Lab(hold::LabArgs),
    #[command(hide = true)]
    PodServer(server::PodServerArgs),
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
    #[command(hide = true)]
    Container(container::ContainerArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Load(args) => load::run_load(&args),
        Command::Unload(args) => load::run_unload(&args),
        Command::Conform(args) => conform::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Docs(args) => docs::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Lab(args) => hold::hold(&args),
        Command::PodServer(args) => server::serve(&args),
        Command::Container(args) => container::play(&args),
        Command::Probe(args) => {
            probe::print_answers(&args);
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // `{:#}` is one line with all contexts; a backtrace would hide what to do.
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}
