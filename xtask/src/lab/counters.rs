//! Reads what the kernel counts about a namespace's TCP and IP, to distinguish a packet that was lost from
//! one that was late.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use super::netns::Namespace;

/// Counters by name, such as `TcpExt.ListenDrops`, as `nstat` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// Those of a namespace.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        let texts = namespace.run(|| {
            ["snmp", "netstat"]
                .into_iter()
                .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")))
                .collect::<Result<Vec<_>, _>>()
                .context("read the kernel's counters")
        })?;
        Ok(Self(texts.iter().flat_map(|text| parse(text)).collect()))
    }

    /// One of them; 0 if the kernel does not have it.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Returns the counters that have grown since `before`, by how much, if their name contains one
    /// of `words`.
    #[must_use]
    pub fn growth(&self, before: &Self, words: &[&str]) -> Self {
        let grown = self
            .0
            .iter()
            .map(|(name, now)| (name.clone(), now - before.get(name)))
            .filter(|(_, by)| *by != 0);
        Self(
            grown
                .filter(|(name, _)| words.iter().any(|word| name.contains(word)))
                .collect(),
        )
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        f.write_str(&if words.is_empty() {
            "nothing".to_owned()
        } else {
            words.join(", ")
        })
    }
}

/// Pairs of lines, the names and then the values, each after the protocol.
fn parse(text: &str) -> Vec<(String, i64)> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines
        .chunks_exact(2)
        .filter_map(|pair| Some((pair[0].split_once(": ")?, pair[1].split_once(": ")?)));
    let named = pairs.flat_map(|((protocol, names), (_, values))| {
        let values = values
            .split_whitespace()
            .filter_map(|value| value.parse().ok());
        names
            .split_whitespace()
            .map(move |name| format!("{protocol}.{name}"))
            .zip(values)
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_find_each_other() {
        let before = Counters(
            parse("Tcp: MaxConn RetransSegs\nTcp: -1 7\nIp: InDiscards\nIp: 2\n")
                .into_iter()
                .collect(),
        );
        let after = Counters(
            parse("Tcp: MaxConn RetransSegs\nTcp: -1 9\nIp: InDiscards\nIp: 2\n")
                .into_iter()
                .collect(),
        );
        assert_eq!(before.get("Ip.InDiscards"), 2);
        assert_eq!(
            after.growth(&before, &["Retrans", "Discard"]).to_string(),
            "Tcp.RetransSegs 2"
        );
        assert_eq!(after.growth(&before, &["Discard"]).to_string(), "nothing");
    }
}
