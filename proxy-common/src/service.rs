//! Services in the maps: frontends, their backends as intervals of slots, source ranges, affinity.

pub use crate::config::Config;
use crate::net::{Port, Protocol};

/// A frontend: the address and port that clients use. Key of `SERVICES*`. A nodePort has address
/// zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceKey<A> {
    /// Cluster, external or load balancer IP; zero for a nodePort.
    pub addr: A,
    /// The port that clients use.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: u8,
}
const _: () = assert!(size_of::<ServiceKey<crate::net::Addr4>>() == 8);
const _: () = assert!(size_of::<ServiceKey<crate::net::Addr6>>() == 20);

impl<A> ServiceKey<A> {
    /// Makes a key from its three parts.
    #[inline(always)]
    pub const fn new(addr: A, port: Port, protocol: Protocol) -> Self {
        Self {
            addr,
            port,
            protocol,
            zero: 0,
        }
    }
}

/// The service port of a frontend. Value of `SERVICES*`.
///
/// The backends of a service port are slots 0.. of one generation, ordered local-only, both,
/// cluster-only (V7). So the sets for policy Local and Cluster are two intervals: Local is
/// `0..local_len`, Cluster is `cluster_first..cluster_first + cluster_len`. A change of backends
/// makes a new generation: its slots are written, then this value is replaced, then the old slots
/// are removed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Service {
    /// Bits of [`ServiceFlags`].
    pub flags: u32,
    /// Id of the service port, stable while it exists: key of `NAMES`.
    pub id: u32,
    /// Generation of the slots; unique across all Services.
    pub generation: u32,
    /// Seconds of ClientIP affinity; 0 if none (V13).
    pub affinity: u32,
    /// Number of slots for policy Local.
    pub local_len: u32,
    /// The first slot for policy Cluster.
    pub cluster_first: u32,
    /// Number of slots for policy Cluster.
    pub cluster_len: u32,
}
const _: () = assert!(size_of::<Service>() == 28);

impl Service {
    /// Returns true if all bits of `flag` are set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}

/// Bits of [`Service::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// The frontend is a cluster IP: internalTrafficPolicy applies.
    pub const CLUSTER_IP: u32 = 1;
    /// The frontend is a nodePort: externalTrafficPolicy applies to clients from outside.
    pub const NODE_PORT: u32 = 2;
    /// The frontend is an external IP.
    pub const EXTERNAL_IP: u32 = 4;
    /// The frontend is a load balancer IP.
    pub const LOAD_BALANCER: u32 = 8;
    /// The frontend's traffic policy is Local. Unless it is a cluster IP, this holds for clients
    /// from outside only.
    pub const LOCAL: u32 = 16;
    /// If Local has no backend but Cluster has: drop instead of reject.
    pub const LOCAL_DROP: u32 = 32;
    /// Only clients in the Service's source ranges, which are in `SOURCES*`, are served (V3).
    pub const SOURCE_RANGES: u32 = 64;
    /// Backends are chosen by tables in `MAGLEV`, so that all nodes choose the same.
    pub const MAGLEV: u32 = 128;
    /// Backends of other nodes answer outside clients directly (direct server return).
    pub const DSR: u32 = 256;
}

/// A part of the Maglev table of one set of backends. Key of `MAGLEV`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MaglevKey {
    /// [`Service::generation`].
    pub generation: u32,
    /// Bits: [`MaglevKey::CLUSTER`], [`MaglevKey::V6`].
    pub set: u16,
    /// Number of the part, from 0.
    pub chunk: u16,
}
const _: () = assert!(size_of::<MaglevKey>() == 8);

impl MaglevKey {
    /// The set for policy Cluster, also used for policy Local if both are equal. Without this bit:
    /// the set for policy Local.
    pub const CLUSTER: u16 = 1;
    /// The set of the Service's IPv6 backends.
    pub const V6: u16 = 2;
}

/// Entries of a Maglev table: numbers of backends, counted from the first of the set. Value of
/// `MAGLEV`. Beyond the table's end, the last part has zeros.
pub type MaglevChunk = [u16; MAGLEV_CHUNK];

/// Number of entries of a [`MaglevChunk`].
pub const MAGLEV_CHUNK: usize = 128;

