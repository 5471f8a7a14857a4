//! Builds the eBPF object `portway-ebpf` and puts it into OUT_DIR; the agent embeds it from there.
//!
//! Not aya-build: it supports the nightly of rustup only, reports "os error 2" for a missing tool,
//! and turns each line of an inner compile error into a warning. `PORTWAY_EBPF_OBJECT=FILE` uses an
//! object that was built elsewhere.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use toolchain::{Core, TARGET, Toolchain, find_linker, find_toolchain};

const BIN: &str = "portway-ebpf";

fn main() -> ExitCode {
    match provide_object() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn provide_object() -> Result<(), String> {
    watch_sources();
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let object = match env::var_os("PORTWAY_EBPF_OBJECT") {
        Some(file) => PathBuf::from(file),
        None => build(&out_dir.join("ebpf"))?,
    };
    println!("cargo::rerun-if-changed={}", object.display());
    fs::copy(&object, out_dir.join(BIN))
        .map(drop)
        .map_err(|why| format!("cannot take the eBPF object {}: {why}", object.display()))
}

fn watch_sources() {
    println!("cargo::rerun-if-env-changed=PORTWAY_EBPF_OBJECT");
    for file in [
        "build.rs",
        "build",
        "../proxy-ebpf",
        "../proxy-common/src",
        "../proxy-common/Cargo.toml",
        "../Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={file}");
    }
}

fn build(target_dir: &Path) -> Result<PathBuf, String> {
    let toolchain = find_toolchain(Path::new(&variable("RUSTC")?)).map_err(|refusals| {
        let mut why =
            String::from("no Rust toolchain here can build the eBPF object; `cargo xtask setup` brings what is missing");
        refusals.iter().for_each(|refusal| why.push_str(&format!("\n{refusal}")));
        why
    })?;
    let linker = find_linker().ok_or(
        "bpf-linker, which links the eBPF object, is not installed; `cargo xtask setup` brings it",
    )?;
    let mut cargo = cargo(&toolchain, &linker, target_dir)?;
    let status = cargo
        .status()
        .map_err(|why| format!("cannot start {}: {why}", cargo.get_program().display()))?;
    if !status.success() {
        return Err(format!(
            "the eBPF object did not compile with {} ({status}); the compiler's words are below",
            toolchain.name
        ));
    }
    Ok(target_dir.join(TARGET).join("ebpf").join(BIN))
}

/// A cargo of its own target directory, because the outer cargo holds the lock of the workspace's.
fn cargo(toolchain: &Toolchain, linker: &Path, target_dir: &Path) -> Result<Command, String> {
    let bin = toolchain.sysroot.join("bin");
    let mut cargo = Command::new(bin.join("cargo"));
    // What the outer cargo, clippy or rustup set for the host must not reach the kernel's compiler.
    for (name, _) in env::vars_os().filter(|(name, _)| is_outer(name)) {
        cargo.env_remove(name);
    }
    cargo.env("RUSTC", bin.join("rustc"));
    // aya-ebpf reads registers and syscall conventions of the machine on which the program will
    // run.
    cargo.env("AYA_BPF_TARGET_ARCH", variable("CARGO_CFG_TARGET_ARCH")?);
    // Inline assembly for BPF and build-std are unstable, and stable is what people have.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    cargo.args([
        "build",
        "--package",
        "proxy-ebpf",
        "--bin",
        BIN,
        "--features",
        "kernel",
        "--profile",
        "ebpf",
        "--target",
        TARGET,
    ]);
    cargo.arg("--target-dir").arg(target_dir);
    if toolchain.core == Core::Source {
        cargo.arg("-Zbuild-std=core");
    }
    Ok(cargo)
}

fn is_outer(name: &OsString) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"];
    let ours = name.starts_with("CARGO")
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTFLAGS")
        || name == "RUSTUP_TOOLCHAIN";
    ours && !KEPT.contains(&name)
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
