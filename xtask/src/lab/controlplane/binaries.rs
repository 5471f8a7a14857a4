//! Owns where the control plane's programs come from: `$KUBEBUILDER_ASSETS`, `PATH`, else one build
//! of the pinned Go module, kept in a cache that outlives the checkout.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Component};

const GO_MOD: &str = include_str!("../../../controlplane/go.mod");
const GO_SUM: &str = include_str!("../../../controlplane/go.sum");
const MAIN_GO: &str = include_str!("../../../controlplane/main.go");

/// The programs of a control plane, each found once.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The API server.
    pub apiserver: Program,
    /// The controller manager.
    pub controller_manager: Program,
    /// kube-proxy, for comparison.
    pub proxy: Program,
    /// The API server's store.
    pub etcd: Program,
}

/// A program and, where several share one file, the word that chooses it.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file to execute.
    pub path: PathBuf,
    /// The first argument, if the file holds several programs.
    pub chosen_by: Option<&'static str>,
}

impl Binaries {
    /// Finds every program, and builds those of Kubernetes that are nowhere; that takes minutes,
    /// once per machine.
    pub fn find() -> Result<Self> {
        Ok(Self {
            apiserver: component("kube-apiserver")?,
            controller_manager: component("kube-controller-manager")?,
            proxy: component("kube-proxy")?,
            etcd: etcd()?,
        })
    }
}

/// The pinned Kubernetes version, such as `v1.36.3`.
pub fn version() -> Result<&'static str> {
    GO_MOD
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("k8s.io/kubernetes v")
                .map(|_| line.trim())
        })
        .and_then(|line| line.split_whitespace().nth(1))
        .context("find the version of k8s.io/kubernetes in xtask/controlplane/go.mod")
}

fn etcd() -> Result<Program> {
    let path = candidates("etcd").find(|path| path.is_file());
    Ok(Program {
        path: path.context(
            "find etcd (Debian's package is etcd-server; `cargo xtask setup` installs it)",
        )?,
        chosen_by: None,
    })
}

fn component(name: &'static str) -> Result<Program> {
    match candidates(name).find(|path| path.is_file() && is_wanted_version(path)) {
        Some(path) => Ok(Program {
            path,
            chosen_by: None,
        }),
        None => Ok(Program {
            path: built()?,
            chosen_by: Some(name),
        }),
    }
}

fn candidates(name: &str) -> impl Iterator<Item = PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path: Vec<PathBuf> = env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .collect();
    let name = name.to_owned();
    assets
        .into_iter()
        .chain(path)
        .map(move |dir| dir.join(&name))
}

/// Another minor version behaves otherwise, so it is passed over.
fn is_wanted_version(path: &Path) -> bool {
    let Ok(wanted) = version() else { return false };
    let Some((minor, _patch)) = wanted.rsplit_once('.') else {
        return false;
    };
    let said = Command::new(path)
        .arg("--version")
        .output()
        .map(|out| out.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&said).starts_with(&format!("Kubernetes {minor}."))
}

/// The cached binary that holds all of Kubernetes' programs, built now if it is not there.
fn built() -> Result<PathBuf> {
    let dir = cache_dir()?.join(format!("controlplane-{}-{}", version()?, fingerprint()));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let binary = dir.join("controlplane");
    // Tests run at once; whoever comes second waits for the first one's build.
    let lock =
        File::create(dir.join("lock")).context("create the lock of the control plane's cache")?;
    lock.lock().context("lock the control plane's cache")?;
    if !binary.is_file() {
        build(&dir, &binary)?;
    }
    Ok(binary)
}

fn build(dir: &Path, binary: &Path) -> Result<()> {
    let version = version()?;
    eprintln!(
        "building kube-apiserver, kube-controller-manager and kube-proxy {version} from Go modules, once: some minutes, 3 GB of Go's caches"
    );
    for (name, text) in [("go.mod", GO_MOD), ("go.sum", GO_SUM), ("main.go", MAIN_GO)] {
        fs::write(dir.join(name), text)
            .with_context(|| format!("write {name} to {}", dir.display()))?;
    }
    let unfinished = binary.with_extension("unfinished");
    let status = Command::new(go()?)
        .args([
            "build",
            "-trimpath",
            "-tags=grpcnotrace",
            "-gcflags=all=-dwarf=false",
        ])
        .arg(format!("-ldflags={}", linker_flags(version)))
        .arg("-o")
        .arg(&unfinished)
        .arg(".")
        .current_dir(dir)
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOWORK", "off"),
            ("GOFLAGS", "-mod=readonly -buildvcs=false"),
        ])
        .status()
        .context("run go build")?;
    ensure!(
        status.success(),
        "go build of the control plane in {} failed: {status}",
        dir.display()
    );
    fs::rename(&unfinished, binary).context("put the control plane's binary into the cache")
}

/// Returns the linker flags of Kubernetes' own build, so that the programs report their version;
/// without symbols.
fn linker_flags(version: &str) -> String {
    let package = "k8s.io/component-base/version";
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

/// The host's, or a newer one that setup brings: only here, because where Kubernetes' programs are
/// found Go is not needed.
fn go() -> Result<PathBuf> {
    setup::ensure(&[Component::Go])?;
    setup::go()
}

fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("PORTWAY_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = env::home_dir().context("find the home directory (or set PORTWAY_CACHE)")?;
    Ok(env::var_os("XDG_CACHE_HOME")
        .map_or(home.join(".cache"), PathBuf::from)
        .join("portway"))
}

fn fingerprint() -> String {
    let all = [GO_MOD, GO_SUM, MAIN_GO].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, all.as_bytes());
    digest
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
