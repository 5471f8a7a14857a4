//! Denied connections in plain words: source and destination, and the policies without a rule that
//! allows the connection.

use std::net::{IpAddr, SocketAddr};

use proxy_common::net::Protocol;
use proxy_common::reason::Reason;
use tracing::info;

use crate::compile::PolicyCompiler;
use crate::dataplane::Denied;
use crate::model::{NetworkPolicy, ObjectName, Snapshot};

/// Logs a denial.
pub fn log(denied: &Denied, compiler: &PolicyCompiler, snapshot: &Snapshot) {
    info!(target: "portway::denied", "{}", in_words(denied, compiler, snapshot));
}

fn in_words(denied: &Denied, compiler: &PolicyCompiler, snapshot: &Snapshot) -> String {
    let Denied {
        client,
        server,
        protocol,
        reason,
        silent,
    } = denied;
    let ingress = *reason == Reason::DeniedIngress;
    let judge = if ingress { server } else { client };
    let pod = compiler.pod_at(snapshot, judge.ip());
    let direction = if ingress { "ingress" } else { "egress" };
    let why = match pod {
        Some(pod) => format!("no rule allows it: {}", policies(pod, ingress, snapshot)),
        None => "its policies are not known any more".to_owned(),
    };
    let more = if *silent > 0 {
        format!(" ({silent} more of the kind were not told)")
    } else {
        String::new()
    };
    let isolated = pod.map_or_else(|| judge.ip().to_string(), ToString::to_string);
    let from = end(client.ip(), compiler, snapshot);
    let to = format!(
        "{} port {}",
        end(server.ip(), compiler, snapshot),
        port(*server, *protocol)
    );
    format!("{from} may not reach {to}: the {direction} of {isolated} is isolated, and {why}{more}")
}

fn port(server: SocketAddr, protocol: Protocol) -> String {
    match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            format!("{}/{}", server.port(), protocol.name())
        }
        Protocol(number) => format!("of IP protocol {number}"),
    }
}

fn end(addr: IpAddr, compiler: &PolicyCompiler, snapshot: &Snapshot) -> String {
    match compiler.pod_at(snapshot, addr) {
        Some(pod) => format!("{pod} ({addr})"),
        None => addr.to_string(),
    }
}

/// The policies that isolate a pod in a direction, by name.
fn policies(pod: &ObjectName, ingress: bool, snapshot: &Snapshot) -> String {
    let labels = snapshot.state.pods.get(pod).map(|pod| &pod.labels);
    let names_direction = |policy: &NetworkPolicy| {
        if ingress {
            policy.ingress.is_some()
        } else {
            policy.egress.is_some()
        }
    };
    let of_namespace = snapshot
        .state
        .policies
        .iter()
        .filter(|(name, _)| name.namespace == pod.namespace);
    let selecting = of_namespace.filter(|(_, policy)| {
        names_direction(policy) && labels.is_some_and(|l| policy.pods.selects(l))
    });
    let names: Vec<_> = selecting
        .map(|(name, _)| format!("NetworkPolicy {name}"))
        .collect();
    if names.is_empty() {
        "its NetworkPolicies have just gone".to_owned()
    } else {
        names.join(", ")
    }
}
