//! The cgroup (v2) that the socket hooks are attached to: named by the operator, or found.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// A file that every cgroup but the root has.
const NOT_OF_THE_ROOT: &str = "cgroup.type";
/// Greatest number of cgroups that are searched for the path of one.
const LOOKED_AT: usize = 10_000;

/// The processes that get the socket hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CgroupChoice {
    /// All processes: the hooks are attached to the root of the hierarchy, at the mount point of
    /// cgroup v2.
    #[default]
    Auto,
    /// The processes in this cgroup and below it.
    At(PathBuf),
    /// No processes.
    Off,
}

impl FromStr for CgroupChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err(format!(
                "`{text}` is neither an absolute path nor auto nor off"
            )),
        }
    }
}

/// A cgroup, open.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// The open directory.
    pub file: File,
    /// Its id in the kernel.
    pub id: u64,
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Cgroup {
    /// The cgroup of a directory.
    ///
    /// # Errors
    /// If it is none of cgroup v2.
    pub fn at(path: &Path) -> Result<Self> {
        let kind = statfs(path)
            .with_context(|| format!("look at {}", path.display()))?
            .filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            bail!("{} is no cgroup of version 2", path.display());
        }
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let id = file
            .metadata()
            .with_context(|| format!("look at {}", path.display()))?
            .ino();
        Ok(Self {
            path: path.to_owned(),
            file,
            id,
        })
    }

    /// The root of the hierarchy.
    ///
    /// # Errors
    /// If it is not mounted, or only a part of it, as in a container.
    pub fn root() -> Result<Self> {
        let mounts = mounts(&read_mounts()?);
        let Some(any) = mounts.first() else {
            bail!("no cgroup of version 2 is mounted")
        };
        let root = mounts
            .iter()
            .find(|path| !path.join(NOT_OF_THE_ROOT).exists());
        match root {
            Some(path) => Self::at(path),
            None => bail!(
                "{} is the cgroup of a container, not the host's root; name that with --cgroup",
                any.display()
            ),
        }
    }
}

/// Returns the path of the cgroup with this id; `None` if it is not found.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let mut next = mounts(&read_mounts().ok()?);
    for _ in 0..LOOKED_AT {
        let path = next.pop()?;
        if fs::metadata(&path).is_ok_and(|is| is.ino() == id) {
            return Some(path);
        }
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        next.extend(
            below
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    None
}

fn read_mounts() -> Result<String> {
    fs::read_to_string("/proc/mounts").context("read /proc/mounts")
}

fn mounts(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line: &str| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_found_or_not_wanted() {
        for (typed, meant) in [
            ("auto", CgroupChoice::Auto),
            ("off", CgroupChoice::Off),
            ("/a", CgroupChoice::At("/a".into())),
        ] {
            assert_eq!(typed.parse(), Ok(meant));
        }
        assert!("sys/fs/cgroup".parse::<CgroupChoice>().is_err());
    }

    #[test]
    fn version_1_is_not_taken_for_version_2() {
        let text =
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        assert_eq!(mounts(text), Vec::<PathBuf>::new());
        let hybrid = format!("{text}cgroup2 /sys/fs/cgroup/my\\040own cgroup2 rw 0 0\n");
        assert_eq!(mounts(&hybrid), [PathBuf::from("/sys/fs/cgroup/my own")]);
        assert!(Cgroup::at(Path::new("/proc")).is_err());
    }
}
