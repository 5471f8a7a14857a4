//! A cgroup of a test's own: hooks of sockets are never attached to another one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use portway::dataplane::Cgroup;

/// A cgroup that this process is in until the end.
pub struct Own {
    before: PathBuf,
    path: PathBuf,
}

impl Own {
    /// Makes a cgroup and moves this process there.
    pub fn enter() -> Result<Self> {
        let root = Cgroup::root().context("find cgroup v2")?.path;
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let here = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("find the own cgroup")?;
        let own = Self {
            before: root.join(here),
            path: root.join(format!("portway-test-{}", std::process::id())),
        };
        fs::create_dir(&own.path).context("make a cgroup")?;
        fs::write(own.path.join("cgroup.procs"), "0").context("enter it")?;
        Ok(own)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _left = fs::write(self.before.join("cgroup.procs"), "0");
        let _removed = fs::remove_dir(&self.path);
    }
}
