//! The lab: clusters in network namespaces of one host, for the demo, the tests and the benchmarks.

pub mod controlplane;
