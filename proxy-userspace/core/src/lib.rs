//! The pure middle of the agent: from the cluster's objects to the writes that bring the kernel's
//! maps in step.
//!
//! | room | owns | begin with |
//! |---|---|---|
//! | [`model`] | the cluster's objects, the host's network and the settings | [`model::Snapshot`] |
//! | [`compile`] | the step from a snapshot to the contents of the maps | [`compile::Compiler`] |
//! | [`contents`] | the maps' contents in symbols, and their differences | [`contents::Contents`] |
//! | [`place`] | the step from contents to writes: ids, generations, order | [`place::place`] |
//!
//! NetworkPolicy takes the same way: [`compile::PolicyCompiler`], [`contents::policies::Policies`],
//! [`place::policies::PolicyTables`].
//!
//! Nothing here does I/O, reads a clock or draws random numbers. The agent's `source` and `links`
//! fill the model, its `dataplane` carries the writes out, and its `sync` owns the loop.

pub mod compile;
pub mod contents;
pub mod model;
pub mod place;
