//! Portway's own commands as a library: each module is one command of `cargo xtask`, or what
//! several of them share.

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
