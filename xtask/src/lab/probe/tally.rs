//! Owns the count of many probes' outcomes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::answer::Answer;

/// The outcomes of many probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of answers by pod.
    pub by_pod: BTreeMap<String, usize>,
    /// Number of answers by the client address that the pod saw.
    pub by_client: BTreeMap<IpAddr, usize>,
    /// Number of refusals.
    pub refused: usize,
    /// Number of probes without an answer.
    pub timed_out: usize,
    /// Anything else, in words.
    pub failed: Vec<String>,
}

impl Tally {
    /// Returns the number of answers.
    pub fn served(&self) -> usize {
        self.by_pod.values().sum()
    }

    /// Returns the number of probes that no pod answered.
    pub fn unserved(&self) -> usize {
        self.refused + self.timed_out + self.failed.len()
    }

    /// The pods that answered.
    pub fn pods(&self) -> Vec<&str> {
        self.by_pod.keys().map(String::as_str).collect()
    }

    /// The client addresses that pods saw.
    pub fn clients(&self) -> Vec<IpAddr> {
        self.by_client.keys().copied().collect()
    }
}

impl FromIterator<Answer> for Tally {
    fn from_iter<T: IntoIterator<Item = Answer>>(answers: T) -> Self {
        let mut tally = Self::default();
        for answer in answers {
            match answer {
                Answer::Served(facts) => {
                    *tally.by_client.entry(facts.client_ip()).or_default() += 1;
                    *tally.by_pod.entry(facts.pod).or_default() += 1;
                }
                Answer::Refused => tally.refused += 1,
                Answer::TimedOut => tally.timed_out += 1,
                Answer::Failed(why) => tally.failed.push(why),
            }
        }
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.by_pod.iter().map(|(pod, n)| format!("{pod} {n}"));
        let others = [("refused", self.refused), ("timed out", self.timed_out)];
        let others = others
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(what, n)| format!("{what} {n}"));
        let failed = self
            .failed
            .first()
            .map(|why| format!("failed {} ({why})", self.failed.len()));
        let parts: Vec<String> = pods.chain(others).chain(failed).collect();
        f.write_str(&if parts.is_empty() {
            "nothing".to_owned()
        } else {
            parts.join(", ")
        })
    }
}
