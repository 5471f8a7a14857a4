//! `cargo xtask load` and `unload`: attaches the programs to devices of this host without a running
//! agent, and removes them again.

use crate::{build, sh};
use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::{if_nameindex, if_nametoindex};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Attach the programs to devices of this host, without a running agent
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// Devices to attach to, separated by commas
    #[arg(long, value_name = "DEV", value_delimiter = ',', required = true)]
    pub device: Vec<String>,
    /// Directory of manifests with Services and EndpointSlices [default: none]
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub pins: Pins,
    /// More flags of `portway agent`, after `--`
    #[arg(last = true, value_name = "FLAGS")]
    pub agent: Vec<String>,
}

/// Remove everything from the kernel that `load` or an agent put there
#[derive(clap::Args, Clone, Debug)]
pub struct UnloadArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub pins: Pins,
}

/// Directory of pinned programs and maps.
#[derive(clap::Args, Clone, Debug)]
pub struct Pins {
    /// The bpffs directory [default: the agent's]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// The loaded programs and maps, and the verifier's figures.
#[derive(Debug)]
pub struct Loaded {
    /// The state after the agent had ended.
    pub left: Status,
    /// Every loaded program, also those that no device needs and that ended with the agent.
    pub verified: Vec<Program>,
}

/// The fields of `portway status -o json` that are shown here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The directory on bpffs.
    pub state_dir: PathBuf,
    /// The attached programs.
    pub hooks: Vec<Hook>,
    /// The programs in the kernel.
    pub programs: Vec<Program>,
    /// Addresses and ports that are served.
    pub frontends: usize,
}

/// A program's place.
#[derive(Debug, Deserialize)]
pub struct Hook {
    /// The device's name.
    pub device: String,
    /// Which hook of the device.
    pub hook: String,
    /// `tcx`, `clsact` or `xdp`.
    pub by: String,
    /// The id of the program; the kernel does not report it for clsact.
    pub program: Option<u32>,
}

/// A program in the kernel.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Number of instructions that the verifier processed (Linux 5.16 and later).
    pub verified_instructions: Option<u32>,
}

/// Builds the agent, lets it attach its programs and end, and prints what stays.
pub fn run_load(args: &LoadArgs) -> Result<()> {
    ensure_root()?;
    print!("{}", load(&build::agent(build::Profile::Dev)?, args)?);
    Ok(())
}

/// Builds the agent and runs its `unload` command.
pub fn run_unload(args: &UnloadArgs) -> Result<()> {
    ensure_root()?;
    unload(&build::agent(build::Profile::Dev)?, &args.pins)
}

/// Lets the agent `portway` bring the kernel in step and end, in the network namespace of the
/// calling thread.
///
/// # Errors
/// If a device is missing, the agent fails, or a device is left without a program; the agent's log is on stderr.
pub fn load(portway: &Path, args: &LoadArgs) -> Result<Loaded> {
    args.device
        .iter()
        .try_for_each(|device| ensure_device(device))?;
    let empty = tempfile::tempdir().context("create a directory without manifests")?;
    let manifests = args.manifests.as_deref().unwrap_or(empty.path());
    let mut agent = command(
        portway,
        &[
            "--log=warn",
            "agent",
            "--once=json",
            "--cgroup=off",
            "--health-bind=off",
            "--metrics-bind=off",
        ],
        &args.pins,
    );
    agent
        .arg("--device")
        .arg(args.device.join(","))
        .arg("--manifests")
        .arg(manifests)
        .args(&args.agent);
    let in_step = status(&mut agent)?;
    let left = status(&mut command(
        portway,
        &["status", "--output=json"],
        &args.pins,
    ))?;
    args.device
        .iter()
        .try_for_each(|device| left.ensure_attached(device))?;
    Ok(Loaded {
        left,
        verified: in_step.programs,
    })
}

/// Lets `portway` remove all that is pinned, and what it holds.
///
/// # Errors
/// If an agent still runs there, or something cannot be removed.
pub fn unload(portway: &Path, pins: &Pins) -> Result<()> {
    sh::run(&mut command(portway, &["unload"], pins))
}

fn ensure_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "programs are loaded and unloaded by root: run it as root"
    );
    Ok(())
}

fn ensure_device(name: &str) -> Result<()> {
    if if_nametoindex(name).is_ok() {
        return Ok(());
    }
    let all = if_nameindex().context("list the devices of this host")?;
    let names: Vec<String> = all
        .iter()
        .map(|device| device.name().to_string_lossy().into_owned())
        .collect();
    bail!(
        "there is no device {name} here; there are: {}",
        names.join(", ")
    )
}

fn command(portway: &Path, arguments: &[&str], pins: &Pins) -> Command {
    let mut command = Command::new(portway);
    command.args(arguments);
    if let Some(dir) = &pins.state_dir {
        command.arg("--state-dir").arg(dir);
    }
    command
}

/// Runs a command that prints a status; its log is the user's to see as it comes.
fn status(command: &mut Command) -> Result<Status> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {}", sh::shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}` ended with {}; what it said is above",
        sh::shown(command),
        output.status
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read what `{}` prints", sh::shown(command)))
}

impl Status {
    fn ensure_attached(&self, device: &str) -> Result<()> {
        for point in ["from_device", "to_device"] {
            let attached = self
                .hooks
                .iter()
                .any(|hook| hook.device == device && hook.hook == point);
            ensure!(
                attached,
                "{device} has no {point}: the kernel refused it; see the agent's log above"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status {
            state_dir,
            hooks,
            frontends,
            ..
        } = &self.left;
        writeln!(
            f,
            "{:<16} {:<12} {:<7} {:>8}",
            "DEVICE", "HOOK", "BY", "PROGRAM"
        )?;
        for Hook {
            device,
            hook,
            by,
            program,
        } in hooks
        {
            writeln!(
                f,
                "{device:<16} {hook:<12} {by:<7} {:>8}",
                or_dash(*program)
            )?;
        }
        writeln!(
            f,
            "\n{:<20} {:>8} {:>22}",
            "PROGRAM", "ID", "VERIFIED INSTRUCTIONS"
        )?;
        for Program {
            id,
            name,
            verified_instructions,
        } in &self.verified
        {
            writeln!(
                f,
                "{name:<20} {id:>8} {:>22}",
                or_dash(*verified_instructions)
            )?;
        }
        writeln!(
            f,
            "\n{frontends} frontends, pinned in {}; `cargo xtask unload` takes it all away",
            state_dir.display()
        )
    }
}

fn or_dash(number: Option<u32>) -> String {
    number.map_or("-".into(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_half_of_its_hooks_is_not_attached() {
        let status = |hooks: &[&str]| {
            let hooks: Vec<_> = hooks.iter().map(|hook: &&str| serde_json::json!({ "device": "d", "hook": hook, "by": "tcx", "program": 7 })).collect();
            let text = serde_json::json!({ "stateDir": "/s", "hooks": hooks, "programs": [], "frontends": 0 });
            serde_json::from_value::<Status>(text).expect("a status")
        };
        assert!(
            status(&["from_device", "to_device"])
                .ensure_attached("d")
                .is_ok()
        );
        assert!(status(&["from_device"]).ensure_attached("d").is_err());
        assert!(
            status(&["from_device", "to_device"])
                .ensure_attached("e")
                .is_err()
        );
    }
}
