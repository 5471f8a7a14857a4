//! Owns the report of a load: answers, failures and times.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The outcome of the requests of one kind.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Number of answered requests.
    pub answered: usize,
    /// Number of failed requests, by error.
    pub failed: BTreeMap<String, usize>,
    /// The longest time to an answer; of a new connection, from its SYN on.
    pub slowest: Duration,
}

/// The outcome of a load.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Requests over kept-alive connections.
    pub kept_alive: Outcome,
    /// Requests over a new connection each.
    pub fresh: Outcome,
    /// Number of answers by pod.
    pub by_pod: BTreeMap<String, usize>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl LoadReport {
    /// Returns the number of answered requests.
    pub fn answered(&self) -> usize {
        self.kept_alive.answered + self.fresh.answered
    }

    /// Returns the number of failed requests.
    pub fn failed(&self) -> usize {
        self.kept_alive
            .failed
            .values()
            .chain(self.fresh.failed.values())
            .sum()
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} answers in {:.1?} ({:.0}/s)",
            self.answered(),
            self.elapsed,
            self.rate()
        )?;
        for (what, outcome) in [("kept alive", &self.kept_alive), ("new", &self.fresh)] {
            let failed: usize = outcome.failed.values().sum();
            write!(
                f,
                "; over {what} connections {} answered, {failed} failed, slowest {:.1?}",
                outcome.answered, outcome.slowest
            )?;
            outcome
                .failed
                .iter()
                .try_for_each(|(why, n)| write!(f, " [{n} x {why}]"))?;
        }
        Ok(())
    }
}
