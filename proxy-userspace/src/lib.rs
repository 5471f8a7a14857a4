//! The agent `portway`: what ought to be in the kernel's maps, and everything that keeps it so.
//!
//! source -> model -> compile -> contents -> place -> dataplane; `sync` owns the loop.

pub mod args;
pub mod compile;
pub mod contents;
pub mod doctor;
pub mod model;
pub mod source;
