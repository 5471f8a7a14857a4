//! Owns a node's agent: started, waited for, killed without warning and started again, its words
//! kept in a file.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::Tools;
use super::node::Node;
use super::process::Process;

/// Time limit for an agent to become healthy.
pub const STARTUP: Duration = Duration::from_secs(20);

const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// The source of an agent's Services.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubeconfig(PathBuf),
}

/// The settings for starting agents on any node.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// The binary.
    pub portway: PathBuf,
    /// The source of its Services.
    pub source: Source,
    /// The directory for its log.
    pub logs: PathBuf,
    /// True if the agent finds its node's devices by itself; else they are flags.
    pub finds_devices: bool,
    /// More arguments.
    pub extra: Vec<String>,
}

impl AgentSpec {
    /// Agents that read `source` and log to `logs`.
    pub fn new(tools: &Tools, source: Source, logs: &Path) -> Self {
        Self {
            portway: tools.portway.clone(),
            source,
            logs: logs.to_owned(),
            finds_devices: false,
            extra: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.extra
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Lets agents find their nodes' devices themselves.
    #[must_use]
    pub fn finding_devices(mut self) -> Self {
        self.finds_devices = true;
        self
    }

    /// Starts the agent of `node` and waits until it is healthy.
    ///
    /// # Errors
    /// If the binary is missing, ends, or is not healthy in time; the error has the end of its log.
    pub fn start(&self, node: &Node) -> Result<Agent> {
        let mut agent = self.start_unready(node)?;
        agent.wait_until_healthy(node)?;
        Ok(agent)
    }

    /// Starts the agent of `node`.
    ///
    /// # Errors
    /// If the binary is missing.
    pub fn start_unready(&self, node: &Node) -> Result<Agent> {
        if !self.portway.exists() {
            bail!(
                "{} is missing: cargo build -p proxy-userspace",
                self.portway.display()
            );
        }
        Agent::spawn(node, self.command(node), &self.logs)
    }

    fn command(&self, node: &Node) -> Command {
        let mut command = Command::new(&self.portway);
        command.args(["agent", "--node-name", node.name()]);
        match &self.source {
            Source::Manifests(dir) => command.arg("--manifests").arg(dir),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command.arg("--state-dir").arg(node.state_dir());
        if !self.extra.iter().any(|argument| argument == "--cgroup") {
            command.arg("--cgroup").arg(node.cgroup());
        }
        if !self.finds_devices {
            command.args(
                node.devices()
                    .into_iter()
                    .flat_map(|device| ["--device", device]),
            );
        }
        command.args(["--cluster-cidr", "10.244.0.0/16,fd00:244::/32"]);
        command.args([
            "--health-bind",
            &HEALTH.to_string(),
            "--metrics-bind",
            &METRICS.to_string(),
        ]);
        command.args(&self.extra);
        command
    }
}

/// A running agent; dropping it kills it, and shows its log if a test is failing.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: PathBuf,
    node: String,
}

impl Agent {
    /// Starts `command`, which becomes an agent, on `node`; its log is in the directory `logs`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(node: &Node, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}-agent.log", node.name()));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file);
        let process = node.spawn(command)?;
        Ok(Self {
            process,
            log,
            node: node.name().to_owned(),
        })
    }

    /// Waits until the agent's health check answers 200.
    ///
    /// # Errors
    /// If it ends, or is not healthy in time; the error has the end of its log.
    pub fn wait_until_healthy(&mut self, node: &Node) -> Result<()> {
        let deadline = Instant::now() + STARTUP;
        while !node.ns().run(|| Ok(healthy()))? {
            if let Some(status) = self.process.ended()? {
                bail!(
                    "the agent of {} ended ({status:?}):\n{}",
                    self.node,
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent of {} is not healthy after {STARTUP:?}:\n{}",
                    self.node,
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it as `kill -9` does.
    pub fn kill(self) {
        drop(self);
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// If it does not within ten seconds.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop(Duration::from_secs(10)).map(drop)
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines that it has said.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent of {} said:\n{}", self.node, self.log_tail());
        }
    }
}

/// Returns true if the health check in the calling thread's namespace answers 200.
fn healthy() -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&HEALTH, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        if &status == b"HTTP/1.1 200" {
            Ok(())
        } else {
            Err(std::io::Error::from(ErrorKind::Other))
        }
    };
    ask().is_ok()
}
