//! Sockets of this node's own processes that were sent to a backend: what is remembered, so that replies come from whom was asked (V21).

use crate::net::{Address, Port};

/// One side of what a socket was told. Key of `PEERS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey<A> {
    /// The kernel's cookie of the socket: its low word, then its high word. No two sockets ever have the same.
    pub cookie: [u32; 2],
    /// The address that the process asked for, or the backend's: see `side`.
    pub addr: A,
    /// The port of that address.
    pub port: Port,
    /// [`PeerKey::ASKED`] or [`PeerKey::BACKEND`].
    pub side: u16,
}
const _: () = assert!(size_of::<PeerKey<crate::net::Addr4>>() == 16);
const _: () = assert!(size_of::<PeerKey<crate::net::Addr6>>() == 28);

impl<A: Address> PeerKey<A> {
    /// The key has what the process asked for, the value is the backend.
    pub const ASKED: u16 = 0;
    /// The key has the backend, the value is what the process asked for.
    pub const BACKEND: u16 = 1;

    /// The key of what a socket asked for.
    #[inline(always)]
    pub const fn asked(cookie: [u32; 2], addr: A, port: Port) -> Self {
        Self {
            cookie,
            addr,
            port,
            side: Self::ASKED,
        }
    }
    /// The key of a backend that a socket was sent to.
    #[inline(always)]
    pub const fn backend(cookie: [u32; 2], addr: A, port: Port) -> Self {
        Self {
            cookie,
            addr,
            port,
            side: Self::BACKEND,
        }
    }
}

/// The other side. Value of `PEERS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer<A> {
    /// The backend's address, or the one that the process asked for.
    pub addr: A,
    /// The service port that was asked: the key of `NAMES`.
    pub service: u32,
    /// The port of the address.
    pub port: Port,
    /// The protocol of the socket, as an IP protocol number.
    pub protocol: u16,
}
const _: () = assert!(size_of::<Peer<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<Peer<crate::net::Addr6>>() == 24);

/// The value of the programs' global `NETNS` that means the initial network namespace; any other is the cookie of one.
pub const INITIAL_NETNS: u64 = 0;

/// How many entries `PEERS*` have room for: one for each TCP socket, two for each UDP socket and address.
pub const PEER_ENTRIES: u32 = 131_072;
