//! The lints of what is compiled for the kernel: clippy over the host's code sees neither proxy-ebpf/src/main.rs nor what it instantiates.

use crate::setup::{self, Core, TARGET, Toolchain};
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Runs clippy as the agent's build script runs the compiler: the same toolchain, target and features.
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
    // What the outer cargo or rustup chose is for the host.
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
    // Beside the host's, so that neither throws away what the other has compiled.
    command.args(["--target", TARGET, "--target-dir", "target/kernel-lints"]);
    if toolchain.core == Core::Source {
        command.arg("-Zbuild-std=core");
    }
    command.args(["--", "-D", "warnings"]);
    command
}
