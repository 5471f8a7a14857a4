//! NetworkPolicy as the packet path sees it: rows of pods, classes of addresses, and the ports that a row allows towards a class.
//!
//! A verdict is a few loads: the pod's row, the class of the other end's address, the matrix's element, the set of ports.

use crate::net::Protocol;

/// The two rows of a pod; one element of `ROWS`, whose index is [`crate::net::LocalPod::pod_id`].
///
/// Eight bytes that are replaced by one store, so that a packet meets the pod's old policy or its new one (P32). Both families share it.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PodRows {
    /// What may reach the pod.
    pub ingress: Row,
    /// What the pod may reach.
    pub egress: Row,
}
const _: () = assert!(size_of::<PodRows>() == 8);

/// How many elements `ROWS` has: one for each pod of a node, and slot 0, which is nobody's.
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
    /// This bit says that the row's verdicts are in `VERDICTS` and not in `MATRIX`.
    pub const HASHED: u32 = 1 << 31;

    /// The chunk of `MATRIX` where the row's first classes are; `None` if it is hashed, open or closed.
    #[inline(always)]
    pub const fn chunk(self) -> Option<u32> {
        if self.0 > Self::CLOSED.0 && self.0 & Self::HASHED == 0 {
            Some(self.0)
        } else {
            None
        }
    }
}

/// How many classes one chunk of `MATRIX` has. A row's chunks lie side by side.
pub const CHUNK_CLASSES: u32 = 1024;
/// One chunk: numbers of [`PortSet`]s by class.
pub type Chunk = [u16; CHUNK_CLASSES as usize];
/// How many chunks `MATRIX` has; 0 and 1 are never used, for those rows need none.
pub const CHUNKS: u32 = 320;
/// How many it has where the agent is told to make large tables.
pub const CHUNKS_LARGE: u32 = 16_384;

/// How many elements `VERDICTS` takes; memory is taken for those only that there are.
pub const VERDICTS_MAX: u32 = 1_048_576;
/// How many elements `CLASSES6` takes; single addresses beyond go to `PREFIXES6`.
pub const EXACT_MAX: u32 = 16_384;
/// How many elements each `PREFIXES*` takes; memory is taken for those only that there are.
pub const PREFIXES_MAX: u32 = 262_144;

/// A key of `VERDICTS`, whose value is the number of a [`PortSet`]; what is not there is [`PortSet::NONE`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VerdictKey {
    /// The pod's row.
    pub row: Row,
    /// The other end's class.
    pub class: u32,
}
const _: () = assert!(size_of::<VerdictKey>() == 8);

/// The class of addresses that no peer matches but "everybody".
pub const NO_CLASS: u32 = 0;

/// A word of `CLASSES4`, the directory of IPv4: the class of all addresses below it, or where to look on.
///
/// The directory's nodes have 256 words. An address begins at the node of its first byte's number with the word of its second; of a node that a
/// word leads to, the next byte chooses.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Word(pub u32);

impl Word {
    /// The rest of the word is the number of a node.
    const NODE: u32 = 1 << 31;
    /// There was no room for a node: `PREFIXES4` knows the classes below.
    pub const ELSEWHERE: Self = Self(1 << 30);

    /// A word that says a class.
    #[inline(always)]
    pub const fn class(class: u32) -> Self {
        Self(class)
    }
    /// A word that leads to a node.
    #[inline(always)]
    pub const fn node(node: u32) -> Self {
        Self(Self::NODE | node)
    }
    /// The node that it leads to.
    #[inline(always)]
    pub const fn as_node(self) -> Option<u32> {
        if self.0 & Self::NODE != 0 {
            Some(self.0 & !Self::NODE)
        } else {
            None
        }
    }
}

/// One node of the directory.
pub type Node = [Word; 256];
/// The nodes that are always there: one for each first byte.
pub const ROOTS: u32 = 256;
/// How many nodes the directory has room for, roots included.
pub const NODES: u32 = 576;
/// How many it has room for where the agent is told to make large tables.
pub const NODES_LARGE: u32 = 73_728;

/// Some ports: an element of `PORTSETS`, chosen by the matrix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortSet {
    /// Bits: [`PortSet::EVERYTHING`] and the whole protocols.
    pub flags: u16,
    /// The number of ranges that count.
    pub len: u16,
    /// The number of a set that has more ranges; 0 if none.
    pub next: u32,
    /// The ranges.
    pub ranges: [PortRange; PortSet::RANGES],
}
const _: () = assert!(size_of::<PortSet>() == 128);

impl PortSet {
    /// The number of the set that has nothing.
    pub const NONE: u32 = 0;
    /// The number of the set that has everything.
    pub const ALL: u32 = 1;
    /// How many sets `PORTSETS` has room for.
    pub const SETS: u32 = 1024;
    /// How many ranges one set has room for.
    pub const RANGES: usize = 15;
    /// How many sets hang together at most.
    pub const CHAIN: u32 = 8;
    /// Every protocol, also those without ports (P6, P26).
    pub const EVERYTHING: u16 = 1;
    /// Every port of TCP (P13).
    pub const TCP: u16 = 2;
    /// Every port of UDP.
    pub const UDP: u16 = 4;
    /// Every port of SCTP.
    pub const SCTP: u16 = 8;

    /// The flag that means every port of a protocol; 0 if there is none.
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

/// Ports of one protocol, both ends included (P14).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortRange {
    /// The first port, host order.
    pub first: u16,
    /// The last port.
    pub last: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<PortRange>() == 8);

impl PortRange {
    /// Whether a port of a protocol is one of them.
    #[inline(always)]
    pub const fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol.0 == protocol.0 && port >= self.first && port <= self.last
    }
}
