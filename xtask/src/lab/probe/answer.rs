//! Owns the outcome of one probe, and its form in text: a probe in a process of its own prints it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::str::FromStr;

use crate::lab::facts::Facts;

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A pod answered.
    Served(Facts),
    /// "Connection refused": a reset, or ICMP port unreachable.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Anything else, in words.
    Failed(String),
}

impl Answer {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the standard library's list of error kinds is open"
    )]
    pub(super) fn from_error(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Failed(error.to_string()),
        }
    }

    /// The facts, if a pod answered.
    pub fn served(&self) -> Option<&Facts> {
        match self {
            Self::Served(facts) => Some(facts),
            Self::Refused | Self::TimedOut | Self::Failed(_) => None,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(facts) => facts.fmt(f),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        Ok(match line {
            "refused" => Self::Refused,
            "timed out" => Self::TimedOut,
            _ => match line.strip_prefix("failed: ") {
                Some(why) => Self::Failed(why.to_owned()),
                None => Self::Served(line.parse()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_back() {
        for answer in [
            Answer::Refused,
            Answer::TimedOut,
            Answer::Failed("no route to host".to_owned()),
        ] {
            assert_eq!(
                answer.to_string().parse::<Answer>().expect("answer"),
                answer
            );
        }
        assert!("whatever".parse::<Answer>().is_err());
    }
}
