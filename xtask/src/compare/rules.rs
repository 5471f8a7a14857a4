//! Owns the list of intended differences: each rule says, from a row and from what kube-proxy made
//! of it, what Portway has to make of it.

use std::io;

use nix::errno::Errno;

use super::outcome::{End, Outcome, Seen};
use super::rows::{Client, Row, Target};
use super::scene::{Backends, Policy, Ranges};

/// A difference that is meant.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The number of the rule, or the table that has it.
    pub number: &'static str,
    /// The rule in a sentence.
    pub difference: &'static str,
    /// Turns kube-proxy's outcome into the one that the rule intends.
    foresee: fn(&Row, &Outcome) -> Outcome,
}

/// All that are meant, in the order in which they apply.
pub const INTENDED: [Rule; 9] = [
    Rule {
        number: "V11",
        difference: "pods of other nodes reach all endpoints of an externalTrafficPolicy Local Service, and the replies come back",
        foresee: other_pods_reach_all,
    },
    Rule {
        number: "verdict table",
        difference: "the nodePort of an externalTrafficPolicy Local Service refuses at once where no backend is, instead of dropping",
        foresee: node_port_refuses,
    },
    Rule {
        number: "V9",
        difference: "the client's address is kept for backends of the node that is asked, and for its pods",
        foresee: client_is_kept,
    },
    Rule {
        number: "V10",
        difference: "a pod that reaches itself sees the address that it asked for, instead of the node's",
        foresee: hairpin_sees_frontend,
    },
    Rule {
        number: "V21, loopback",
        difference: "a process reaches nodePorts at loopback addresses, which kube-proxy serves in its iptables mode only",
        foresee: loopback_serves,
    },
    Rule {
        number: "V21, refused",
        difference: "a process of the node that is refused gets \"connection refused\" over UDP too, instead of \"not permitted\"",
        foresee: process_hears_refused,
    },
    Rule {
        number: "V21, dropped",
        difference: "a process of the node gets \"not permitted\" at once over TCP too when its connection is denied, instead of waiting",
        foresee: process_hears_dropped,
    },
    Rule {
        number: "V21, packets",
        difference: "where no hooks serve it, a process gets no error over UDP either when its packet is dropped, instead of \"not permitted\"",
        foresee: packets_are_dropped_silently,
    },
    Rule {
        number: "V21, same node",
        difference: "where no hooks serve it, a process that reaches another one of its node is seen by the address that it asked for",
        foresee: packets_to_own_host_come_from_the_frontend,
    },
];

/// The comparison of a row's two outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal.
    Same,
    /// Different as these rules intend.
    Intended(Vec<&'static str>),
    /// Something else than this, which would be right.
    Wrong(Outcome),
}

/// Judges what Portway made of `row` by what kube-proxy did.
pub fn judge(row: &Row, kube_proxy: &Outcome, portway: &Outcome) -> Verdict {
    let (mut foreseen, mut numbers) = (kube_proxy.clone(), Vec::new());
    for rule in &INTENDED {
        let next = (rule.foresee)(row, &foreseen);
        if next != foreseen {
            numbers.push(rule.number);
        }
        foreseen = next;
    }
    match foreseen == *portway {
        false => Verdict::Wrong(foreseen),
        true if numbers.is_empty() => Verdict::Same,
        true => Verdict::Intended(numbers),
    }
}

fn other_pods_reach_all(row: &Row, outcome: &Outcome) -> Outcome {
    let endpoints = row.service.endpoints();
    if !(row.is_external_local() && row.is_from_other_pod()) || endpoints.is_empty() {
        return outcome.clone();
    }
    let served = endpoints.iter().map(|(pod, _)| End::Served {
        pod: (*pod).to_owned(),
        seen: Seen::Client,
    });
    Outcome(served.collect())
}

fn node_port_refuses(row: &Row, outcome: &Outcome) -> Outcome {
    let none_here = !row.service.is_on(row.asked()) && !row.service.endpoints().is_empty();
    let from_outside = row.is_from_outside() || row.is_from_process() && !row.is_from_own_node();
    let concerned = matches!(row.target, Target::NodePort(_))
        && row.is_external_local()
        && from_outside
        && none_here;
    match concerned && *outcome == Outcome::only(End::TimedOut) {
        true => Outcome::only(End::Refused),
        false => outcome.clone(),
    }
}

fn client_is_kept(row: &Row, outcome: &Outcome) -> Outcome {
    let asked = row.asked();
    let is_here = |pod: &str| {
        row.service
            .endpoints()
            .iter()
            .any(|(name, at)| *name == pod && *at == asked)
    };
    outcome.with_clients(|pod, before| match () {
        () if is_hairpin(row, pod) => before,
        () if row.is_from_own_node() || is_here(pod) => Seen::Client,
        () => Seen::Node(asked),
    })
}

