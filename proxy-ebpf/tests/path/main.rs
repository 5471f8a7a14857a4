//! The packet path on the host's fakes: each test follows a packet hop by hop, written once and run
//! for both families.

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
