//! The commands of `cargo xtask`, a module each, and the lab.
//!
//! [`lab`] makes nodes, pods and clients in network namespaces; [`demo`], [`compare`] and the
//! integration tests are built on it. [`sh`] starts other programs, [`counts`] reads the test
//! runner's results.

pub mod build;
pub mod compare;
pub mod conform;
pub mod counts;
pub mod demo;
pub mod docs;
pub mod lab;
pub mod load;
pub mod setup;
pub mod sh;
pub mod test;
pub mod tidy;
pub mod vm;