fn hairpin_sees_frontend(row: &Row, outcome: &Outcome) -> Outcome {
    let frontend = match row.target {
        Target::NodePort(n) => Seen::Node(n),
        Target::ClusterIp
        | Target::UnknownClusterPort
        | Target::UnassignedClusterIp
        | Target::Loopback
        | Target::UnassignedNodePort(_)
        | Target::ExternalIp(_)
        | Target::LoadBalancerIp(_)
        | Target::UnknownLoadBalancerPort(_) => Seen::Frontend,
    };
    outcome.with_clients(|pod, before| {
        if is_hairpin(row, pod) {
            frontend
        } else {
            before
        }
    })
}

fn loopback_serves(row: &Row, outcome: &Outcome) -> Outcome {
    let endpoints = row.service.endpoints();
    if row.target != Target::Loopback
        || endpoints.is_empty()
        || *outcome != Outcome::only(End::Refused)
    {
        return outcome.clone();
    }
    Outcome(
        endpoints
            .iter()
            .map(|(pod, _)| End::Served {
                pod: (*pod).to_owned(),
                seen: Seen::Client,
            })
            .collect(),
    )
}

fn process_hears_refused(row: &Row, outcome: &Outcome) -> Outcome {
    let unknown = row.target == Target::UnknownClusterPort;
    let empty = row.service.endpoints().is_empty() && row.target != Target::UnassignedClusterIp;
    match row.is_from_process() && (unknown || empty) && *outcome == Outcome::only(not_permitted())
    {
        true => Outcome::only(End::Refused),
        false => outcome.clone(),
    }
}

fn process_hears_dropped(row: &Row, outcome: &Outcome) -> Outcome {
    let ranges =
        row.service.ranges != Ranges::Open && matches!(row.target, Target::LoadBalancerIp(_));
    let local = row.service.internal == Policy::Local && row.target == Target::ClusterIp;
    let dropped = ranges || local || row.target == Target::UnassignedClusterIp;
    match row.is_from_process()
        && !row.is_unhooked()
        && dropped
        && *outcome == Outcome::only(End::TimedOut)
    {
        true => Outcome::only(not_permitted()),
        false => outcome.clone(),
    }
}

fn packets_are_dropped_silently(row: &Row, outcome: &Outcome) -> Outcome {
    match row.is_unhooked() && *outcome == Outcome::only(not_permitted()) {
        true => Outcome::only(End::TimedOut),
        false => outcome.clone(),
    }
}

fn packets_to_own_host_come_from_the_frontend(row: &Row, outcome: &Outcome) -> Outcome {
    // A nodePort's address is the process's own.
    let elsewhere = matches!(
        row.target,
        Target::ClusterIp | Target::ExternalIp(_) | Target::LoadBalancerIp(_)
    );
    let own_host = row.service.backends == Backends::Host && row.service.is_on(row.asked());
    match row.is_unhooked() && elsewhere && own_host {
        true => outcome.with_clients(|_, _| Seen::Frontend),
        false => outcome.clone(),
    }
}

/// The error that `connect` returns for EPERM.
fn not_permitted() -> End {
    End::Failed(io::Error::from_raw_os_error(Errno::EPERM as i32).to_string())
}

