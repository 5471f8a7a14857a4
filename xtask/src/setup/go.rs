//! Go of the version that Kubernetes is written in: the host's where it is new enough, else a
//! toolchain from the module proxy.

use super::found::Found;
use crate::sh;
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kubernetes 1.36 asks for it in its go.mod.
const WANTED: (u32, u32) = (1, 26);
/// The module proxy's toolchain, for hosts with an older Go.
const TOOLCHAIN: &str = "golang.org/toolchain@v0.0.1-go1.26.8.linux-amd64";

/// A `go` that can build the control plane; [`super::ensure`] of [`super::Component::Go`] first.
pub fn go() -> Result<PathBuf> {
    new_enough().ok_or_else(|| {
        anyhow!(
            "no Go {}.{} or newer; `cargo xtask setup` brings it",
            WANTED.0,
            WANTED.1
        )
    })
}

pub(super) fn find() -> Result<Found, String> {
    let go = go().map_err(|why| why.to_string())?;
    let version = version(&go).unwrap_or_default();
    Ok(Found(format!(
        "{} ({}.{})",
        go.display(),
        version.0,
        version.1
    )))
}

/// A Go of any age can fetch a newer one as a module.
pub(super) fn packages() -> Vec<&'static str> {
    if any().is_some() {
        Vec::new()
    } else {
        vec!["golang-go"]
    }
}

pub(super) fn bring() -> Result<()> {
    if new_enough().is_some() {
        return Ok(());
    }
    let go = any().context("find the Go that apt installed")?;
    println!("fetching {TOOLCHAIN} with {} (70 MB)", go.display());
    sh::output(
        Command::new(&go)
            .args(["mod", "download", TOOLCHAIN])
            .env("GOTOOLCHAIN", "local")
            .current_dir("/"),
    )?;
    // Modules are stored without execute permission.
    let root = fetched(&go).context("find the fetched Go in the module cache")?;
    sh::run(
        Command::new("chmod")
            .arg("-R")
            .arg("u+w,+x")
            .args([root.join("bin"), root.join("pkg/tool")]),
    )
}

fn new_enough() -> Option<PathBuf> {
    let hosts = candidates();
    let fetched = hosts
        .iter()
        .find_map(|go| fetched(go))
        .map(|root| root.join("bin/go"));
    hosts
        .into_iter()
        .chain(fetched)
        .find(|go| version(go).is_some_and(|version| version >= WANTED))
}

fn any() -> Option<PathBuf> {
    candidates().into_iter().find(|go| version(go).is_some())
}

fn candidates() -> Vec<PathBuf> {
    sh::find_program("go")
        .into_iter()
        .chain(Some(PathBuf::from("/usr/local/go/bin/go")))
        .filter(|go| go.is_file())
        .collect()
}

fn fetched(go: &Path) -> Option<PathBuf> {
    let cache = sh::output(
        Command::new(go)
            .args(["env", "GOMODCACHE"])
            .env("GOTOOLCHAIN", "local")
            .current_dir("/"),
    )
    .ok()?;
    let root = Path::new(cache.trim()).join(TOOLCHAIN);
    root.join("bin/go").is_file().then_some(root)
}

fn version(go: &Path) -> Option<(u32, u32)> {
    // Only what is installed counts: a go.mod nearby could ask for another one.
    let text = sh::output(
        Command::new(go)
            .arg("version")
            .env("GOTOOLCHAIN", "local")
            .current_dir("/"),
    )
    .ok()?;
    parse_version(&text)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("go1."))?;
    let minor: String = number.chars().take_while(char::is_ascii_digit).collect();
    Some((1, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_version_prints() {
        assert_eq!(
            parse_version("go version go1.26.8 linux/amd64\n"),
            Some((1, 26))
        );
        assert_eq!(
            parse_version("go version go1.19 linux/amd64\n"),
            Some((1, 19))
        );
        assert_eq!(parse_version("go: command not found"), None);
    }
}
