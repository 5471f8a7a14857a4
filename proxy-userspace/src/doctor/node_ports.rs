//! nodePorts that another Service or a process of this host uses as well (V8).

use proxy_common::net::Protocol;

use super::check::Check;
use super::{Finding, Listener};
use crate::compile::Conflict;
use crate::model::{Kind, ObjectName, ObjectRef, Proxied, ServicePort, State};

/// Returns findings for frontends that two Services claim.
pub(super) fn claimed_twice(conflicts: &[Conflict]) -> Vec<Finding> {
    let finding = |c: &Conflict| {
        let object = ObjectRef {
            kind: Kind::Service,
            name: c.object.clone(),
        };
        let field = if c.frontend.addr.is_unspecified() {
            "spec.ports[*].nodePort"
        } else {
            "spec.externalIPs"
        };
        let problem = format!(
            "{} belongs to Service {} already, so {} is not served there",
            c.frontend, c.winner, c.loser
        );
        Finding::new(
            Check::ClaimedTwice,
            &object,
            field,
            problem,
            "give one of the two another port or address",
        )
    };
    conflicts.iter().map(finding).collect()
}

/// Returns findings for nodePorts on which a process of this host listens.
pub(super) fn taken_by_host(state: &State, listeners: &[Listener]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, service) in state
        .services
        .iter()
        .filter(|(_, s)| s.proxied == Proxied::Yes)
    {
        for (i, port) in service.ports.iter().enumerate() {
            let Some(number) = port.node_port else {
                continue;
            };
            let mut takers: Vec<_> = listeners
                .iter()
                .filter(|l| takes(l, number, port.protocol))
                .map(who)
                .collect();
            takers.sort();
            takers.dedup();
            findings.extend(
                takers
                    .into_iter()
                    .map(|taker| taken(name, i, port, number, &taker)),
            );
        }
    }
    findings
}

/// Returns true if the listener is hidden by the nodePort. A listener on loopback is not.
fn takes(listener: &Listener, number: u16, protocol: Protocol) -> bool {
    listener.addr.port() == number
        && listener.protocol == protocol
        && !listener.addr.ip().to_canonical().is_loopback()
}

fn who(listener: &Listener) -> String {
    match &listener.process {
        Some((name, pid)) => format!("process {name} ({pid})"),
        None => "a process that may not be seen from here".to_owned(),
    }
}

fn taken(name: &ObjectName, index: usize, port: &ServicePort, number: u16, taker: &str) -> Finding {
    let object = ObjectRef {
        kind: Kind::Service,
        name: name.clone(),
    };
    let problem = format!(
        "{taker} of this host listens on {number}/{} too; clients from outside reach the Service, not it",
        port.protocol.name()
    );
    let advice =
        "let that process listen elsewhere, or give the Service another nodePort".to_owned();
    Finding::new(
        Check::NodePortTaken,
        &object,
        format!("spec.ports[{index}].nodePort"),
        problem,
        advice,
    )
}
