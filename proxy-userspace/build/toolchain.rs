//! Finds a Rust toolchain and a linker that can build for the kernel; the build script uses them,
//! `cargo xtask setup` looks for them.
//!
//! Only std: this file is also a part of a build script. It starts `rustc` and `rustup` to ask, and
//! changes nothing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the eBPF object: little-endian BPF, for all hosts that are supported.
pub const TARGET: &str = "bpfel-unknown-none";

/// The newest LLVM with bitcode that our bpf-linker reads; a toolchain with a newer one cannot
/// link.
pub const LINKER_LLVM: u32 = 22;

/// The source of `core` for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled by us from rust-src, with `-Z build-std=core`.
    Source,
    /// Precompiled, as Debian's libstd-rust-web-dev-bpf has it.
    Compiled,
}

/// A Rust toolchain that can build for the kernel.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Its name in messages.
    pub name: String,
    /// The directory that holds `bin/cargo`, `bin/rustc` and `lib/rustlib`.
    pub sysroot: PathBuf,
    /// The source of its `core`.
    pub core: Core,
}

/// The first toolchain that can build for the kernel, or why each that was looked at cannot.
///
/// In this order: rustup's nightly, the toolchain of the running cargo (`rustc`), rustup's stable,
/// Debian's in /usr.
pub fn find_toolchain(rustc: &Path) -> Result<Toolchain, Vec<String>> {
    let mut refusals = Vec::new();
    for (name, sysroot) in candidates(rustc) {
        match judge(&sysroot) {
            Ok(core) => {
                return Ok(Toolchain {
                    name,
                    sysroot,
                    core,
                });
            }
            Err(why) => refusals.push(format!("{name} ({}): {why}", sysroot.display())),
        }
    }
    Err(refusals)
}

fn candidates(rustc: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut add = |name: &str, sysroot: Option<PathBuf>| {
        if let Some(sysroot) = sysroot
            && !found.iter().any(|(_, known)| *known == sysroot)
        {
            found.push((name.to_owned(), sysroot));
        }
    };
    add("rustup's nightly", rustup_sysroot("nightly"));
    add(
        "the current toolchain",
        sysroot_of(&mut Command::new(rustc)),
    );
    add("rustup's stable", rustup_sysroot("stable"));
    add(
        "Debian's Rust",
        Path::new("/usr/bin/cargo")
            .exists()
            .then(|| PathBuf::from("/usr")),
    );
    found
}

/// Asks only for toolchains that `rustup` lists, because it would download any other.
fn rustup_sysroot(channel: &str) -> Option<PathBuf> {
    let list = Command::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .ok()?;
    let list = String::from_utf8(list.stdout).ok()?;
    list.lines()
        .find(|line| line.starts_with(&format!("{channel}-")))?;
    sysroot_of(
        Command::new("rustup")
            .args(["run", channel, "rustc"])
            .env_remove("RUSTUP_TOOLCHAIN"),
    )
}

fn sysroot_of(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

fn judge(sysroot: &Path) -> Result<Core, String> {
    let rustlib = sysroot.join("lib/rustlib");
    if !sysroot.join("bin/cargo").exists() {
        return Err("has no cargo".into());
    }
    let core = if rustlib.join("src/rust/library/core/src/lib.rs").exists()
        && rustlib.join("src/rust/library/Cargo.lock").exists()
    {
        Core::Source
    } else if has_core(&rustlib.join(TARGET).join("lib")) {
        Core::Compiled
    } else {
        return Err(format!(
            "has neither rust-src nor a compiled core for {TARGET}"
        ));
    };
    match llvm_of(&sysroot.join("bin/rustc")) {
        Some(llvm) if llvm <= LINKER_LLVM => Ok(core),
        Some(llvm) => Err(format!(
            "its LLVM is {llvm}, newer than the linker's {LINKER_LLVM}"
        )),
        None => Err("its rustc does not say which LLVM it has".into()),
    }
}

fn has_core(lib: &Path) -> bool {
    let Ok(entries) = fs::read_dir(lib) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn llvm_of(rustc: &Path) -> Option<u32> {
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    parse_llvm(&String::from_utf8(output.stdout).ok()?)
}

fn parse_llvm(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// The bpf-linker on PATH, else the one that `cargo install` leaves in cargo's home.
pub fn find_linker() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| file.is_file())
}
