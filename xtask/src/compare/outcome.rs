//! The outcome of a question in terms that mean the same on both sides: the pods that answered and
//! the client address that they saw, or the failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::rows::{Client, Row};
use crate::lab::facts::Facts;
use crate::lab::probe::Answer;
use crate::lab::topology::{self, FAR_CLIENT, NEAR_CLIENT};

/// The client's address as a backend saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// By its own address.
    Client,
    /// By the address of a node, given by number.
    Node(u8),
    /// By the address that the client asked for.
    Frontend,
    /// By an address that nobody should have used.
    Other(IpAddr),
}

/// One way in which a question may end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod answered.
    Served {
        /// Which.
        pod: String,
        /// The client's address as it saw it.
        seen: Seen,
    },
    /// "Connection refused".
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Anything else, in words.
    Failed(String),
}

/// The ways in which a question ended that was put many times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome(pub BTreeSet<End>);

impl Outcome {
    /// Puts answers to `row`, a client with the address `own`, into words.
    pub fn new(row: &Row, own: IpAddr, answers: &[Answer]) -> Self {
        Self(answers.iter().map(|answer| end(row, own, answer)).collect())
    }

    /// The outcome that has only one way to end.
    pub fn only(end: End) -> Self {
        Self(BTreeSet::from([end]))
    }

    /// The pods that answered.
    pub fn pods(&self) -> BTreeSet<&str> {
        let served = self.0.iter().filter_map(|end| match end {
            End::Served { pod, .. } => Some(pod.as_str()),
            End::Refused | End::TimedOut | End::Failed(_) => None,
        });
        served.collect()
    }

    /// Returns true if some questions were answered and others were not.
    pub fn is_mixed(&self) -> bool {
        let served = self
            .0
            .iter()
            .filter(|end| matches!(end, End::Served { .. }))
            .count();
        served > 0 && served < self.0.len()
    }

    /// Returns the same answers with each client address replaced by `seen`.
    #[must_use]
    pub fn with_clients(&self, seen: impl Fn(&str, Seen) -> Seen) -> Self {
        let change = |end: &End| match end {
            End::Served { pod, seen: before } => End::Served {
                pod: pod.clone(),
                seen: seen(pod, *before),
            },
            other @ (End::Refused | End::TimedOut | End::Failed(_)) => other.clone(),
        };
        Self(self.0.iter().map(change).collect())
    }
}

fn end(row: &Row, own: IpAddr, answer: &Answer) -> End {
    match answer {
        Answer::Served(facts) => End::Served {
            pod: facts.pod.clone(),
            seen: seen(row, own, facts),
        },
        Answer::Refused => End::Refused,
        Answer::TimedOut => End::TimedOut,
        Answer::Failed(why) => End::Failed(why.clone()),
    }
}

fn seen(row: &Row, own: IpAddr, facts: &Facts) -> Seen {
    let ip = facts.client_ip();
    let node = (1..=3).find(|n| topology::node(*n).of(row.family) == ip);
    match node {
        _ if ip == own => Seen::Client,
        Some(n) => Seen::Node(n),
        None if ip == row.addr().ip() => Seen::Frontend,
        None => Seen::Other(ip),
    }
}

/// The client's own address, where it is no pod's.
pub fn fixed_address(row: &Row) -> Option<IpAddr> {
    match row.client {
        Client::Near => Some(NEAR_CLIENT.of(row.family)),
        Client::Far => Some(FAR_CLIENT.of(row.family)),
        Client::Process(node) | Client::Unhooked(node) => Some(topology::node(node).of(row.family)),
        Client::Pod(..) => None,
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("client"),
            Self::Node(n) => write!(f, "node{n}"),
            Self::Frontend => f.write_str("frontend"),
            Self::Other(ip) => ip.fmt(f),
        }
    }
}

impl fmt::Display for Outcome {
    /// Pods that see the same client together: `web-1 web-2 <- client`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_seen: BTreeMap<Seen, Vec<&str>> = BTreeMap::new();
        let mut others = Vec::new();
        for end in &self.0 {
            match end {
                End::Served { pod, seen } => by_seen.entry(*seen).or_default().push(pod),
                End::Refused => others.push("refused".to_owned()),
                End::TimedOut => others.push("timed out".to_owned()),
                End::Failed(why) => others.push(why.clone()),
            }
        }
        let served = by_seen
            .iter()
            .map(|(seen, pods)| format!("{} <- {seen}", pods.join(" ")));
        f.write_str(&served.chain(others).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::{Extent, rows};

    #[test]
    fn addresses_become_names() {
        let row = rows(Extent::Full)[0];
        let served = |client: &str| {
            Answer::Served(Facts::new(
                "web-1",
                client.parse().expect("address"),
                "10.244.1.10:8080".parse().expect("address"),
            ))
        };
        let own = "10.244.1.11".parse().expect("address");
        let answers = [
            served("10.244.1.11:5"),
            served("192.0.2.13:6"),
            served("10.96.1.1:7"),
            Answer::TimedOut,
        ];
        let outcome = Outcome::new(&row, own, &answers);
        assert_eq!(
            outcome.to_string(),
            "web-1 <- client, web-1 <- node3, web-1 <- frontend, timed out"
        );
        assert!(outcome.is_mixed());
    }
}