/// Returns true if `pod` reaches itself by way of its own node.
fn is_hairpin(row: &Row, pod: &str) -> bool {
    matches!(row.client, Client::Pod(name, _) if name == pod) && row.is_from_own_pod()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::Protocol;
    use crate::compare::scene::SERVICES;
    use crate::lab::topology::Family;

    fn row(service: &str, client: Client, target: Target) -> Row {
        let service = SERVICES
            .iter()
            .find(|found| found.name == service)
            .expect("a Service");
        Row {
            client,
            service,
            target,
            family: Family::V4,
            protocol: Protocol::Tcp,
        }
    }

    fn served(by: &[(&str, Seen)]) -> Outcome {
        Outcome(
            by.iter()
                .map(|(pod, seen)| End::Served {
                    pod: (*pod).to_owned(),
                    seen: *seen,
                })
                .collect(),
        )
    }

    #[test]
    fn a_local_backend_sees_the_client_and_a_remote_one_the_node() {
        let row = row("cluster", Client::Far, Target::NodePort(1));
        let kube_proxy = served(&[("web-1", Seen::Node(1)), ("web-2", Seen::Node(1))]);
        let kept = served(&[("web-1", Seen::Client), ("web-2", Seen::Node(1))]);
        assert_eq!(
            judge(&row, &kube_proxy, &kept),
            Verdict::Intended(vec!["V9"])
        );
        assert_eq!(
            judge(&row, &kube_proxy, &kube_proxy),
            Verdict::Wrong(kept),
            "a missing difference is wrong, too"
        );
    }

    #[test]
    fn an_endpoint_that_is_not_asked_is_wrong() {
        let row = row("cluster", Client::Pod("client-1", 1), Target::ClusterIp);
        let both = served(&[("web-1", Seen::Client), ("web-2", Seen::Client)]);
        assert_eq!(judge(&row, &both, &both), Verdict::Same);
        assert_eq!(
            judge(&row, &both, &served(&[("web-1", Seen::Client)])),
            Verdict::Wrong(both)
        );
    }

    #[test]
    fn only_node_ports_refuse_where_no_backend_is() {
        let (dropped, refused) = (Outcome::only(End::TimedOut), Outcome::only(End::Refused));
        let node_port = row("etp-local", Client::Near, Target::NodePort(3));
        assert_eq!(
            judge(&node_port, &dropped, &refused),
            Verdict::Intended(vec!["verdict table"])
        );
        let load_balancer = row("etp-local", Client::Near, Target::LoadBalancerIp(3));
        assert_eq!(
            judge(&load_balancer, &dropped, &refused),
            Verdict::Wrong(dropped.clone())
        );
        assert_eq!(judge(&load_balancer, &dropped, &dropped), Verdict::Same);
    }

    #[test]
    fn a_process_is_told_at_once() {
        let [dropped, refused, denied] =
            [End::TimedOut, End::Refused, not_permitted()].map(Outcome::only);
        let unknown = row("cluster", Client::Process(1), Target::UnknownClusterPort);
        assert_eq!(
            judge(&unknown, &denied, &refused),
            Verdict::Intended(vec!["V21, refused"])
        );
        assert_eq!(
            judge(&unknown, &refused, &denied),
            Verdict::Wrong(refused.clone())
        );
        let ranges = row("ranges-far", Client::Process(1), Target::LoadBalancerIp(1));
        assert_eq!(
            judge(&ranges, &dropped, &denied),
            Verdict::Intended(vec!["V21, dropped"])
        );
        assert_eq!(judge(&ranges, &dropped, &refused), Verdict::Wrong(denied));
        let other = row("etp-local", Client::Process(1), Target::NodePort(3));
        assert_eq!(
            judge(&other, &dropped, &refused),
            Verdict::Intended(vec!["verdict table"])
        );
    }

    #[test]
    fn a_process_without_hooks_is_told_by_packets() {
        let [dropped, refused, denied] =
            [End::TimedOut, End::Refused, not_permitted()].map(Outcome::only);
        let ranges = row("ranges-far", Client::Unhooked(1), Target::LoadBalancerIp(1));
        assert_eq!(judge(&ranges, &dropped, &dropped), Verdict::Same);
        assert_eq!(
            judge(&ranges, &denied, &dropped),
            Verdict::Intended(vec!["V21, packets"])
        );
        let unknown = row("cluster", Client::Unhooked(1), Target::UnknownClusterPort);
        assert_eq!(
            judge(&unknown, &denied, &refused),
            Verdict::Intended(vec!["V21, refused"])
        );
        let (client, frontend) = (
            served(&[("host-1", Seen::Client)]),
            served(&[("host-1", Seen::Frontend)]),
        );
        let own = row("host", Client::Unhooked(1), Target::ClusterIp);
        assert_eq!(
            judge(&own, &client, &frontend),
            Verdict::Intended(vec!["V21, same node"])
        );
        assert_eq!(judge(&own, &client, &client), Verdict::Wrong(frontend));
        for (client_node, target) in [(3, Target::ClusterIp), (1, Target::NodePort(1))] {
            let row = row("host", Client::Unhooked(client_node), target);
            assert_eq!(judge(&row, &client, &client), Verdict::Same);
        }
    }

    #[test]
    fn pods_of_other_nodes_reach_all_endpoints_and_are_masqueraded_where_replies_would_miss_the_node()
     {
        let row = row("etp-local", Client::Pod("client-3", 3), Target::NodePort(1));
        let mut astray = served(&[("web-1", Seen::Client)]);
        astray.0.insert(End::TimedOut);
        let all = served(&[("web-1", Seen::Client), ("web-2", Seen::Node(1))]);
        assert_eq!(
            judge(&row, &astray, &all),
            Verdict::Intended(vec!["V11", "V9"])
        );
    }

    #[test]
    fn a_process_keeps_its_address_by_way_of_its_own_node_only() {
        let kube_proxy = served(&[("web-1", Seen::Client), ("web-2", Seen::Client)]);
        let own = row("cluster", Client::Process(1), Target::NodePort(1));
        assert_eq!(judge(&own, &kube_proxy, &kube_proxy), Verdict::Same);
        let other = row("cluster", Client::Process(3), Target::NodePort(1));
        let masqueraded = served(&[("web-1", Seen::Node(1)), ("web-2", Seen::Node(1))]);
        let kept = served(&[("web-1", Seen::Client), ("web-2", Seen::Node(1))]);
        assert_eq!(
            judge(&other, &masqueraded, &kept),
            Verdict::Intended(vec!["V9"])
        );
    }
}
