//! Debian's cloud kernels: fetched once by apt with lists of its own, and unpacked into xtask's
//! cache.

use crate::setup::DEBIAN_KEYS;
use crate::sh;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel that is tested, by the version that people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// Debian 11, bullseye.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12, bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, trixie.
    #[value(name = "6.12")]
    V6_12,
}

impl Release {
    /// All, oldest first: the oldest verifier is the likeliest to refuse.
    pub const ALL: [Self; 3] = [Self::V5_10, Self::V6_1, Self::V6_12];

    /// Returns the name that people type.
    pub fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }
}

/// A kernel in the cache.
pub struct Kernel {
    /// The version as `uname -r` prints it.
    pub version: String,
    /// The kernel image.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// URLs of Debian's suites: the mirrors, and the archive to which old ones move.
const ARCHIVES: [&str; 2] = [
    "http://deb.debian.org/debian",
    "http://archive.debian.org/debian",
];

/// The kernel of this release; from the archive where the cache does not have it.
pub fn fetch(release: Release) -> Result<Kernel> {
    let cache = sh::workspace()
        .join("xtask/.cache/kernels")
        .join(release.name());
    if let Ok(kernel) = unpacked(&cache) {
        return Ok(kernel);
    }
    let unfinished = cache.with_extension("part");
    let _ = fs::remove_dir_all(&unfinished);
    download(release, &unfinished)
        .with_context(|| format!("fetch Debian's kernel {}", release.name()))?;
    let _ = fs::remove_dir_all(&cache);
    fs::rename(&unfinished, &cache).context("keep the fetched kernel")?;
    unpacked(&cache)
}

fn unpacked(cache: &Path) -> Result<Kernel> {
    let boot = fs::read_dir(cache.join("boot")).context("look for a cached kernel")?;
    for entry in boot {
        let image = entry.context("list the cached kernel")?.path();
        let name = image
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok(Kernel {
                version: version.to_owned(),
                modules: modules(cache, version),
                image,
            });
        }
    }
    bail!("{} has no vmlinuz", cache.display())
}

/// Debian 13 has merged /lib into /usr/lib inside its packages too.
fn modules(cache: &Path, version: &str) -> PathBuf {
    let merged = cache.join("usr/lib/modules").join(version);
    if merged.is_dir() {
        merged
    } else {
        cache.join("lib/modules").join(version)
    }
}

fn download(release: Release, dir: &Path) -> Result<()> {
    let mut refusals = Vec::new();
    for archive in ARCHIVES {
        match Apt::new(dir, archive, release.suite()).and_then(|apt| apt.unpack_kernel()) {
            Ok(()) => return Ok(()),
            Err(why) => refusals.push(format!("{archive}: {why:#}")),
        }
    }
    bail!("no archive has it: {}", refusals.join("; "))
}

/// apt with lists, sources and cache of its own, so that the host's stay as they are.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path, archive: &str, suite: &str) -> Result<Self> {
        fs::create_dir_all(dir.join("apt/lists/partial")).context("make a directory for apt")?;
        fs::create_dir_all(dir.join("apt/archives/partial")).context("make a directory for apt")?;
        let source =
            format!("deb [signed-by={DEBIAN_KEYS} check-valid-until=no] {archive} {suite} main\n");
        fs::write(dir.join("apt/sources.list"), source).context("write apt's sources")?;
        fs::write(dir.join("apt/status"), "").context("write apt's status")?;
        let apt = Self {
            dir: dir.to_path_buf(),
        };
        sh::output(apt.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn unpack_kernel(&self) -> Result<()> {
        // The metapackage names the one that has the kernel.
        let meta = sh::output(
            self.command("apt-cache")
                .args(["depends", "linux-image-cloud-amd64"]),
        )?;
        let package = first_dependency(&meta)
            .context("find the kernel that linux-image-cloud-amd64 stands for")?;
        println!("vm: fetching {package}");
        sh::output(self.command("apt-get").args(["download", &package]))?;
        let packages: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let deb = packages
            .iter()
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .context("find the fetched package")?;
        sh::output(
            Command::new("dpkg-deb")
                .arg("--extract")
                .args([deb, &self.dir]),
        )?;
        fs::remove_file(deb).context("remove the unpacked package")?;
        fs::remove_dir_all(self.dir.join("apt")).context("remove apt's lists")
    }

    fn command(&self, program: &str) -> Command {
        let apt = self.dir.join("apt");
        let mut command = Command::new(program);
        for (key, value) in [("sourcelist", "sources.list"), ("sourceparts", "none")] {
            command
                .arg("-o")
                .arg(format!("Dir::Etc::{key}={}", apt.join(value).display()));
        }
        for (key, value) in [
            ("State::lists", "lists"),
            ("State::status", "status"),
            ("Cache", ""),
            ("Cache::archives", "archives"),
        ] {
            command
                .arg("-o")
                .arg(format!("Dir::{key}={}", apt.join(value).display()));
        }
        // The sandbox's user cannot write into our directory; descriptions and icons are of no use
        // here.
        for option in [
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "Acquire::Languages=none",
        ] {
            command.args(["-o", option]);
        }
        command.args([
            "-o",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ]);
        command.env("LC_ALL", "C").current_dir(&self.dir);
        command
    }
}

fn first_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernel_behind_the_metapackage() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-5.10.0-32-cloud-amd64\n";
        assert_eq!(
            first_dependency(depends).as_deref(),
            Some("linux-image-5.10.0-32-cloud-amd64")
        );
    }
}
