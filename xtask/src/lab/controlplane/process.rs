//! Owns the lab's long-running programs: started inside a network namespace, ended by their process
//! id when dropped, and by the kernel if this process dies first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result};

use super::binaries::Program;

/// A running program. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` in the network namespace of the file `netns`; both its outputs go to `log`.
    pub fn spawn(program: &Program, args: &[String], netns: &Path, log: &Path) -> Result<Self> {
        let name = program
            .chosen_by
            .map_or_else(|| program.path.display().to_string(), str::to_owned);
        let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", netns.display()));
        command
            .arg(&program.path)
            .args(program.chosen_by)
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share a log file")?)
            .stderr(output);
        let child = spawn_for_life(command)
            .with_context(|| format!("start {name} (needs setpriv and nsenter of util-linux)"))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// The exit status if it has ended by itself, in which case the log has the reason.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("look after {}", self.name))
    }

    /// The last lines that it wrote, for an error message.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "{} said:\n{}",
            self.name,
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a child from a thread that lives as long as this process: the kernel sends the parent's
/// death signal when the starting *thread* ends, and a test's thread ends early.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // It fails only if nobody waits for the answer any more.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, outcome) = channel();
    spawner.send((command, answer)).map_err(io::Error::other)?;
    outcome.recv().map_err(io::Error::other)?
}
