//! Conformance: the cases of a directory, each compiled and placed, its flows run through the
//! library on fake tables and through the loaded programs, and what comes out compared with what
//! the case says.
//!
//! Run by `cargo xtask conform DIR…`; needs root: the programs are loaded, and run in a network
//! namespace of this test's own.

#[path = "../kernel/programs.rs"]
#[expect(dead_code, reason = "the kernel's own tests need the rest")]
mod programs;
#[path = "../../../proxy-ebpf/tests/support/segment.rs"]
#[expect(dead_code, reason = "the packet path's own tests need the rest")]
mod segment;
#[path = "../../src/testing.rs"]
#[expect(dead_code, reason = "the agent's own tests need the rest")]
mod testing;

mod addresses;
mod cases;
#[path = "../support/cgroup.rs"]
mod cgroup;
mod cluster;
mod fakes;
mod flows;
mod health;
mod kernel;
mod packet;
mod policy;
mod report;
mod rules;
mod services;
mod slices;
mod sockets;
mod topology;
mod udp;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;

use kernel::Kernel;
use report::{Detail, Report, Tally};
use rules::Row;
use testing::Namespace;

/// Compare what Portway does with what the cases say
#[derive(Parser)]
struct Args {
    /// Directories of cases, or single files; the checks of a single file are all listed
    paths: Vec<PathBuf>,
    /// List every check of every file
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.paths.is_empty() {
        println!("conformance was not run: no directory of cases was named");
        return ExitCode::SUCCESS;
    }
    let outcome = Namespace::new().run(move || run(&args));
    match outcome {
        Ok(report) => report.conclude(),
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Report> {
    let files = files(&args.paths)?;
    let mut kernel = Kernel::new()?;
    let mut report = Report::default();
    for file in files {
        let detail = if args.verbose || args.paths.contains(&file) {
            Detail::All
        } else {
            Detail::Differences
        };
        let mut tally = Tally::default();
        if let Err(why) = check(&file, &mut kernel, &mut tally) {
            tally.row = Row::File;
            tally.differs(&file.display().to_string(), format!("{why:#}"));
        }
        report.add(&file, tally, detail);
    }
    Ok(report)
}

/// The files named, and those of the directories named, in order.
fn files(paths: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for path in paths {
        if path.is_file() {
            found.insert(path.clone());
            continue;
        }
        let before = found.len();
        for entry in
            fs::read_dir(path).with_context(|| format!("read the directory {}", path.display()))?
        {
            let file = entry.context("read a directory")?.path();
            if file.extension().is_some_and(|e| e == "json") {
                found.insert(file);
            }
        }
        ensure!(found.len() > before, "{}: no cases there", path.display());
    }
    Ok(found)
}

/// Checks the cases of one kind of file.
type Check = fn(Value, &mut Kernel, &mut Tally) -> Result<()>;

/// Checks a file; its keys identify the kind of its cases.
fn check(file: &Path, kernel: &mut Kernel, tally: &mut Tally) -> Result<()> {
    let text = fs::read_to_string(file).context("read it")?;
    let value: Value = serde_json::from_str(&text).context("read its JSON")?;
    let has = |keys: &[&str]| keys.iter().any(|key| value.get(key).is_some());
    let in_cases = |key: &str| value["cases"][0].get(key).is_some();
    let (row, check): (Row, Check) = match () {
        () if has(&["config"]) && has(&["flows"]) => (Row::Verdicts, |v, kernel, tally| {
            flows::check(&cases::read(v)?, kernel, tally)
        }),
        () if has(&["node_ips", "contains_ipv4_loopback"]) => {
            (Row::NodePortAddresses, |v, _, tally| {
                addresses::check(&cases::read(v)?, tally)
            })
        }
        () if has(&["service_health", "proxy_health"]) => (Row::Health, |v, _, tally| {
            health::check(&cases::read(v)?, tally)
        }),
        () if has(&cases::OF_SLICES) => (Row::Objects, |v, _, tally| {
            slices::check(&cases::read(v)?, tally)
        }),
        () if in_cases("flows") => (Row::UdpFlows, |v, _, tally| {
            udp::check(&cases::read(v)?, tally)
        }),
        () if in_cases("endpoints") => (Row::Endpoints, |v, _, tally| {
            topology::check(&cases::read(v)?, tally)
        }),
        () if value["steps"][0].get("expected").is_some() => (Row::Policies, |v, kernel, tally| {
            policy::check(&cases::read(v)?, kernel, tally)
        }),
        () => bail!("cases of an unknown kind"),
    };
    tally.row = row;
    check(value, kernel, tally)?;
    ensure!(!tally.is_empty(), "nothing was found to check");
    Ok(())
}
