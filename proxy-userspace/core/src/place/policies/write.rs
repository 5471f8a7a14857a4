//! Writes to the policy tables, and the tables' sizes.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::net::{IfIndex, Veth};
use proxy_common::policy::{
    CHUNKS, CHUNKS_LARGE, Chunk, EXACT_MAX, NODES, NODES_LARGE, Node, PREFIXES_MAX, PodRows,
    PortSet, VerdictKey, Word,
};

/// One change of one element of the policy tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyWrite {
    /// Of `PORTSETS`.
    Set(u32, PortSet),
    /// Of `MATRIX`, whole: part of a row that nothing refers to yet.
    Chunk(u32, Box<Chunk>),
    /// One verdict in `MATRIX`.
    Verdict {
        /// The chunk.
        chunk: u32,
        /// The class within the chunk.
        class: u32,
        /// The number of the set of ports.
        set: u16,
    },
    /// Of `VERDICTS`.
    Hashed(VerdictKey, u32),
    /// Removes from `VERDICTS`.
    Unhash(VerdictKey),
    /// Of `CLASSES4`, whole: a node that nothing refers to yet.
    Node(u32, Box<Node>),
    /// One word in `CLASSES4`: its node, its byte.
    Word(u32, u8, Word),
    /// Adjacent words in one node of `CLASSES4`, which become equal.
    Words {
        /// The node.
        node: u32,
        /// The first word's byte.
        from: u8,
        /// Number of words.
        len: u16,
        /// The new value of the words.
        word: Word,
    },
    /// Of `CLASSES6`.
    Exact(IpAddr, u32),
    /// Removes from `CLASSES6`.
    DeleteExact(IpAddr),
    /// Of `PREFIXES*`.
    Prefix(IpNet, u32),
    /// Removes from `PREFIXES*`.
    DeletePrefix(IpNet),
    /// Of `ROWS`: a pod's policy, by one store.
    Rows(u32, PodRows),
    /// Of `VETHS`.
    Veth(IfIndex, Veth),
    /// Removes from `VETHS`.
    DeleteVeth(IfIndex),
}

/// The sizes of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Nodes of `CLASSES4`, roots included.
    pub nodes: u32,
    /// Chunks of `MATRIX`.
    pub chunks: u32,
    /// Elements of `CLASSES6`.
    pub exact: usize,
    /// Elements of each `PREFIXES*`.
    pub prefixes: usize,
}

impl Room {
    /// Enough for 100,000 prefixes.
    pub const LARGE: Self = Self {
        nodes: NODES_LARGE,
        chunks: CHUNKS_LARGE,
        exact: EXACT_MAX as usize,
        prefixes: PREFIXES_MAX as usize,
    };
}

impl Default for Room {
    fn default() -> Self {
        Self {
            nodes: NODES,
            chunks: CHUNKS,
            exact: EXACT_MAX as usize,
            prefixes: PREFIXES_MAX as usize,
        }
    }
}
