//! `cargo xtask vm`: runs the agent's kernel tests on Debian's kernels under qemu, so that each old
//! verifier loads the programs every day.

mod boot;
mod initramfs;
mod kernel;

use crate::build::{self, Profile};
use crate::setup::{self, Component};
use crate::sh;
use anyhow::{Context, Result, bail};
use boot::Outcome;
pub use kernel::Release;
use std::path::PathBuf;
use std::time::Instant;

/// Run the kernel tests on other kernels under qemu
#[derive(clap::Args)]
pub struct Args {
    /// Kernels to boot [default: all three]
    #[arg(value_enum)]
    kernels: Vec<Release>,
    /// A program to run there instead of the kernel test of proxy-userspace
    #[arg(long)]
    exec: Option<PathBuf>,
    /// Run the lab with VLANs, bonds and bridges there instead
    #[arg(long, conflicts_with = "exec")]
    uplinks: bool,
    /// Arguments of the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Boots every kernel that was asked for, one after the other, and fails if the program failed in
/// one of them.
pub fn run(args: &Args) -> Result<()> {
    let kernels = if args.kernels.is_empty() {
        Release::ALL.to_vec()
    } else {
        args.kernels.clone()
    };
    let work = match &args.exec {
        Some(program) => Work {
            program: program.clone(),
            arguments: args.arguments.clone(),
            is_test: false,
            tools: &[],
            programs: Vec::new(),
        },
        None if args.uplinks => uplinks(&args.arguments)?,
        None => kernel_test(&args.arguments)?,
    };
    let mut failed = Vec::new();
    for release in kernels {
        let begin = Instant::now();
        match on(release, &work) {
            Ok(passed) => println!(
                "vm: {}: ok, {passed} tests passed, {} s",
                release.name(),
                begin.elapsed().as_secs()
            ),
            Err(why) => {
                println!("vm: {}: FAILED: {why:#}", release.name());
                failed.push(release.name());
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

/// Runs the kernel test on one kernel, and returns the number of tests that passed, never 0.
pub fn test(release: Release) -> Result<u32> {
    on(release, &kernel_test(&[])?)
}

/// Runs the lab with VLANs, bonds and bridges on one kernel, and returns the number of tests that
/// passed, never 0.
pub fn test_uplinks(release: Release) -> Result<u32> {
    on(release, &uplinks(&[])?)
}

/// The command to run inside.
struct Work {
    program: PathBuf,
    arguments: Vec<String>,
    /// It is a test: its output must have the number of passed tests.
    is_test: bool,
    /// Programs of this host that it runs, by name.
    tools: &'static [&'static str],
    /// Programs that it runs, at the same paths as here.
    programs: Vec<PathBuf>,
}

/// The test that loads every program and compares it with the library on the host.
fn kernel_test(arguments: &[String]) -> Result<Work> {
    setup::ensure(&Component::BUILD)?;
    let program = build::executable(
        &[
            "test",
            "--package",
            "proxy-userspace",
            "--test",
            "kernel",
            "--no-run",
        ],
        "kernel",
        Profile::Dev,
    )?;
    Ok(Work {
        program,
        arguments: arguments.to_vec(),
        is_test: true,
        tools: &[],
        programs: Vec::new(),
    })
}

/// The lab's test of devices, one case after the other.
fn uplinks(arguments: &[String]) -> Result<Work> {
    setup::ensure(&Component::BUILD)?;
    setup::ensure(&Component::LAB)?;
    setup::ensure(&[Component::Tcpdump])?;
    let build = [
        "build",
        "--package",
        "xtask",
        "--package",
        "proxy-userspace",
    ];
    let programs = ["xtask", "portway"].map(|name| build::executable(&build, name, Profile::Dev));
    let program = build::executable(
        &[
            "test",
            "--package",
            "xtask",
            "--test",
            "uplinks",
            "--no-run",
        ],
        "uplinks",
        Profile::Dev,
    )?;
    let arguments = [&["--test-threads".to_owned(), "1".to_owned()], arguments].concat();
    let programs = programs.into_iter().collect::<Result<_>>()?;
    Ok(Work {
        program,
        arguments,
        is_test: true,
        tools: &["ip", "bridge", "ethtool", "tcpdump"],
        programs,
    })
}

fn on(release: Release, work: &Work) -> Result<u32> {
    setup::ensure(&Component::VM)?;
    let kernel = kernel::fetch(release)?;
    let target = sh::workspace().join("target/vm").join(release.name());
    let image = initramfs::pack(&target, &kernel, work)?;
    println!(
        "vm: booting {} ({})",
        kernel.version,
        kernel.image.display()
    );
    let log = target.join("console.log");
    let outcome = boot::run(&kernel.image, &image, &log)?;
    judge(&outcome, &kernel.version, work.is_test)
        .with_context(|| format!("run {} (see {})", work.program.display(), log.display()))
}

/// Success is an exit status of 0 that came over the console of the right kernel, and of a test
/// also that some were run.
fn judge(outcome: &Outcome, version: &str, is_test: bool) -> Result<u32> {
    let status = outcome
        .status
        .context("the machine ended before the program did")?;
    if status != 0 {
        bail!("exit status {status}");
    }
    if outcome.kernel.as_deref() != Some(version) {
        bail!("{version} was to be booted, but {:?} ran", outcome.kernel);
    }
    if is_test && outcome.passed == 0 {
        bail!("no test was run");
    }
    Ok(outcome.passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(console: &str, is_test: bool) -> Result<u32> {
        judge(&Outcome::read(console), "6.1", is_test)
    }

    #[test]
    fn a_test_that_passed_says_how_many() {
        let console = "vm: kernel 6.1\r\ntest result: ok. 12 passed; 0 failed; 0 ignored\r\nvm: exit status 0\r\n";
        assert_eq!(judged(console, true).expect("passed"), 12);
    }

    #[test]
    fn nothing_else_passes() {
        let none = "vm: kernel 6.1\ntest result: ok. 0 passed; 0 failed\nvm: exit status 0\n";
        assert_eq!(
            judged(none, true).expect_err("no test").to_string(),
            "no test was run"
        );
        let failed =
            "vm: kernel 6.1\ntest result: FAILED. 1 passed; 1 failed\nvm: exit status 101\n";
        assert_eq!(
            judged(failed, true).expect_err("failed").to_string(),
            "exit status 101"
        );
        let panic = "vm: kernel 6.1\nKernel panic - not syncing\n";
        assert!(
            judged(panic, false)
                .expect_err("panic")
                .to_string()
                .contains("ended before")
        );
        let other = "vm: kernel 5.10\nvm: exit status 0\n";
        assert!(
            judged(other, false)
                .expect_err("another kernel")
                .to_string()
                .contains("was to be booted")
        );
    }
}
