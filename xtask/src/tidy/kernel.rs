//! The lints of the eBPF binary: clippy over the host's code sees neither proxy-ebpf/src/main.rs nor
//! the generic functions that it instantiates.

use crate::setup::{self, Core, TARGET, Toolchain};
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Runs clippy with the toolchain, target and features that the agent's build script uses.
pub fn lint() -> Result<()> {
    let toolchain = setup::kernel_toolchain()?;
    let clippy = toolchain.sysroot.join("bin/cargo-clippy");
    ensure!(
        clippy.exists(),
        "{} compiles the eBPF object and has no clippy; please add it there",
        toolchain.name
    );
    sh::run(&mut command(&toolchain, &clippy)).context("check the lints of the eBPF binary")
}

fn command(toolchain: &Toolchain, clippy: &Path) -> Command {
    let bin = toolchain.sysroot.join("bin");
    let mut command = Command::new(clippy);
    command
        .current_dir(sh::workspace())
        .env("CARGO", bin.join("cargo"))
        .env("RUSTC", bin.join("rustc"));
    // The outer cargo or rustup has set these for the host.
    for name in [
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    command
        .env("AYA_BPF_TARGET_ARCH", std::env::consts::ARCH)
        .env("RUSTC_BOOTSTRAP", "1");
    command.args([
        "clippy",
        "--quiet",
        "--package",
        "proxy-ebpf",
        "--bin",
        "portway-ebpf",
        "--features",
        "kernel",
    ]);
    // A target directory of its own: otherwise each run would discard the other's output.
    command.args(["--target", TARGET, "--target-dir", "target/kernel-lints"]);
    if toolchain.core == Core::Source {
        command.arg("-Zbuild-std=core");
    }
    command.args(["--", "-D", "warnings"]);
    command
}
