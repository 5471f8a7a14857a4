//! What the packet path and the agent agree on: keys and values of the maps, reasons, checksum and hash arithmetic.
//!
//! Allocates nothing, does no I/O, and depends on nothing in the kernel build. Every type that lies in a map is `repr(C)`,
//! has no padding, and its size is asserted where it is defined.
#![no_std]

pub mod flow;
pub mod net;
#[cfg(feature = "aya")]
mod pod;
pub mod policy;
pub mod reason;
pub mod service;
pub mod socket;
