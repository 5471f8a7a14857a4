//! Owns child processes of the lab: they end with the value that stands for them, and with the
//! lab's own process whatever ends that.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, write};

use super::owned::{Owned, Thing};

/// A running child; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    what: String,
    stdout: Option<ChildStdout>,
    owned: Option<Owned>,
}

impl Process {
    /// Starts `command` in the network namespace `net`, and in `cgroup` if one is given.
    ///
    /// # Errors
    /// If it cannot be started, or may not enter one of the two.
    pub fn start(mut command: Command, net: Arc<OwnedFd>, cgroup: Option<&Path>) -> Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        let procs = cgroup
            .map(|path| File::options().write(true).open(path.join("cgroup.procs")))
            .transpose();
        let procs = procs.context("open cgroup.procs")?;
        // A group of its own: Ctrl-C is the lab's to handle, which then ends its children in order.
        command.process_group(0);
        let enter = move || {
            setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            if let Some(procs) = &procs {
                write(procs, b"0")?;
            }
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes system calls on open descriptors only; it
        // neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        let mut child = spawn_by_nanny(command).with_context(|| format!("start {what}"))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        Ok(Self {
            pid,
            what,
            stdout: child.stdout.take(),
            owned: Some(Owned::new(Thing::Process(pid))),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it prints a line, which it does when it is ready.
    ///
    /// # Errors
    /// If its output is not piped, or it ends without a word.
    pub fn first_line(&mut self) -> Result<String> {
        let stdout = self
            .stdout
            .as_mut()
            .context("read output that is not piped")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("read output")?;
        if line.is_empty() {
            bail!("{} ended before it was ready", self.what);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Waits until it ends by itself, and gives all that it printed.
    ///
    /// # Errors
    /// If its output is not piped, or it failed.
    pub fn all_output(mut self) -> Result<String> {
        let mut text = String::new();
        self.stdout
            .take()
            .context("read output that is not piped")?
            .read_to_string(&mut text)
            .context("read output")?;
        let status = waitpid(self.pid, None).context("wait for process")?;
        self.owned.take().into_iter().for_each(Owned::release);
        match status {
            WaitStatus::Exited(_, 0) => Ok(text),
            other @ (WaitStatus::Exited(..)
            | WaitStatus::Signaled(..)
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_)
            | WaitStatus::StillAlive) => bail!("{} ended with {other:?}", self.what),
        }
    }

    /// Returns its exit status if it has ended.
    ///
    /// # Errors
    /// If the kernel does not know it as our child.
    pub fn ended(&mut self) -> Result<Option<WaitStatus>> {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).context("wait for process")? {
            WaitStatus::StillAlive => Ok(None),
            status @ (WaitStatus::Exited(..)
            | WaitStatus::Signaled(..)
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_)) => {
                self.owned.take().into_iter().for_each(Owned::release);
                Ok(Some(status))
            }
        }
    }

    /// Asks it to end (SIGTERM) and waits up to `patience`.
    ///
    /// # Errors
    /// If it is still there after that.
    pub fn stop(&mut self, patience: Duration) -> Result<WaitStatus> {
        kill(self.pid, Signal::SIGTERM).context("send SIGTERM")?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} did not end within {patience:?} of SIGTERM", self.what)
    }
}

/// A command to start, and who wants to hear of it.
type Order = (Command, Sender<std::io::Result<Child>>);

/// Spawns on a thread that lives as long as this process: the kernel sends a child's parent-death
/// signal when the *thread* ends that forked it.
fn spawn_by_nanny(command: Command) -> Result<Child> {
    static NANNY: OnceLock<Sender<Order>> = OnceLock::new();
    let nanny = NANNY.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = channel();
    nanny
        .send((command, reply))
        .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    Ok(answer
        .recv()
        .context("hear from the thread that starts processes")??)
}
