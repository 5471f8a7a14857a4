//! Finds what a lab needs of its host: a cgroup2 hierarchy, a mounted bpffs, the project's
//! binaries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::unistd::geteuid;

use super::owned::{Owned, Thing, host_lock};

/// The mount point of bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The binaries that play in a lab.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `xtask` itself, which plays the pods.
    pub xtask: PathBuf,
    /// The agent, `portway`.
    pub portway: PathBuf,
}

impl Tools {
    /// Returns the tools of the `xtask` at this path; `portway` is in the same directory.
    pub fn next_to(xtask: impl Into<PathBuf>) -> Self {
        let xtask = xtask.into();
        Self {
            portway: xtask.with_file_name("portway"),
            xtask,
        }
    }

    /// The tools of the running program, which is `xtask`.
    ///
    /// # Errors
    /// If the kernel does not report its place.
    pub fn of_this_program() -> Result<Self> {
        Ok(Self::next_to(
            std::env::current_exe().context("find this program")?,
        ))
    }
}

/// The parts of the host that a lab uses.
#[derive(Clone, Debug)]
pub struct Host {
    /// The root of the cgroup2 hierarchy.
    pub cgroups: PathBuf,
    /// The root of bpffs.
    pub bpffs: PathBuf,
}

impl Host {
    /// Looks around, and mounts bpffs if that is missing.
    ///
    /// # Errors
    /// If this is not root, there is no cgroup2, or bpffs cannot be mounted.
    pub fn prepare() -> Result<Self> {
        if !geteuid().is_root() {
            bail!(
                "the lab makes network namespaces and loads programs into the kernel: run it as root"
            );
        }
        let cgroups =
            mount_point("cgroup2").context("find a mounted cgroup2 hierarchy in /proc/mounts")?;
        let _lock = host_lock()?;
        if mount_point("bpf").is_none_or(|at| at != Path::new(BPFFS)) {
            mount(
                Some("bpf"),
                BPFFS,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            )
            .context("mount bpffs at /sys/fs/bpf")?;
        }
        Ok(Self {
            cgroups,
            bpffs: PathBuf::from(BPFFS),
        })
    }
}

/// Returns the first mount point of a file system type.
fn mount_point(fs_type: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut line| {
        let (_, at, found) = (line.next()?, line.next()?, line.next()?);
        (found == fs_type).then(|| PathBuf::from(at))
    })
}

/// A directory made by a lab, removed with all in it.
#[derive(Debug)]
pub struct OwnedDir {
    path: PathBuf,
    _owned: Owned,
}

impl OwnedDir {
    /// Makes the cgroup `path`; those below it go with it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cgroup(path: PathBuf) -> Result<Self> {
        Self::make(path, Thing::Cgroup)
    }

    /// Makes the directory `path`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn directory(path: PathBuf) -> Result<Self> {
        Self::make(path, Thing::Directory)
    }

    /// Takes charge of `path`, which somebody else will make.
    pub fn to_be_made(path: PathBuf) -> Self {
        Self {
            _owned: Owned::new(Thing::Directory(path.clone())),
            path,
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn make(path: PathBuf, thing: fn(PathBuf) -> Thing) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            _owned: Owned::new(thing(path.clone())),
            path,
        })
    }
}
