//! Runs HAProxy in a namespace, in front of servers with health checks, and returns their state. It
//! retries as it does by default: connections that fail, never requests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::controlplane::wait_for;
use super::netns::Namespace;
use super::process::Process;
use crate::sh;

const BACKEND: &str = "nodes";
/// Time limit for a change of a server's health to be seen here; many checks, since machines are
/// slow in CI.
const PATIENCE: Duration = Duration::from_secs(15);

/// A server to balance to.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name in the configuration.
    pub name: String,
    /// The address that requests go to.
    pub at: SocketAddr,
    /// The port of the same address that is asked for its health.
    pub health_port: u16,
}

/// The state of a server in HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// Connections that failed and were tried again, which HAProxy's clients notice by the time that it
/// takes only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// With the same server.
    pub same: u64,
    /// With another one.
    pub other: u64,
}

impl Again {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.same + self.other
    }
}

/// A running HAProxy; dropping it ends it.
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
}

/// A line of HAProxy's statistics, by the names of its columns.
type Row = BTreeMap<String, String>;

impl Haproxy {
    /// Starts it in `ns`, serving at `bind`, with its files in `directory`; returns when it answers
    /// for itself.
    ///
    /// # Errors
    /// If it is not installed, or does not start; the error has what it said.
    pub fn start(
        ns: &Namespace,
        directory: &Path,
        bind: SocketAddr,
        servers: &[Server],
    ) -> Result<Self> {
        let file = |name: &str| directory.join(name);
        let (config, socket, log) = (
            file("haproxy.cfg"),
            file("haproxy.sock"),
            file("haproxy.log"),
        );
        fs::write(&config, configuration(&socket, bind, servers))
            .context("write HAProxy's configuration")?;
        let output = File::create(&log).context("create HAProxy's log")?;
        let haproxy = sh::find_program("haproxy").context(
            "find haproxy (Debian's package of that name; `cargo xtask setup` installs it)",
        )?;
        let mut command = Command::new(haproxy);
        // In the foreground, so that it is our child that ends.
        command
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .stdin(Stdio::null());
        command
            .stdout(output.try_clone().context("share HAProxy's log")?)
            .stderr(output);
        let mut haproxy = Self {
            process: ns.spawn(command, None)?,
            socket,
            log,
        };
        wait_for("HAProxy", PATIENCE, || haproxy.is_there())?;
        Ok(haproxy)
    }

    /// Waits until the server `name` is seen in this state.
    ///
    /// # Errors
    /// If that takes too long, or HAProxy has ended; the error has what it said.
    pub fn wait_until(&self, name: &str, standing: Standing) -> Result<()> {
        wait_for(&format!("{name} to be {standing:?}"), PATIENCE, || {
            Ok((self.standing(name)? == standing).then_some(()))
        })
        .with_context(|| self.log())
    }

    /// The connections that it has tried again so far.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn again(&self) -> Result<Again> {
        let all = self.row("BACKEND")?;
        Ok(Again {
            same: number(&all, "wretr")?,
            other: number(&all, "wredis")?,
        })
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn is_there(&mut self) -> Result<Option<()>> {
        if let Some(status) = self.process.ended()? {
            bail!("HAProxy ended ({status:?}):\n{}", self.log());
        }
        Ok(self.rows().ok().map(drop))
    }

    fn standing(&self, server: &str) -> Result<Standing> {
        let row = self.row(server)?;
        let status = row.get("status").context("find a server's status")?;
        Ok(if status.starts_with("UP") {
            Standing::Up
        } else {
            Standing::Down
        })
    }

    fn row(&self, server: &str) -> Result<Row> {
        self.rows()?
            .into_iter()
            .find(|row: &Row| {
                row.get("pxname").is_some_and(|name| name == BACKEND) && row["svname"] == server
            })
            .with_context(|| format!("find {server} in HAProxy's statistics"))
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut stream =
            UnixStream::connect(&self.socket).context("connect to HAProxy's socket")?;
        stream.write_all(b"show stat\n").context("ask HAProxy")?;
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .context("read HAProxy's statistics")?;
        parse(&text)
    }
}

/// Each request is a connection of its own to a node, and a node is out and in again with a single
/// check.
fn configuration(socket: &Path, bind: SocketAddr, servers: &[Server]) -> String {
    let server = |server: &Server| {
        format!(
            "    server {} {} check port {}\n",
            server.name, server.at, server.health_port
        )
    };
    let servers: String = servers.iter().map(server).collect();
    format!(
        "global
    nbthread 1
    stats socket {} mode 600 level user
defaults
    mode http
    timeout connect 1s
    timeout check 1s
    timeout client 10s
    timeout server 5s
frontend lab
    bind {bind}
    default_backend {BACKEND}
backend {BACKEND}
    balance roundrobin
    option httpchk
    option redispatch
    option http-server-close
    default-server inter 200ms fall 1 rise 1
{servers}",
        socket.display()
    )
}

/// Reads comma-separated values, the first line being the columns' names.
fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let head = lines
        .next()
        .and_then(|line| line.strip_prefix("# "))
        .context("find the head of HAProxy's statistics")?;
    let row = |line: &str| -> Row {
        head.split(',')
            .zip(line.split(','))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    };
    let rows: Vec<Row> = lines.map(row).collect();
    ensure!(
        rows.iter().all(|row| row.contains_key("svname")),
        "HAProxy's statistics do not name servers: {head}"
    );
    Ok(rows)
}

fn number(row: &Row, column: &str) -> Result<u64> {
    let value = row
        .get(column)
        .with_context(|| format!("find {column} in HAProxy's statistics"))?;
    value
        .parse()
        .with_context(|| format!("read {column}, which is {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_the_names_of_their_columns() {
        let text = "# pxname,svname,wretr,wredis,status,\nlab,FRONTEND,,,OPEN,\nnodes,node1,3,1,UP 1/2,\n\n";
        let rows = parse(text).expect("statistics");
        assert_eq!((rows.len(), rows[1]["status"].as_str()), (2, "UP 1/2"));
        assert_eq!(number(&rows[1], "wretr").expect("a number"), 3);
        assert!(number(&rows[0], "wretr").is_err() && parse("Unknown command\n").is_err());
    }
}
