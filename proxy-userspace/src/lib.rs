//! The agent `portway`: what ought to be in the kernel's maps, and everything that keeps it so.
//!
//! source -> model -> compile -> contents -> place -> dataplane; `sync` owns the loop.

pub mod agent;
pub mod args;
pub mod cli;
pub mod cni;
pub mod conntrack;
pub mod dataplane;
pub mod devices;
pub mod doctor;
pub mod ended;
pub mod events;
pub mod explain;
pub mod flows;
pub mod gate;
pub mod health;
pub mod http;
pub mod links;
pub mod listeners;
pub mod metrics;
pub mod model;
pub mod other_dataplanes;
pub mod serving;
pub mod shadow;
pub mod sockets;
pub mod source;
pub mod sync;
pub mod tracked;

pub use proxy_core::{compile, contents, place};

#[cfg(test)]
mod testing;
