//! The agent `portway` and its commands.
//!
//! source -> model -> compile -> contents -> place -> dataplane; [`sync`] owns the loop.
//!
//! - Command line: [`cli`], [`args`]; [`agent`], [`doctor`] and [`explain`] are commands.
//! - Inputs: [`source`] (objects), [`links`] (the host's network), [`cni`] (addresses of new pods).
//! - Pure middle, in the crate `proxy_core`: [`model`], [`compile`], [`contents`], [`place`].
//! - The kernel: [`dataplane`] (maps, programs, hooks), [`flows`] (the sweep), [`gate`],
//!   [`conntrack`], [`sockets`], [`other_dataplanes`].
//! - Outputs: [`health`], [`metrics`], [`events`], [`shadow`] (nodePorts that hide a listener).

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
