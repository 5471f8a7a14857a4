//! The parts of xtask that its tests use as well.

pub mod lab;
