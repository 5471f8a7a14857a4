//! The packet path: decides for each packet where it goes, and rewrites it.
//!
//! The library is pure and `no_std`. It reaches the kernel through two traits, [`Packet`] (the
//! bytes of one packet) and [`Tables`] (maps, routes, time, randomness). The binary `portway-ebpf`
//! (`main.rs`, `kernel/`) implements them with the kernel's helpers; the module `fake` (feature
//! `fake`) implements them in memory for tests and fuzzers.
//!
//! # Entry functions
//!
//! | function | hook |
//! |---|---|
//! | [`from_device`] | tc ingress of a node device or tunnel |
//! | [`from_pod`] | tc ingress of the host side of a pod's veth |
//! | [`to_pod`] | tc egress of the host side of a pod's veth |
//! | [`to_device`] | tc egress of a node device, tunnel or loopback |
//! | [`xdp()`] | XDP of a node device |
//! | [`socket::direct`], [`socket::asked`] | cgroup hooks of sockets |
//!
//! # Modules, in the order in which a packet meets them at tc
//!
//! | module | owns |
//! |---|---|
//! | [`stages`](mod@stages) | the table of stages, and their order ([`serve`]) |
//! | [`scratch`] | the state that stages hand on |
//! | [`admission`] | the pod of a packet, and the check of its source (P18, P31, P33) |
//! | [`parse`] | from bytes to headers |
//! | [`forward`] | from headers to a flow; sending packets of a flow on |
//! | [`exception`] | fragments, extension headers, ICMP, other protocols |
//! | [`dsr`] | direct server return: encapsulation and decapsulation |
//! | [`open`] | opening a flow for a new connection |
//! | [`service`] | from a destination to a backend |
//! | [`plan`] | the way of a new flow |
//! | [`flow`] | the life of a flow in the flow tables |
//! | [`verdict`] | the NetworkPolicy verdict on a packet |
//! | [`policy`] | rows, address classes and port sets |
//! | [`rewrite`] | writing packet bytes; ICMP errors; [`crc32c`] for SCTP |
//! | [`stop`] | dropping a packet, or answering it |
//! | [`process`] | processes of this host that are served by their packets |
//! | [`xdp`](mod@xdp) | the short way for established flows that leave the node again |
//! | [`socket`] | processes of this host that are served by their sockets |
//! | [`seams`] | the traits that the surroundings implement |
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod admission;
pub mod crc32c;
pub mod dsr;
pub mod exception;
pub mod flow;
pub mod forward;
pub mod open;
pub mod parse;
pub mod plan;
pub mod policy;
pub mod process;
pub mod rewrite;
pub mod scratch;
pub mod seams;
pub mod service;
pub mod socket;
pub mod stages;
pub mod stop;
pub mod verdict;
pub mod xdp;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use proxy_common::flow::Hook;
use proxy_common::net::IfIndex;
use proxy_common::reason::Reason;

use exception::Egress;
pub use forward::Action;
use parse::Ip;
pub use scratch::Scratch;
pub use seams::{
    Change, Insert, NotPromoted, Packet, Refused, Route, Table, Tables, Verdicts, Wire,
};
use socket::Sockets;
use stages::InOneGo;
pub use stages::{Stage, Stages, serve};
pub use xdp::xdp;

/// Handles a packet that `device`, a node device or a tunnel, received: tc ingress.
pub fn from_device<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::FromDevice))
}

/// Handles a packet that the pod behind `device` sent: tc ingress of the host side of its veth.
pub fn from_pod<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::FromPod))
}

/// Handles a packet that the stack or a bridge sends to the pod behind `device`: tc egress of the
/// host side of its veth.
pub fn to_pod<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::ToPod))
}

/// Handles a packet that this host sends through a node device, or to itself: tc egress.
pub fn to_device<F: Ip, P: Packet, T: Sockets<F>>(
    packet: &mut P,
    tables: &T,
    _device: IfIndex,
) -> Result<Action, Reason> {
    let done = forward::restore(packet, tables)?;
    if done != Action::Untouched {
        return Ok(done);
    }
    let mut scratch = Scratch::rubbish();
    match exception::on_egress(packet, tables, &mut scratch) {
        Egress::SendError => exception::send_error(packet, tables, Hook::ToDevice, &scratch),
        Egress::SendException => exception::send(packet, tables, Hook::ToDevice, &scratch),
        Egress::Other => process::enter(packet, tables, &mut scratch),
    }
}
