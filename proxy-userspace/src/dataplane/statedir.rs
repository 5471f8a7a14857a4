//! The directory of one agent on bpffs: where its maps, programs and hooks are pinned, and the lock
//! that says that it lives.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// The conventional mount point of bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// Paths below a state directory. Names on bpffs must not contain dots.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// The lock on a state directory; dropping it unlocks.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

impl StateDir {
    /// The default state directory.
    pub const USUAL: &str = "/sys/fs/bpf/portway";

    /// Names a directory that may not exist yet, for reading.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the directory and those in it, and mounts bpffs if it is missing.
    pub fn create(root: &Path) -> Result<Self> {
        let dir = Self::at(root);
        if !dir.root.starts_with(BPFFS) {
            fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        }
        mount_bpffs(if root.starts_with(BPFFS) {
            Path::new(BPFFS)
        } else {
            root
        })?;
        for sub in [
            dir.maps(),
            dir.programs(),
            dir.hooks(),
            dir.sockets(),
            dir.qdiscs(),
        ] {
            fs::create_dir_all(&sub).with_context(|| format!("create {}", sub.display()))?;
        }
        Ok(dir)
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of pinned maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Returns the pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Returns the pin of a map until the programs that use it have taken over.
    pub fn incoming(&self, name: &str) -> PathBuf {
        self.maps().join(format!("{name}-new"))
    }

    /// Returns the directory of pinned programs that are run from user space.
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Returns the directory with one entry for each hook: a pinned link, or a directory that
    /// stands for a clsact filter.
    pub fn hooks(&self) -> PathBuf {
        self.root.join("hooks")
    }

    /// Returns the directory of the pinned links of the socket hooks, by program.
    pub fn sockets(&self) -> PathBuf {
        self.root.join("sockets")
    }

    /// Returns the directory with one entry, by index, for each device with a clsact qdisc that an
    /// agent made.
    pub fn qdiscs(&self) -> PathBuf {
        self.root.join("qdiscs")
    }

    /// Locks the directory. Fails if another agent has it.
    pub fn lock(&self) -> Result<Lock> {
        match self.try_lock()? {
            Some(lock) => Ok(lock),
            None => bail!(
                "{} belongs to another agent that is running",
                self.root.display()
            ),
        }
    }

    /// Returns true if an agent holds the directory now.
    pub fn is_locked(&self) -> Result<bool> {
        Ok(self.try_lock()?.is_none())
    }

    fn try_lock(&self) -> Result<Option<Lock>> {
        let file =
            File::open(&self.root).with_context(|| format!("open {}", self.root.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Lock(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", self.root.display())),
        }
    }
}

fn mount_bpffs(at: &Path) -> Result<()> {
    let kind = statfs(at)
        .with_context(|| format!("read the file system type of {}", at.display()))?
        .filesystem_type();
    if kind == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        at,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .with_context(|| format!("mount bpffs on {}", at.display()))
}

/// Returns the names in a directory, sorted; none if it does not exist.
pub fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a file or an empty directory. Succeeds if it does not exist.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
