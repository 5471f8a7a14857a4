//! The library behind `cargo xtask`: what the project's commands and its tests share.

pub mod lab;