/// Returns the number of entries of a table for so many backends: a prime, and at least sixteen per
/// backend up to 4,095 backends, so that shares differ little.
#[inline(always)]
pub const fn maglev_entries(backends: u32) -> u32 {
    match backends {
        0 => 0,
        1..64 => 1_021,
        64..512 => 8_191,
        _ => 65_521,
    }
}

/// One slot of a service port. Key of `BACKENDS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendKey {
    /// [`Service::generation`].
    pub generation: u32,
    /// Slot, from 0.
    pub slot: u32,
}

/// A backend. Value of `BACKENDS*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend<A> {
    /// The endpoint's address.
    pub addr: A,
    /// The endpoint's port (targetPort, resolved; V4).
    pub port: Port,
    /// Bits of [`BackendFlags`].
    pub flags: u16,
    /// Generation of the key: preallocated hashes reuse elements at once, and a reader notices it
    /// by this.
    pub generation: u32,
}
const _: () = assert!(size_of::<Backend<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<Backend<crate::net::Addr6>>() == 24);

/// An endpoint in one generation. Key of `SLOTS*`, the inverse of `BACKENDS*`; the value is the
/// slot.
///
/// It shows if an endpoint may still be used: for a SYN on an old flow (V17), for affinity (V13).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointKey<A> {
    /// The endpoint's address.
    pub addr: A,
    /// [`Service::generation`].
    pub generation: u32,
    /// The endpoint's port.
    pub port: Port,
    /// Always zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<EndpointKey<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<EndpointKey<crate::net::Addr6>>() == 24);

impl<A> EndpointKey<A> {
    /// Makes a key from its three parts.
    #[inline(always)]
    pub const fn new(generation: u32, addr: A, port: Port) -> Self {
        Self {
            addr,
            generation,
            port,
            zero: 0,
        }
    }
}

/// A source that a service port serves at its load balancer IPs. Key of `SOURCES*`, a trie in which
/// prefix lengths include the id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceKey<A> {
    /// [`Service::id`].
    pub service: u32,
    /// The source, or a prefix of it.
    pub addr: A,
}
const _: () = assert!(size_of::<SourceKey<crate::net::Addr4>>() == 8);
const _: () = assert!(size_of::<SourceKey<crate::net::Addr6>>() == 20);

/// Number of bits of a [`SourceKey`] before the address.
pub const SOURCE_KEY_BITS: u32 = 32;

/// A client of a service port with session affinity (V13). Key of `AFFINITY*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey<A> {
    /// The client's address.
    pub client: A,
    /// [`Service::id`], the same for all frontends of the service port.
    pub service: u32,
}
const _: () = assert!(size_of::<AffinityKey<crate::net::Addr4>>() == 8);
const _: () = assert!(size_of::<AffinityKey<crate::net::Addr6>>() == 20);

/// The endpoint that serves a client with affinity. Value of `AFFINITY*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Affinity<A> {
    /// The endpoint's address.
    pub addr: A,
    /// Low 32 bits of jiffies when the client last opened a connection.
    pub seen: u32,
    /// The endpoint's port.
    pub port: Port,
    /// Always zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<Affinity<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<Affinity<crate::net::Addr6>>() == 24);

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// The backend is a pod on the pod network: replies to any pod come back without masquerade, so
    /// flows of pods to it may be redirected. Without this bit (hostNetwork, addresses outside the
    /// cluster) packets of pods go through the stack, where the CNI masquerades.
    pub const POD: u16 = 1;
}

/// A name for people. Value of `NAMES`; the key is [`Service::id`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name {
    /// Number of bytes in use.
    pub len: u32,
    /// `namespace/name:port`, UTF-8, cut after 188 bytes.
    pub bytes: [u8; 188],
}
const _: () = assert!(size_of::<Name>() == 192);

impl Name {
    /// Makes a name, cut to 188 bytes at a character's border.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(188);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; 188];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self {
            len: end as u32,
            bytes,
        }
    }
    /// Returns the text; empty if it is not UTF-8.
    pub fn as_str(&self) -> &str {
        let len = (self.len as usize).min(self.bytes.len());
        core::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}
