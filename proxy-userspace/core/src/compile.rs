//! From a snapshot of the cluster and the host to what the maps ought to hold: pure, and the same for equal snapshots.

mod addresses;
mod compiler;
mod endpoints;
mod health;
mod local;
mod pods;
mod policies;
mod services;
#[cfg(test)]
mod tests;
mod touched;

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::IfIndex;
use proxy_common::service::Config;

use crate::contents::{Contents, Frontend};
use crate::model::{ObjectName, PodStart, Refusal, Snapshot, TranslatedWay};

pub use addresses::node_port_addresses;
pub use compiler::Compiler;
pub use endpoints::{known_endpoints, serving_endpoints};
pub use health::{HealthCheck, HealthChecks, PortConflict, health_checks, local_ready_endpoints};
pub use local::{NoLocalEndpoints, no_local_endpoints};
pub use policies::{PolicyCompiler, PolicyDelta};
pub use services::service_port_name;
pub use touched::Touched;

/// What the maps ought to hold; see [`compile_reporting`].
pub fn compile(snapshot: &Snapshot) -> Contents {
    compile_reporting(snapshot).0
}

/// What the maps ought to hold, and where two Services claimed the same frontend.
pub fn compile_reporting(snapshot: &Snapshot) -> (Contents, Vec<Conflict>) {
    let mut compiler = Compiler::default();
    compiler.compile(snapshot, &Touched::everything());
    (
        compiler.contents().clone(),
        compiler.conflicts().cloned().collect(),
    )
}

fn config(snapshot: &Snapshot) -> Config {
    let Snapshot {
        settings, links, ..
    } = snapshot;
    Config {
        secret: settings.secret,
        masquerade_first: settings.masquerade_ports.first,
        masquerade_len: u16::try_from(settings.masquerade_ports.count()).unwrap_or(u16::MAX),
        hz: settings.hz,
        opening_timeout: settings.timeouts.opening,
        udp_timeout: settings.timeouts.udp,
        least_mtu: links
            .devices
            .values()
            .map(|device| device.mtu)
            .min()
            .unwrap_or(0),
        flags: flags(snapshot),
        gate: links.gate.unwrap_or(IfIndex::NONE),
        zero: 0,
    }
}

fn flags(snapshot: &Snapshot) -> u32 {
    let policies = !snapshot.state.policies.is_empty();
    let flags = [
        (
            Config::THROUGH_STACK,
            snapshot.settings.translated_way() == TranslatedWay::Stack,
        ),
        (Config::POLICY, policies),
        (
            Config::DENY_UNKNOWN,
            policies && snapshot.settings.pod_start == PodStart::Deny,
        ),
        (
            Config::REJECT_DENIED,
            snapshot.settings.policy_deny == Refusal::Reject,
        ),
    ];
    flags
        .into_iter()
        .filter(|(_, set)| *set)
        .fold(0, |flags, (flag, _)| flags | flag)
}

/// Where addresses that no Service has are dropped: the ServiceCIDR objects', and the operator's.
fn service_ranges(snapshot: &Snapshot) -> impl Iterator<Item = IpNet> + '_ {
    let objects = snapshot
        .state
        .service_cidrs
        .values()
        .flat_map(|cidr| &cidr.prefixes);
    objects
        .chain(&snapshot.settings.service_cidrs)
        .map(IpNet::trunc)
}

/// Two service ports claimed one frontend; the loser is not served there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// What both claimed.
    pub frontend: Frontend,
    /// Who has it: `namespace/name:port`.
    pub winner: Arc<str>,
    /// Who has not.
    pub loser: Arc<str>,
    /// The Service that has not.
    pub object: ObjectName,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frontend,
            winner,
            loser,
            ..
        } = self;
        write!(
            f,
            "Service {loser} is not served at {frontend}: Service {winner} has it"
        )
    }
}
