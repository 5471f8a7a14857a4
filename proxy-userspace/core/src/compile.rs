//! Compiles a snapshot of the cluster and the host to the contents of the maps. Pure: equal
//! snapshots give equal contents.

mod addresses;
mod compiler;
mod config;
mod conflict;
mod endpoints;
mod health;
mod local;
mod pods;
mod policies;
mod services;
#[cfg(test)]
mod tests;
mod touched;

use crate::contents::Contents;
use crate::model::Snapshot;

pub use addresses::node_port_addresses;
pub use compiler::Compiler;
pub use conflict::Conflict;
pub use endpoints::{known_endpoints, serving_endpoints};
pub use health::{HealthCheck, HealthChecks, PortConflict, health_checks, local_ready_endpoints};
pub use local::{NoLocalEndpoints, no_local_endpoints};
pub use policies::PolicyCompiler;
pub use services::service_port_name;
pub use touched::Touched;

/// Returns the contents of the maps; see [`compile_reporting`].
pub fn compile(snapshot: &Snapshot) -> Contents {
    compile_reporting(snapshot).0
}

/// Returns the contents of the maps, and the conflicts of Services that claim one frontend.
pub fn compile_reporting(snapshot: &Snapshot) -> (Contents, Vec<Conflict>) {
    let mut compiler = Compiler::default();
    compiler.compile(snapshot, &Touched::everything());
    (
        compiler.contents().clone(),
        compiler.conflicts().cloned().collect(),
    )
}
