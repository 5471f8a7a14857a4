//! The rules of NetworkPolicy on small clusters, and histories.

mod cluster;
mod history;
mod peers;
mod pods;
