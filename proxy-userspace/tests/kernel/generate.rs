//! Random nodes, packets and changes, reproducible from a seed.

use std::env;
use std::net::IpAddr;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use proxy_common::flow::FlowKey;
use proxy_common::net::{
    Address as _, AddressFlags, Device, IfIndex, LocalPod, Port, Protocol, RangeKind, V4, V6,
};
use proxy_common::service::{
    Backend, BackendFlags, BackendKey, Config, Service, ServiceFlags, ServiceKey, SourceKey,
};
use proxy_ebpf::Table;
use proxy_ebpf::fake::Memory;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::family::{Dotted, End, LOOPBACK, Net, end};
use crate::namespace::Network;
use crate::programs::{CAPACITY, Hook};
use crate::segment::{ACK, FIN, RST, SYN, Segment};

mod packets;
mod tables;

pub use packets::{Shot, any_flow, encapsulated_for, shortest, shot};
pub use tables::{Remote, furnish, node, node_port_to, serve};

/// A client outside; the only one with a known MAC address on the first device.
pub const CLIENT: Dotted = [198, 51, 100, 7];
/// The node's addresses: nodePorts are served on the first.
pub const NODE: Dotted = [192, 0, 2, 1];
pub const NODE_B: Dotted = [192, 0, 2, 3];
/// Another node.
pub const NODE2: Dotted = [192, 0, 2, 2];
/// Pods of this node.
pub const POD_A: Dotted = [10, 244, 1, 10];
pub const POD_B: Dotted = [10, 244, 1, 11];
/// A pod of another node.
pub const REMOTE: Dotted = [10, 244, 2, 10];
/// The unspecified address, which stands for all nodePort addresses.
const NODE_PORTS: Dotted = [0; 4];
const VIP: Dotted = [10, 96, 0, 10];
const VIP_B: Dotted = [10, 96, 0, 11];
/// An address of the Service range that no Service has.
const NOBODY: Dotted = [10, 96, 0, 9];
const EXTERNAL: Dotted = [203, 0, 113, 200];

const CLIENTS: [Dotted; 5] = [
    CLIENT,
    [198, 51, 100, 8],
    [203, 0, 113, 5],
    [203, 0, 113, 6],
    [192, 0, 2, 9],
];
const PODS: [Dotted; 3] = [POD_A, POD_B, [10, 244, 1, 12]];
const BACKENDS: [Dotted; 11] = [
    POD_A,
    POD_B,
    PODS[2],
    NODE,
    NODE2,
    REMOTE,
    [10, 244, 2, 11],
    [10, 244, 2, 12],
    [10, 244, 3, 10],
    [10, 244, 3, 11],
    [198, 51, 100, 8],
];
const FRONTENDS: [End; 6] = [
    (NODE_PORTS, NODE_PORT),
    (NODE_PORTS, 30053),
    (VIP, 80),
    (VIP, 53),
    (VIP_B, 80),
    (EXTERNAL, 443),
];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// A nodePort.
pub const NODE_PORT: u16 = 30080;
/// First port of the masquerade range.
pub const MASQUERADE_FIRST: u16 = 2000;
/// The longest payload: longer than any device's MTU.
const LONG: usize = 1700;
/// Bytes of the link-layer header.
const LINK: usize = 14;
/// Jiffies per second for the programs: more than any kernel has, so that no flow expires during a
/// test.
const HZ: u32 = 10_000;

/// The source of random numbers.
pub struct Dice(StdRng);

impl Dice {
    /// Returns the seed of `PORTWAY_TEST_SEED`, or one from the clock.
    pub fn seed() -> Result<u64> {
        match env::var("PORTWAY_TEST_SEED") {
            Ok(seed) => seed.parse().context("read the seed in PORTWAY_TEST_SEED"),
            Err(_) => Ok(SystemTime::UNIX_EPOCH
                .elapsed()
                .context("tell the time")?
                .as_nanos() as u64),
        }
    }
    /// Returns a source with this seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }
    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }
    /// Returns true in `percent` of a hundred calls.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    /// Returns one of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn number(&mut self) -> u64 {
        self.0.random()
    }
}
