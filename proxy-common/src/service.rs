//! Services as the packet path sees them: frontends, intervals of slots, backends.

use crate::net::{IfIndex, Port, Protocol};

/// A frontend: where clients knock. Key of `SERVICES*`. nodePorts have the zero address.
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
    /// A key from its three parts.
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

/// What a frontend leads to. Value of `SERVICES*`.
///
/// The backends of a service port are slots 0.. of one generation, ordered local-only, both, cluster-only (V7), so that the
/// sets for policy Local and Cluster are two intervals: Local is `0..local_len`, Cluster `cluster_first..cluster_first + cluster_len`.
/// A change of backends gets a new generation: new slots are written first, then this value is replaced, then the old slots go.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Service {
    /// Bits of [`ServiceFlags`].
    pub flags: u32,
    /// The service port's id, stable while the service port exists: key of `NAMES`.
    pub id: u32,
    /// The generation whose slots are meant; unique across all services.
    pub generation: u32,
    /// Seconds of ClientIP affinity; 0 is none (V13).
    pub affinity: u32,
    /// The number of slots for policy Local.
    pub local_len: u32,
    /// The first slot for policy Cluster.
    pub cluster_first: u32,
    /// The number of slots for policy Cluster.
    pub cluster_len: u32,
}
const _: () = assert!(size_of::<Service>() == 28);

impl Service {
    /// Whether all bits of `flag` are set.
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
    /// The traffic policy that applies to this frontend is Local (from outside, unless it is a cluster IP).
    pub const LOCAL: u32 = 16;
    /// Where Local has no backend but Cluster has: drop instead of reject.
    pub const LOCAL_DROP: u32 = 32;
    /// Only clients in the Service's source ranges are served here (V3): `SOURCES*` has them.
    pub const SOURCE_RANGES: u32 = 64;
    /// Backends are chosen by tables in `MAGLEV`, so that all nodes choose alike.
    pub const MAGLEV: u32 = 128;
    /// Backends of other nodes answer clients outside themselves (direct server return).
    pub const DSR: u32 = 256;
}

/// A part of the table by which one set of a generation's backends is chosen from. Key of `MAGLEV`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MaglevKey {
    /// [`Service::generation`].
    pub generation: u32,
    /// Bits of this type.
    pub set: u16,
    /// 0-based.
    pub chunk: u16,
}
const _: () = assert!(size_of::<MaglevKey>() == 8);

impl MaglevKey {
    /// The set for policy Cluster, which is that for policy Local too if they are equal; without it the other one.
    pub const CLUSTER: u16 = 1;
    /// Of IPv6.
    pub const V6: u16 = 2;
}

/// So many entries of a table: a backend each, counted from the first of its set. Value of `MAGLEV`; what the last part has beyond the table is 0.
pub type MaglevChunk = [u16; MAGLEV_CHUNK];

/// Entries of a [`MaglevChunk`].
pub const MAGLEV_CHUNK: usize = 128;

/// How many entries a table for so many backends has: a prime, and sixteen for each backend up to 4,095, so that one more or less is not much of
/// a share.
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
    /// 0-based.
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
    /// The key's generation again: preallocated hashes reuse elements at once, and a reader notices by this.
    pub generation: u32,
}
const _: () = assert!(size_of::<Backend<crate::net::Addr4>>() == 12);
const _: () = assert!(size_of::<Backend<crate::net::Addr6>>() == 24);

/// A backend of one generation, to find its slot by: key of `SLOTS*`, the inverse of `BACKENDS*`, whose value is the slot.
///
/// Whoever has an endpoint asks here whether it may still be used: a SYN on an old flow (V17), session affinity (V13).
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
    /// A key from its three parts.
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

/// A source that a service port serves at its load balancer IPs: key of `SOURCES*`, a trie whose prefix lengths count from the id on.
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

/// Bits of a [`SourceKey`] before the address.
pub const SOURCE_KEY_BITS: u32 = 32;

/// A client of a service port with session affinity (V13): key of `AFFINITY*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey<A> {
    /// The client.
    pub client: A,
    /// [`Service::id`]: one for all frontends of the service port.
    pub service: u32,
}
const _: () = assert!(size_of::<AffinityKey<crate::net::Addr4>>() == 8);
const _: () = assert!(size_of::<AffinityKey<crate::net::Addr6>>() == 20);

/// The endpoint that a client stays with. Value of `AFFINITY*`.
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
    /// A pod on the pod network: its node carries replies to any pod back unmasqueraded, so flows of pods to it may be redirected.
    /// Without it (hostNetwork, addresses outside the cluster) a pod's packets go through the stack, where the CNI masquerades.
    pub const POD: u16 = 1;
}

/// A name for people, beside an id: value of `NAMES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name {
    /// The number of bytes that count.
    pub len: u32,
    /// `namespace/name:port`, UTF-8, cut after 188 bytes.
    pub bytes: [u8; 188],
}
const _: () = assert!(size_of::<Name>() == 192);

impl Name {
    /// A name, cut at a character's border to what fits.
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
    /// The text; empty if it is no UTF-8.
    pub fn as_str(&self) -> &str {
        let len = (self.len as usize).min(self.bytes.len());
        core::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

/// What the agent tells the packet path; the one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Config {
    /// Key of the hash that chooses backends (V15).
    pub secret: u64,
    /// First port of the masquerade range (V12), host order.
    pub masquerade_first: u16,
    /// Number of ports of the masquerade range.
    pub masquerade_len: u16,
    /// Jiffies in a second.
    pub hz: u32,
    /// Seconds that a half-open flow counts as the same connection.
    pub opening_timeout: u32,
    /// Seconds that an answered UDP flow lives after its last packet (V18).
    pub udp_timeout: u32,
    /// The least MTU of all [`crate::net::Device`]s, bytes without the link-layer header: what is no larger fits through any.
    pub least_mtu: u32,
    /// Bits: see [`Config::THROUGH_STACK`].
    pub flags: u32,
    /// The device by which what this host's own processes send to Services comes to the programs, where no hooks of sockets serve them (V21);
    /// [`IfIndex::NONE`] where they do. Behind all that agents knew before, like what follows.
    pub gate: IfIndex,
    /// Always zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<Config>() == 40);

impl Config {
    /// Translated packets take the stack's way, so that the host's firewall for forwarded packets sees them.
    pub const THROUGH_STACK: u32 = 1;
    /// A pod of this node is isolated by a NetworkPolicy: packets are judged.
    pub const POLICY: u32 = 2;
    /// Pods that are not known yet are denied (P31).
    pub const DENY_UNKNOWN: u32 = 4;
    /// What NetworkPolicy denies is answered with an ICMP error.
    pub const REJECT_DENIED: u32 = 8;

    /// Whether all bits of `flag` are set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}
