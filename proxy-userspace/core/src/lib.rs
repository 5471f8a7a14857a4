//! The pure middle of the agent: from the cluster's objects to the writes that bring the kernel's maps in step.
//!
//! | room | owns |
//! |---|---|
//! | [`model`] | the cluster's objects, the host's network and the settings, as plain values |
//! | [`compile`] | the step from a snapshot of these to the contents of the maps |
//! | [`contents`] | the contents of the maps in symbols, their differences and their dump |
//! | [`place`] | the step from contents to writes: ids, generations, slots, and their order |
//!
//! Nothing here does I/O, reads a clock or draws random numbers. The agent's `source` and `links` fill the
//! model, its `dataplane` carries the writes out, and its `sync` owns the loop.

pub mod compile;
pub mod contents;
pub mod model;
pub mod place;
