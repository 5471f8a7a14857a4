//! NetworkPolicy in the maps: rows of pods, classes of addresses, and the ports that a row allows
//! towards a class.
//!
//! A verdict takes a few loads: the pod's row, the class of the other end's address, the matrix's
//! element, the set of ports.

use crate::net::Protocol;

/// The two rows of a pod: the element of `ROWS` at [`crate::node::LocalPod::pod_id`].
///
/// Its eight bytes are replaced by one store, so that a packet meets the old policy or the new one
/// (P32). Both families share it.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PodRows {
    /// The row for connections to the pod.
    pub ingress: Row,
    /// The row for connections of the pod.
    pub egress: Row,
}
const _: () = assert!(size_of::<PodRows>() == 8);

/// Number of elements of `ROWS`: one for each pod of a node, and element 0, which no pod has.
pub const MAX_PODS: u32 = 4096;

/// A pod's row in one direction.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Row(pub u32);

impl Row {
    /// Not isolated: everything is allowed (P3).
    pub const OPEN: Self = Self(0);
    /// Isolated, and no rule: nothing is allowed (P7).
    pub const CLOSED: Self = Self(1);
    /// Bit of a row that has its verdicts in `VERDICTS` and not in `MATRIX`.
    pub const HASHED: u32 = 1 << 31;

    /// Returns the row's first chunk in `MATRIX`; `None` if the row is hashed, open or closed.
    #[inline(always)]
    pub const fn chunk(self) -> Option<u32> {
        if self.0 > Self::CLOSED.0 && self.0 & Self::HASHED == 0 {
            Some(self.0)
        } else {
            None
        }
    }
}

/// Number of classes of one chunk of `MATRIX`. The chunks of a row are neighbours.
pub const CHUNK_CLASSES: u32 = 1024;
/// A chunk: numbers of [`PortSet`]s by class.
pub type Chunk = [u16; CHUNK_CLASSES as usize];
/// Number of chunks of `MATRIX`. Chunks 0 and 1 are unused: open and closed rows need none.
pub const CHUNKS: u32 = 320;
/// Number of chunks with large tables.
pub const CHUNKS_LARGE: u32 = 16_384;

/// Maximum number of elements of `VERDICTS`, which takes memory per element.
pub const VERDICTS_MAX: u32 = 1_048_576;
/// Maximum number of elements of `CLASSES6`; further single addresses go to `PREFIXES6`.
pub const EXACT_MAX: u32 = 16_384;
/// Maximum number of elements of each `PREFIXES*`, which takes memory per element.
pub const PREFIXES_MAX: u32 = 262_144;

/// Key of `VERDICTS`; the value is the number of a [`PortSet`]. A missing key means
/// [`PortSet::NONE`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VerdictKey {
    /// The pod's row.
    pub row: Row,
    /// The other end's class.
    pub class: u32,
}
const _: () = assert!(size_of::<VerdictKey>() == 8);

/// Class of the addresses that no peer matches, except peers that match all addresses.
pub const NO_CLASS: u32 = 0;

/// A word of `CLASSES4`, the directory of IPv4's classes: the class of all addresses below it, or
/// the number of the next node.
///
/// A node has 256 words. The lookup begins at the node numbered like the first byte of the
/// address, at the word of the second byte. At each further node the next byte chooses the word.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Word(pub u32);

impl Word {
    /// Bit of a word that has the number of a node in its other bits.
    const NODE: u32 = 1 << 31;
    /// There was no room for a node: the classes below are in `PREFIXES4`.
    pub const ELSEWHERE: Self = Self(1 << 30);

    /// Makes a word with a class.
    #[inline(always)]
    pub const fn class(class: u32) -> Self {
        Self(class)
    }
    /// Makes a word with the number of a node.
    #[inline(always)]
    pub const fn node(node: u32) -> Self {
        Self(Self::NODE | node)
    }
    /// Returns the number of the node, if the word has one.
    #[inline(always)]
    pub const fn as_node(self) -> Option<u32> {
        if self.0 & Self::NODE != 0 {
            Some(self.0 & !Self::NODE)
        } else {
            None
        }
    }
}

/// A node of the directory.
pub type Node = [Word; 256];
/// Number of nodes that are always there: one for each first byte.
pub const ROOTS: u32 = 256;
/// Number of nodes of the directory, roots included.
pub const NODES: u32 = 576;
/// Number of nodes of the directory with large tables, roots included.
pub const NODES_LARGE: u32 = 73_728;

/// A set of ports: an element of `PORTSETS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortSet {
    /// Bits: [`PortSet::EVERYTHING`], [`PortSet::TCP`], [`PortSet::UDP`], [`PortSet::SCTP`].
    pub flags: u16,
    /// Number of ranges in use.
    pub len: u16,
    /// Number of the set with further ranges; 0 if none.
    pub next: u32,
    /// The ranges.
    pub ranges: [PortRange; PortSet::RANGES],
}
const _: () = assert!(size_of::<PortSet>() == 128);

impl PortSet {
    /// Number of the empty set.
    pub const NONE: u32 = 0;
    /// Number of the set of everything.
    pub const ALL: u32 = 1;
    /// Number of elements of `PORTSETS`.
    pub const SETS: u32 = 1024;
    /// Number of ranges of one set.
    pub const RANGES: usize = 15;
    /// Maximum number of sets in a chain.
    pub const CHAIN: u32 = 8;
    /// The set contains every protocol, also those without ports (P6, P26).
    pub const EVERYTHING: u16 = 1;
    /// The set contains every port of TCP (P13).
    pub const TCP: u16 = 2;
    /// The set contains every port of UDP.
    pub const UDP: u16 = 4;
    /// The set contains every port of SCTP.
    pub const SCTP: u16 = 8;

    /// Returns the bit for every port of a protocol; 0 if the protocol has no ports.
    #[inline(always)]
    pub const fn whole(protocol: Protocol) -> u16 {
        match protocol {
            Protocol::TCP => Self::TCP,
            Protocol::UDP => Self::UDP,
            Protocol::SCTP => Self::SCTP,
            _ => 0,
        }
    }
}

/// A range of ports of one protocol, both ends included (P14).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortRange {
    /// The first port, host order.
    pub first: u16,
    /// The last port, host order.
    pub last: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<PortRange>() == 8);

impl PortRange {
    /// Returns true if the range contains a port of a protocol.
    #[inline(always)]
    pub const fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol.0 == protocol.0 && port >= self.first && port <= self.last
    }
}
