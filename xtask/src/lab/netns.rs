//! Owns network namespaces: a value per namespace, in which closures and processes run, and which
//! is gone when the value is.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::owned::{NETNS_DIR, Owned, Thing};
use super::process::Process;

/// A network namespace with a name, removed on drop with the devices in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    fd: Arc<OwnedFd>,
    _owned: Owned,
}

impl Namespace {
    /// Makes the namespaces `names`, in that order.
    ///
    /// # Errors
    /// If one of them cannot be made; those before it are removed again.
    pub fn create(names: &[String]) -> Result<Vec<Self>> {
        let owned: Vec<Owned> = names
            .iter()
            .map(|name| Owned::new(Thing::Namespace(name.clone())))
            .collect();
        let batch: String = names
            .iter()
            .map(|name| format!("netns add {name}\n"))
            .collect();
        run_batch(Command::new("ip").args(["-batch", "-"]), &batch)?;
        names
            .iter()
            .zip(owned)
            .map(|(name, owned)| Self::open(name, owned))
            .collect()
    }

    fn open(name: &str, owned: Owned) -> Result<Self> {
        let file = File::open(Path::new(NETNS_DIR).join(name))
            .with_context(|| format!("open namespace {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            fd: Arc::new(file.into()),
            _owned: owned,
        })
    }

    /// Its name, as `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, as `nsenter --net=` takes it.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `work` on a thread inside and waits for it; a panic in it goes on here.
    ///
    /// # Errors
    /// Those of `work`, and that the namespace cannot be entered.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.fd)?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` on a thread inside while the caller does other things.
    pub fn start<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> JoinHandle<Result<R>> {
        let fd = self.fd.clone();
        std::thread::spawn(move || {
            enter(&fd)?;
            work()
        })
    }

    /// Starts a process inside, and in `cgroup` if one is given.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: Command, cgroup: Option<&Path>) -> Result<Process> {
        Process::start(command, self.fd.clone(), cgroup)
    }

    /// Runs a tool inside to its end, and gives what it printed.
    ///
    /// # Errors
    /// If it cannot be started or fails; the error has what it said.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| {
            let output = command
                .output()
                .with_context(|| format!("run {command:?}"))?;
            if !output.status.success() {
                bail!(
                    "{command:?} in {}: {}: {}",
                    self.name,
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Runs lines of `ip` inside, all or up to the first that fails.
    ///
    /// # Errors
    /// If a line fails; the error has the line's number and what `ip` said.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_batch(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            batch,
        )
        .with_context(|| format!("set up {}", self.name))
    }

    /// Runs lines of `bridge` inside, as [`Self::ip`] does.
    ///
    /// # Errors
    /// If a line fails.
    pub fn bridge(&self, batch: &str) -> Result<()> {
        run_batch(
            Command::new("bridge").args(["-n", &self.name, "-batch", "-"]),
            batch,
        )
        .with_context(|| format!("set up {}", self.name))
    }

    /// Sets sysctls below `net`, keys written with slashes.
    ///
    /// # Errors
    /// If one is unknown or refuses its value.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("set sysctl net/{key} to {value}"))
            })
        })
    }

    /// Lets `device` compute checksums before it sends, as a sender without offloads does.
    ///
    /// # Errors
    /// If ethtool is missing or fails.
    pub fn switch_checksum_offload_off(&self, device: &str) -> Result<()> {
        self.output(Command::new("ethtool").args(["-K", device, "tx", "off"]))
            .map(drop)
    }

    /// Sets whether `device` merges the segments that it receives (GRO), as cards do.
    ///
    /// # Errors
    /// If ethtool is missing or fails.
    pub fn merge_received(&self, device: &str, merge: bool) -> Result<()> {
        self.output(Command::new("ethtool").args([
            "-K",
            device,
            "gro",
            if merge { "on" } else { "off" },
        ]))
        .map(drop)
    }
}

fn enter(fd: &OwnedFd) -> Result<()> {
    setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).context("enter network namespace (root is needed)")
}

/// Feeds `batch` to a tool of iproute2.
fn run_batch(tool: &mut Command, batch: &str) -> Result<()> {
    let mut child = tool
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {tool:?}"))?;
    // A tool that failed early has closed the pipe; what it said is the better error.
    child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(batch.as_bytes()));
    let output = child.wait_with_output().context("wait for iproute2")?;
    if !output.status.success() {
        bail!(
            "{tool:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr).trim(),
            numbered(batch)
        );
    }
    Ok(())
}

fn numbered(batch: &str) -> String {
    batch
        .lines()
        .enumerate()
        .map(|(n, line)| format!("{:4} {line}\n", n + 1))
        .collect()
}
