//! The line by which pods report client and server of a request: written by the server, read by the
//! probes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Error};

/// A pod's report about a request that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The answering pod's name.
    pub pod: String,
    /// The request's source address, as the pod saw it.
    pub client: SocketAddr,
    /// The request's destination, as the pod saw it.
    pub server: SocketAddr,
}

impl Facts {
    /// Returns a report with IPv4-mapped addresses written as IPv4.
    pub fn new(pod: &str, client: SocketAddr, server: SocketAddr) -> Self {
        Self {
            pod: pod.to_owned(),
            client: canonical(client),
            server: canonical(server),
        }
    }

    /// The client's address without its port.
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip()
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pod={} client={} server={}",
            self.pod, self.client, self.server
        )
    }
}

impl FromStr for Facts {
    type Err = Error;

    /// Reads the line back.
    ///
    /// # Errors
    /// If a field is missing or no address.
    fn from_str(line: &str) -> Result<Self, Error> {
        let field = |key: &str| {
            let found = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.with_context(|| format!("find {key}= in {line:?}"))
        };
        Ok(Self {
            pod: field("pod")?.to_owned(),
            client: field("client")?.parse().context("read client address")?,
            server: field("server")?.parse().context("read server address")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back() {
        let facts = Facts::new(
            "web-1",
            "[::ffff:192.0.2.200]:4444".parse().expect("address"),
            "[fd00::1]:80".parse().expect("address"),
        );
        assert_eq!(
            facts.to_string(),
            "pod=web-1 client=192.0.2.200:4444 server=[fd00::1]:80"
        );
        assert_eq!(facts.to_string().parse::<Facts>().expect("facts"), facts);
        assert!("pod=web-1".parse::<Facts>().is_err());
    }
}
