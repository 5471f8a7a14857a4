//! The model of `proxy-core`, and its reading from Kubernetes' own types, which stop here.

pub mod k8s;

pub use proxy_core::model::*;
