//! A connection of the host's connection tracking: listed by `conntrack`, adopted by `dataplane`.

use std::net::{IpAddr, SocketAddr};

use proxy_common::net::Protocol;

/// A connection, each direction as its packets arrive here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tracked {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The client and the address that it asked.
    pub original: (SocketAddr, SocketAddr),
    /// The server and the address that it answers to.
    pub reply: (SocketAddr, SocketAddr),
    /// It was answered.
    pub answered: bool,
}

impl Tracked {
    /// Returns true if an end is a pod of this node, so that its packets pass that pod's programs.
    pub fn concerns(&self, is_pod: impl Fn(IpAddr) -> bool) -> bool {
        is_pod(self.original.0.ip()) || is_pod(self.reply.0.ip())
    }

    /// P18: whether this host began it, as itself: what it only masquerades is another's.
    pub fn is_own(&self, is_host: impl Fn(IpAddr) -> bool) -> bool {
        is_host(self.original.0.ip()) && self.reply.1 == self.original.0
    }
}
