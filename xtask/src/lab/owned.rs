//! Owns what would outlive this program: each process, namespace, cgroup and directory of a lab
//! goes on drop, on Ctrl-C, or with the next lab.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// iproute2's directory of named network namespaces.
pub const NETNS_DIR: &str = "/var/run/netns";

/// One thing that has to be undone.
#[derive(Debug)]
pub enum Thing {
    /// A child process: killed and waited for.
    Process(Pid),
    /// A named network namespace.
    Namespace(String),
    /// A cgroup of ours with those below it.
    Cgroup(PathBuf),
    /// A directory with all that is in it; in bpffs that unpins maps and detaches links.
    Directory(PathBuf),
}

static LIVE: Mutex<BTreeMap<u64, Thing>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A thing that is removed when this value goes.
#[derive(Debug)]
pub struct Owned(u64);

impl Owned {
    /// Takes charge of `thing`.
    pub fn new(thing: Thing) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        live().insert(id, thing);
        Self(id)
    }

    /// Gives the charge back: the thing is gone already.
    pub fn release(self) {
        live().remove(&self.0);
    }
}

impl Drop for Owned {
    /// Removes under the lock, so that an interruption finds the thing either here or gone.
    fn drop(&mut self) {
        let mut live = live();
        if let Some(thing) = live.remove(&self.0) {
            thing.remove();
        }
    }
}

impl Thing {
    /// Undoes it; what is gone already is no error, and other errors could only be printed.
    fn remove(&self) {
        match self {
            Self::Process(pid) => {
                let _ = kill(*pid, Signal::SIGKILL);
                let _ = waitpid(*pid, None);
            }
            Self::Namespace(name) => remove_namespace(name),
            Self::Cgroup(path) => remove_cgroup(path),
            Self::Directory(path) => drop(fs::remove_dir_all(path)),
        }
    }
}

/// Holds everybody else off too, which is what an interruption wants: nothing new is made while it
/// cleans up.
fn live() -> MutexGuard<'static, BTreeMap<u64, Thing>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_namespace(name: &str) {
    let path = Path::new(NETNS_DIR).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// Ends what still runs in a cgroup that a lab made, and removes it from the leaves up.
fn remove_cgroup(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let children = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().is_dir());
    children.for_each(|child| remove_cgroup(&child.path()));
    // The dead leave their cgroup a moment after they were killed.
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(5))
            }
            _ => return,
        }
    }
}

/// Names of one lab: `portway-PID-N`, where PID is the process that owns it.
#[derive(Clone, Debug)]
pub struct LabId(String);

impl LabId {
    /// A name that no other lab on this host has.
    pub fn fresh() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!(
            "portway-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// The name of something that belongs to this lab.
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.0)
    }

    /// The lab's own name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the process that made a thing of this name, if a lab made it.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("portway-")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

/// Removes what labs of dead processes left in namespaces, cgroups, bpffs and the directory for
/// temporary files.
///
/// # Errors
/// If the lock that keeps two labs from doing so at once cannot be had.
pub fn sweep(cgroups: &Path, bpffs: &Path) -> Result<()> {
    let _lock = host_lock()?;
    abandoned(Path::new(NETNS_DIR)).for_each(|(name, _)| remove_namespace(&name));
    abandoned(bpffs)
        .chain(abandoned(&std::env::temp_dir()))
        .for_each(|(_, path)| Thing::Directory(path).remove());
    abandoned(cgroups).for_each(|(_, path)| remove_cgroup(&path));
    Ok(())
}

/// Keeps other labs of this host out while something is done that all share.
///
/// # Errors
/// If the lock file cannot be made or locked.
pub fn host_lock() -> Result<Flock<fs::File>> {
    let file = fs::File::create("/run/portway-lab.lock").context("create /run/portway-lab.lock")?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .context("lock /run/portway-lab.lock")
}

fn abandoned(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let dead =
                owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
            dead.then(|| (name, entry.path()))
        })
}

/// From now on Ctrl-C and SIGTERM remove all that is owned before the program ends with status 130.
pub fn clean_up_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Also where a shell had the signals ignored, as for what it runs in the background.
        // Failing means that somebody else of this program handles them; the next lab then sweeps.
        let _ = ctrlc::set_handler(|| {
            let live = live();
            live.values().rev().for_each(Thing::remove);
            std::process::exit(130);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("portway-123-0-node1"), Some(123));
        assert_eq!(owner("portway-123-0"), Some(123));
        assert_eq!(owner("portway"), None);
        assert_eq!(owner("portway-agent-0"), None);
        assert_eq!(owner("kubelet-1-2"), None);
    }
}
