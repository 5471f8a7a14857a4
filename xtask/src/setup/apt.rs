//! apt-get on Debian and Ubuntu: refreshes old lists, reports the size of an installation, and
//! installs.

use crate::sh;
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The keys that sign Debian's archive, of all suites.
pub const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists older than this may name versions that the archive no longer has.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Installs `packages` and what they depend on; elsewhere than on Debian and Ubuntu an error that
/// names them.
pub fn install(packages: &[&str]) -> Result<()> {
    if sh::find_program("apt-get").is_none() {
        bail!(
            "this host has no apt-get; please install what these Debian packages hold: {}",
            packages.join(" ")
        );
    }
    if lists_are_old() {
        println!("refreshing apt's lists");
        sh::run(apt()?.args(["update", "-qq"]))?;
    }
    println!("installing with apt: {}", packages.join(" "));
    for line in sizes(packages)? {
        println!("  {line}");
    }
    sh::run(
        apt()?
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

/// Returns true if apt has an installable version of this package.
pub fn offers(package: &str) -> bool {
    let policy = sh::output(
        Command::new("apt-cache")
            .args(["policy", package])
            .env("LC_ALL", "C"),
    )
    .unwrap_or_default();
    policy
        .lines()
        .any(|line| line.trim_start().starts_with("Candidate:") && !line.ends_with("(none)"))
}

/// apt touches `partial` whenever it fetches lists, and images are made without any.
fn lists_are_old() -> bool {
    let lists = Path::new("/var/lib/apt/lists");
    let some = fs::read_dir(lists).is_ok_and(|mut all| all.any(|entry| is_package_list(&entry)));
    let age = fs::metadata(lists.join("partial"))
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.elapsed().ok());
    !some || age.is_none_or(|age| age > LISTS_MAX_AGE)
}

fn is_package_list(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry
        .as_ref()
        .is_ok_and(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// The lines of apt with the sizes of the download and of the installation.
fn sizes(packages: &[&str]) -> Result<Vec<String>> {
    let dry = ["install", "--assume-no", "--no-install-recommends"];
    // It answers its own question with no, and calls that a failure.
    let output = Command::new("apt-get")
        .args(dry)
        .args(packages)
        .env("LC_ALL", "C")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: Vec<String> = text
        .lines()
        .filter(|line| is_size(line))
        .map(str::to_owned)
        .collect();
    if told.is_empty() && !output.status.success() {
        bail!(
            "apt cannot install {}: {}",
            packages.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(told)
}

fn is_size(line: &str) -> bool {
    line.starts_with("Need to get") || line.starts_with("After this operation")
}

fn apt() -> Result<Command> {
    let mut command = as_root("apt-get")?;
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    Ok(command)
}

/// The program as root: as it is where we are root, else through sudo.
fn as_root(program: &str) -> Result<Command> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if sh::find_program("sudo").is_none() {
        bail!("installing needs root, and there is no sudo; run `cargo xtask setup` as root");
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--preserve-env=DEBIAN_FRONTEND,LC_ALL", program]);
    Ok(sudo)
}
