//! The packet path as a host library, over the fakes of its tables: each scenario follows a packet
//! from hook to hook, is written once, and runs for IPv4 and IPv6.
//!
//! A scenario has three parts:
//!
//! 1. A node with its objects: [`world::Node::new`] has two pods, a device and routes;
//!    `with_node_port`, `with_cluster_ip`, `isolated` and others add objects, and `node.tables` is
//!    open for the rest.
//! 2. The packet's life, one line for each hook: [`world::opening`] and [`world::packet`] make it,
//!    `from_device`, `from_pod`, `to_pod`, `to_device`, `from_gate`, `sends` and `xdp` pass it on.
//! 3. The result of each hook ([`world::Hop`]): `goes` and `tells` assert the action, read the
//!    packet back with all checksums verified, and return it for the next hook; `untouched`,
//!    `dropped` and `refused` end its life. Counters and flows are asserted last.
//!
//! The library begins each packet with a scratch full of 0xff (`Scratch::rubbish`), so that no
//! scenario passes by zeros that nobody wrote.
//!
//! ```ignore
//! both_families!(a_backend_elsewhere_sees_the_node);
//!
//! /// V9, V12: the backend's answer comes back to the node, and reaches the client.
//! fn a_backend_elsewhere_sees_the_node<F: Net>() {
//!     let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
//!     let syn = opening::<F>(Protocol::TCP, (CLIENT, 40000), (NODE, NODE_PORT));
//!     let there = node.from_device(&syn).goes(Action::Neighbour(ETH));
//!     assert_eq!(there.src.ip(), F::ip(NODE));
//!     let back = node.from_device(&there.answer()).goes(Action::Neighbour(ETH));
//!     assert_eq!((back.src, back.dst), (syn.dst, syn.src));
//!     assert_eq!(node.flows(), (0, 2), "half-open, established");
//! }
//! ```
//!
//! Names of tests begin with the rule that they show (`p16_…`, `v21_…`), or state what must be
//! true; `proxy-common/rules/` cites them.

#[path = "../support/family.rs"]
mod family;
#[path = "../support/segment.rs"]
mod segment;
mod world;

mod cluster_ip;
mod dsr;
mod errors;
mod firewall;
mod fragments;
mod gate;
mod life;
mod node_port;
mod options;
mod policy;
mod ports;
mod random;
mod refusals;
mod sctp;
mod socket;
mod untouched;
mod xdp;

/// Runs each scenario for IPv4 and for IPv6.
macro_rules! both_families {
    ($($scenario:ident),* $(,)?) => {
        mod v4 {
            $(#[test] fn $scenario() { super::$scenario::<proxy_common::net::V4>(); })*
        }
        mod v6 {
            $(#[test] fn $scenario() { super::$scenario::<proxy_common::net::V6>(); })*
        }
    };
}
pub(crate) use both_families;
