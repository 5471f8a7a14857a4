//! `cargo xtask test`: runs every check, the quickest first, and prints a table at the end that also
//! names a step that did not run.

use crate::counts::Counts;
use crate::setup::{self, Component};
use crate::{conform, sh, tidy, vm};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Run every test: sources, units, kernel, lab, other kernels
#[derive(clap::Args)]
pub struct Args {
    /// Directories of cases for the conformance step (without Services' SCTP, which is not
    /// implemented); the step is left out if there is none
    #[arg(
        long,
        value_name = "DIR[:DIR]",
        env = "PORTWAY_CASES",
        value_delimiter = ':'
    )]
    cases: Vec<PathBuf>,
}

/// A target of integration tests, which cargo finds.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    package: String,
    name: String,
}

/// The result of a step.
struct Done {
    name: String,
    counts: Counts,
    /// Why it failed.
    failure: Option<String>,
    time: Duration,
}

/// Runs all steps, also after one has failed; the last line has the numbers of passed and failed
/// tests.
pub fn run(args: &Args) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the kernel and lab tests load programs and make network namespaces: run `cargo xtask test` as root"
        );
    }
    setup::ensure(&Component::ALL)?;
    let mut done = vec![step("tidy", || {
        tidy::run(&tidy::Args::default()).map(|()| Counts {
            passed: 1,
            ..Counts::default()
        })
    })];
    done.push(step("units and fixtures", || {
        cargo_test(&["--workspace", "--lib", "--bins"])
    }));
    for Target { package, name } in targets()? {
        done.push(step(&format!("{package}: {name}"), || {
            cargo_test(&["--package", &package, "--test", &name])
        }));
    }
    if !args.cases.is_empty() {
        done.push(step("conformance", || {
            cargo_test(&conform::arguments(&args.cases)?)
        }));
    }
    for release in vm::Release::ALL {
        let passed = |passed| Counts {
            passed,
            ..Counts::default()
        };
        done.push(step(&format!("vm: kernel {}", release.name()), || {
            vm::test(release).map(passed)
        }));
    }
    let uplinks = || {
        vm::test_uplinks(vm::Release::V6_12).map(|passed| Counts {
            passed,
            ..Counts::default()
        })
    };
    done.push(step("vm: uplinks on 6.12", uplinks));
    let not_run = args
        .cases
        .is_empty()
        .then_some("conformance was not run: no cases were named (`cargo xtask test --cases DIR`)");
    summary(&done, not_run)
}

/// Returns the integration tests, the kernel tests first: if a program does not load, the lab's
/// tests cannot pass.
fn targets() -> Result<Vec<Target>> {
    let metadata =
        sh::output(sh::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let mut targets = integration_tests(&metadata);
    // It needs cases; with them it is a step of its own.
    targets.retain(|target| target.name != conform::TARGET);
    targets.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
    Ok(targets)
}

fn integration_tests(metadata: &Value) -> Vec<Target> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let all = packages.flat_map(|package| {
        let targets = package["targets"].as_array().into_iter().flatten();
        targets
            .filter(|target| target["kind"][0] == "test" && target["test"] != false)
            .map(|target| (&package["name"], &target["name"]))
    });
    all.filter_map(|(package, name)| {
        Some(Target {
            package: package.as_str()?.into(),
            name: name.as_str()?.into(),
        })
    })
    .collect()
}

fn step(name: &str, body: impl FnOnce() -> Result<Counts>) -> Done {
    println!("==> {name}");
    let begin = Instant::now();
    let (counts, failure) = match body() {
        Ok(counts) => (counts, complaint(counts)),
        Err(why) => (Counts::default(), Some(format!("{why:#}"))),
    };
    Done {
        name: name.to_owned(),
        counts,
        failure,
        time: begin.elapsed(),
    }
}

/// Returns why a step has not passed: tests failed, were left out, or none ran.
fn complaint(counts: Counts) -> Option<String> {
    match counts {
        Counts { failed: 1.., .. } => Some("tests failed".into()),
        Counts { ignored: 1.., .. } => Some(format!("{} tests were not run", counts.ignored)),
        Counts { passed: 0, .. } => Some("no test was run".into()),
        _ => None,
    }
}

/// Runs cargo's tests, shows what they print, and counts them.
fn cargo_test(arguments: &[impl AsRef<OsStr>]) -> Result<Counts> {
    let mut cargo = sh::cargo();
    cargo
        .args(["test", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped());
    let (counts, succeeded) = count(&mut cargo)?;
    // Without a failed test it did not compile, or a runner died.
    if !succeeded && counts.failed == 0 {
        bail!("`{}` failed", sh::shown(&cargo));
    }
    Ok(counts)
}

fn count(cargo: &mut Command) -> Result<(Counts, bool)> {
    let mut child = cargo
        .spawn()
        .with_context(|| format!("start {}", sh::shown(cargo)))?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().context("read what the tests print")?).lines() {
        let line = line.context("read what the tests print")?;
        println!("{line}");
        counts.add(Counts::read(&line).unwrap_or_default());
    }
    Ok((
        counts,
        child.wait().context("wait for the tests")?.success(),
    ))
}

fn summary(done: &[Done], not_run: Option<&str>) -> Result<()> {
    println!(
        "\n{:<32} {:<8} {:>6} {:>8}",
        "step", "result", "tests", "seconds"
    );
    for step in done {
        let result = if step.failure.is_none() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "{:<32} {:<8} {:>6} {:>8.1}",
            step.name,
            result,
            step.counts.passed,
            step.time.as_secs_f64()
        );
    }
    for step in done {
        if let Some(why) = &step.failure {
            println!("{}: {why}", step.name);
        }
    }
    not_run.into_iter().for_each(|what| println!("{what}"));
    let (passed, failed) = totals(done);
    // Alone on its line, for whoever reads the end of a log.
    println!("{passed} passed, {failed} failed");
    anyhow::ensure!(failed == 0, "not everything passed");
    Ok(())
}

/// Sums up passed and failed tests. A step that failed without a failed test, for example because it
/// did not compile, counts as one.
fn totals(done: &[Done]) -> (u32, u32) {
    let passed = done.iter().map(|step| step.counts.passed).sum();
    let failed = done
        .iter()
        .map(|step| step.counts.failed.max(u32::from(step.failure.is_some())))
        .sum();
    (passed, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_target_of_integration_tests() {
        let metadata = serde_json::json!({ "packages": [{ "name": "a", "targets": [
            { "kind": ["lib"], "name": "a" }, { "kind": ["test"], "name": "kernel" },
        ]}]});
        assert_eq!(
            integration_tests(&metadata),
            [Target {
                package: "a".into(),
                name: "kernel".into()
            }]
        );
    }

    #[test]
    fn what_did_not_run_did_not_pass() {
        assert!(
            complaint(Counts {
                passed: 3,
                ..Counts::default()
            })
            .is_none()
        );
        assert!(complaint(Counts::default()).is_some());
        assert!(
            complaint(Counts {
                passed: 3,
                ignored: 1,
                failed: 0
            })
            .is_some()
        );
        assert!(
            complaint(Counts {
                passed: 3,
                ignored: 0,
                failed: 1
            })
            .is_some()
        );
    }

    #[test]
    fn a_step_that_did_not_compile_is_a_failure() {
        let broken = step("a", || bail!("did not compile"));
        let partly = step("b", || {
            Ok(Counts {
                passed: 5,
                failed: 2,
                ignored: 0,
            })
        });
        assert_eq!(totals(&[broken, partly]), (5, 3));
    }
}
