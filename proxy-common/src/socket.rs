//! Sockets of this node's processes that were sent to a backend: both addresses, so that a process
//! sees the one that it asked for as the sender of replies (V21).

use crate::net::{Address, Port};

/// One address of a socket: the one that the process asked for, or the backend's. Key of `PEERS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey<A> {
    /// The kernel's cookie of the socket, low word first. It is unique.
    pub cookie: [u32; 2],
    /// The address.
    pub addr: A,
    /// The port of that address.
    pub port: Port,
    /// [`PeerKey::ASKED`] or [`PeerKey::BACKEND`].
    pub side: u16,
}
const _: () = assert!(size_of::<PeerKey<crate::net::Addr4>>() == 16);
const _: () = assert!(size_of::<PeerKey<crate::net::Addr6>>() == 28);

impl<A: Address> PeerKey<A> {
    /// The key has the address that the process asked for, the value has the backend's.
    pub const ASKED: u16 = 0;
    /// The key has the backend's address, the value has the one that the process asked for.
    pub const BACKEND: u16 = 1;

    /// Makes the key of an address that a process asked for.
    #[inline(always)]
    pub const fn asked(cookie: [u32; 2], addr: A, port: Port) -> Self {
        Self {
            cookie,
            addr,
            port,
            side: Self::ASKED,
        }
    }
    /// Makes the key of a backend's address.
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

/// The other address of the socket. Value of `PEERS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer<A> {
    /// The backend's address, or the one that the process asked for.
    pub addr: A,
    /// Id of the service port: the key of `NAMES`.
    pub service: u32,
    /// The port of the address.
    pub port: Port,
    /// The protocol of the socket, as an IP protocol number.
    pub protocol: u16,
}
const _: () = assert!(size_of::<Peer<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<Peer<crate::net::Addr6>>() == 24);

/// Value of the programs' global `NETNS` for the initial network namespace. Other values are
/// cookies of namespaces.
pub const INITIAL_NETNS: u64 = 0;

/// Number of entries of `PEERS*`. A TCP socket takes one, a UDP socket two for each address.
pub const PEER_ENTRIES: u32 = 131_072;
