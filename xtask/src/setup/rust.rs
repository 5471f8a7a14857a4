//! Rust for the kernel: a toolchain with `core` for BPF, bpf-linker, and the linters, by rustup,
//! Debian's packages or cargo.

#[path = "../../../proxy-userspace/build/toolchain.rs"]
mod toolchain;

use super::apt;
use super::found::Found;
use crate::sh;
use anyhow::{Context, Result, anyhow, bail};
use std::path::Path;
use std::process::Command;
use toolchain::LINKER_LLVM;

pub use toolchain::{Core, TARGET, Toolchain};

/// Packages for compiling and running bpf-linker.
pub(super) const LINKER_PACKAGES: &[&str] = &[
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "gcc",
    "libc6-dev",
];
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The toolchain that compiles the eBPF object.
///
/// # Errors
/// If there is none; the error has what each lacks.
pub fn kernel_toolchain() -> Result<Toolchain> {
    toolchain::find_toolchain(Path::new("rustc")).map_err(|refusals| {
        anyhow!(
            "no Rust here compiles for the kernel: {}",
            refusals.join("; ")
        )
    })
}

pub(super) fn find_core() -> Result<Found, String> {
    match toolchain::find_toolchain(Path::new("rustc")) {
        Ok(found) => Ok(Found(format!(
            "{}, {} ({})",
            found.name,
            found.sysroot.display(),
            core_words(found.core)
        ))),
        Err(refusals) => Err(refusals.join("; ")),
    }
}

fn core_words(core: Core) -> &'static str {
    match core {
        Core::Source => "core from rust-src",
        Core::Compiled => "core precompiled",
    }
}

/// Debian's Rust has a compiled core; rustup's comes by rustup.
pub(super) fn core_packages() -> Vec<&'static str> {
    if is_debians() {
        vec!["libstd-rust-web-dev-bpf"]
    } else {
        Vec::new()
    }
}

pub(super) fn bring_core() -> Result<()> {
    if find_core().is_ok() {
        return Ok(());
    }
    if !has_rustup() {
        bail!(
            "this Rust is neither rustup's nor Debian's rustc-web: please add its rust-src, or install rustup"
        );
    }
    println!("installing with rustup: rust-src (3 MB)");
    sh::run(Command::new("rustup").args(["component", "add", "rust-src"]))
}

pub(super) fn find_lints() -> Result<Found, String> {
    for lint in ["fmt", "clippy"] {
        sh::output(sh::cargo().args([lint, "--version"]))
            .map_err(|_| format!("no `cargo {lint}`"))?;
    }
    Ok(Found("`cargo fmt` and `cargo clippy`".into()))
}

pub(super) fn lint_packages() -> Vec<&'static str> {
    if is_debians() {
        vec!["rust-web-clippy", "rustfmt-web"]
    } else {
        Vec::new()
    }
}

pub(super) fn bring_lints() -> Result<()> {
    if find_lints().is_ok() {
        return Ok(());
    }
    println!("installing with rustup: rustfmt, clippy (6 MB)");
    sh::run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

pub(super) fn find_linker() -> Result<Found, String> {
    let linker = toolchain::find_linker().ok_or("not on the PATH nor in cargo's bin")?;
    let version =
        sh::output(Command::new(&linker).arg("--version")).map_err(|why| format!("{why:#}"))?;
    Ok(Found(format!("{} ({})", linker.display(), version.trim())))
}

pub(super) fn bring_linker() -> Result<()> {
    println!("compiling bpf-linker {LINKER_VERSION} with LLVM {LINKER_LLVM} (2 min)");
    let mut cargo = Command::new("cargo");
    cargo.args([
        "install",
        "--locked",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--no-default-features",
        "--features",
        "llvm-22",
    ]);
    cargo
        .env("LLVM_PREFIX", LINKER_LLVM_PREFIX)
        .current_dir("/");
    sh::run(&mut cargo).context("compile bpf-linker")
}

fn has_rustup() -> bool {
    sh::find_program("rustup").is_some()
}

fn is_debians() -> bool {
    let sysroot =
        sh::output(Command::new("rustc").args(["--print", "sysroot"])).unwrap_or_default();
    sysroot.trim() == "/usr" && apt::offers("libstd-rust-web-dev-bpf")
}
