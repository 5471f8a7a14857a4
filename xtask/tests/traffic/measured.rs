//! Shared parts of tests that measure: times of an agent's log lines, and percentiles.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use xtask::lab::agent::Agent;

use crate::cluster::IN_FORCE;

/// Reads an agent's log as it grows.
pub struct Log<'a> {
    agent: &'a Agent,
    read: usize,
}

impl<'a> Log<'a> {
    /// Returns a log that begins with the next line.
    pub fn from_here(agent: &'a Agent) -> Self {
        Self {
            agent,
            read: agent.log().len(),
        }
    }

    /// When it first said `words` after `asked`, by the agent's own clock, which is ours.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn when(&mut self, words: &str, asked: SystemTime) -> Result<SystemTime> {
        let deadline = Instant::now() + IN_FORCE;
        while Instant::now() < deadline {
            let log = self.agent.log();
            let whole = log.rfind('\n').map_or(0, |end| end + 1);
            for line in log.get(self.read..whole).unwrap_or_default().lines() {
                self.read += line.len() + 1;
                let at = line.contains(words).then(|| said_at(line)).transpose()?;
                if let Some(at) = at.filter(|at| *at > asked) {
                    return Ok(at);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!(
            "not said in {IN_FORCE:?}: {words}\n{}",
            self.agent.log_tail()
        )
    }
}

fn said_at(line: &str) -> Result<SystemTime> {
    let stamp = line.split_whitespace().next().unwrap_or_default();
    stamp
        .parse::<Timestamp>()
        .map(SystemTime::from)
        .with_context(|| format!("read the time of {line}"))
}

/// Percentiles.
pub struct Spread {
    pub p50: Duration,
    pub p99: Duration,
    most: Duration,
    count: usize,
}

impl Spread {
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        let at = |hundredths: usize| all[(all.len() * hundredths).div_ceil(100).saturating_sub(1)];
        Self {
            p50: at(50),
            p99: at(99),
            most: at(100),
            count: all.len(),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p50 {:.1?}, p99 {:.1?}, most {:.1?} of {}",
            self.p50, self.p99, self.most, self.count
        )
    }
}
