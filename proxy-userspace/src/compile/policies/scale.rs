//! A large cluster: what compiling it takes from nothing, and what one change takes. A debug build has a tenth of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use proxy_common::net::Protocol;

use super::{PolicyCompiler, PolicyDelta};
use crate::compile::Touched;
use crate::contents::policies::Policies;
use crate::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{
    ContainerPort, Labels, Namespace, NetworkPolicy, Object, ObjectName, Phase, Pod, PortRange, Snapshot, Update,
};

const NAMESPACES: u32 = if cfg!(debug_assertions) { 10 } else { 100 };
/// Deployments of a namespace; each has one pod on this node, so that every policy is in force here: more than any node has.
const APPS: u32 = 5;
const PODS_OF_AN_APP: u32 = 20;
const POLICIES_OF_A_NAMESPACE: u32 = 10;
/// Of each, a tenth of them excepts.
const CIDRS_OF_A_POLICY: u32 = 100;
const TEAMS: u32 = 10;
/// Changes of each kind, every one in another namespace.
const ROUNDS: u32 = if cfg!(debug_assertions) { 9 } else { 51 };

fn in_namespace(namespace: u32, name: String) -> ObjectName {
    ObjectName::new(&format!("namespace-{namespace}"), &name)
}

fn pod(namespace: u32, app: u32, n: u32) -> Pod {
    let number = (namespace * APPS + app) * PODS_OF_AN_APP + n;
    let labels = [
        ("app", format!("app-{app}")),
        ("pod-template-hash", format!("{namespace}-{app}")),
        ("tier", if app == 0 { "front" } else { "back" }.into()),
    ];
    let port = |name: &str, port| ContainerPort {
        container: "main".into(),
        name: Some(name.into()),
        port,
        host_port: None,
        protocol: Protocol::TCP,
    };
    Pod {
        addresses: vec![
            Ipv4Addr::from_bits(0x0af4_0000 + number).into(),
            Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(number)).into(),
        ],
        node: Some(if n == 0 { "here" } else { "there" }.into()),
        phase: Phase::Running,
        ready: true,
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Labels>(),
        ports: vec![port("http", 8080), port("metrics", 9090)],
        created: Some(i64::from(number)),
        ..Pod::default()
    }
}

fn one(key: &str, value: &str) -> Selector {
    Selector { requirements: BTreeSet::from([Requirement::In(key.into(), BTreeSet::from([value.into()]))]) }
}

/// The n-th prefix of all, somewhere in the world; every tenth is a wide one with an except.
fn block(n: u32) -> Peer {
    let random = n.wrapping_mul(0x9e37_79b1);
    let length = if n.is_multiple_of(10) { 14 } else { 20 + (random >> 7) as u8 % 9 };
    let cidr = Ipv4Net::new_assert(Ipv4Addr::from_bits(random | 0x8000_0000), length).trunc();
    let except = n.is_multiple_of(10).then(|| IpNet::from(Ipv4Net::new_assert(cidr.addr(), 18)));
    Peer::Block { cidr: cidr.into(), except: except.into_iter().collect() }
}

fn policy(namespace: u32, n: u32) -> NetworkPolicy {
    let number = namespace * POLICIES_OF_A_NAMESPACE + n;
    // Of eleven prefixes ten are cidrs.
    let mut blocks = (0..CIDRS_OF_A_POLICY * 10 / 11).map(|i| block(number * CIDRS_OF_A_POLICY + i));
    let from = blocks.by_ref().take(CIDRS_OF_A_POLICY as usize / 2).collect();
    let own = |app: u32| Peer::Pods { namespaces: Namespaces::Own, pods: one("app", &format!("app-{app}")) };
    let team = Namespaces::Matching(one("team", &format!("team-{}", number % TEAMS)));
    let port = |port| PolicyPort { protocol: Protocol::TCP, port };
    let ports = vec![port(PortMatch::Named("http".into())), port(PortMatch::Range(PortRange { first: 443, last: 443 }))];
    NetworkPolicy {
        pods: one("app", &format!("app-{}", n % APPS)),
        ingress: Some(vec![
            Rule { peers: vec![own((n + 1) % APPS), own((n + 2) % APPS)], ports: ports.clone() },
            Rule { peers: vec![Peer::Pods { namespaces: team, pods: one("tier", "front") }], ports: ports.clone() },
            Rule { peers: from, ports: ports.clone() },
        ]),
        egress: Some(vec![Rule { peers: vec![own((n + 3) % APPS)], ports }, Rule { peers: blocks.collect(), ports: vec![] }]),
    }
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.settings.node_name = "here".into();
    for namespace in 0..NAMESPACES {
        let labels = Labels::from([("team".into(), format!("team-{}", namespace % TEAMS))]);
        let name = ObjectName::cluster(&format!("namespace-{namespace}"));
        snapshot.state.namespaces.insert(name, Namespace { labels });
        for (app, n) in (0..APPS).flat_map(|app| (0..PODS_OF_AN_APP).map(move |n| (app, n))) {
            snapshot.state.pods.insert(in_namespace(namespace, format!("app-{app}-{n}")), pod(namespace, app, n));
        }
        for n in 0..POLICIES_OF_A_NAMESPACE {
            snapshot.state.policies.insert(in_namespace(namespace, format!("policy-{n}")), policy(namespace, n));
        }
    }
    snapshot
}

/// Megabytes that the process has in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()));
    pages.unwrap_or_default() * 4096 / 1_000_000
}

/// A cluster, and how long each kind of change takes.
struct Measured {
    snapshot: Snapshot,
    compiler: PolicyCompiler,
}

impl Measured {
    /// The medium and the longest time of some changes of one kind, and what the last of them changed.
    fn change(&mut self, what: &str, mut object: impl FnMut(u32) -> Object) -> (Duration, PolicyDelta) {
        let (mut times, mut delta) = (Vec::new(), PolicyDelta::default());
        for round in 0..ROUNDS {
            let (update, mut touched) = (Update::Apply(object(round)), Touched::default());
            touched.note(&update);
            _ = self.snapshot.state.apply(update);
            let begun = Instant::now();
            delta = self.compiler.compile(&self.snapshot, &touched);
            times.push(begun.elapsed());
        }
        times.sort();
        let (pods, classes) = (delta.pods.len(), delta.classes.len());
        let (median, longest) = (times[ROUNDS as usize / 2], times[ROUNDS as usize - 1]);
        println!("{what}: median {median:.1?}, longest {longest:.1?}; changes {pods} pods, {classes} classes");
        (median, delta)
    }
}

fn differ(policies: &Policies) -> usize {
    policies.classes.values().map(std::sync::Arc::as_ptr).collect::<BTreeSet<_>>().len()
}

#[test]
fn one_change_in_a_large_cluster_costs_only_what_depends_on_it() {
    let snapshot = cluster();
    let (mut compiler, memory, begun) = (PolicyCompiler::default(), resident(), Instant::now());
    compiler.compile(&snapshot, &Touched::everything());
    let whole = begun.elapsed();
    let (policies, pods) = (compiler.policies(), snapshot.state.pods.len());
    println!(
        "{pods} pods, {} policies, {} CIDRs: from nothing {whole:.1?}, {} MB; {} prefixes of {} classes, {} pods here",
        snapshot.state.policies.len(),
        snapshot.state.policies.len() * CIDRS_OF_A_POLICY as usize,
        resident() - memory,
        policies.classes.len(),
        differ(policies),
        policies.pods.len(),
    );
    assert_eq!(policies.pods.len() as u32, NAMESPACES * APPS);
    let mut measured = Measured { snapshot, compiler };
    let at = |round: u32| round * 7 % NAMESPACES;
    let (time, delta) = measured.change("a pod is ready or not", |round| {
        Object::Pod(in_namespace(at(round), "app-1-0".into()), Pod { ready: false, ..pod(at(round), 1, 0) })
    });
    assert!(delta.is_empty() && time * 50 < whole, "{time:?} of {whole:?}");
    let (time, delta) = measured.change("a pod gets other labels", |round| {
        let labels = Labels::from([("app".into(), "app-2".into()), ("round".into(), round.to_string())]);
        Object::Pod(in_namespace(at(round), "app-1-0".into()), Pod { labels, ..pod(at(round), 1, 0) })
    });
    assert!(delta.pods.len() == 1 && time * 20 < whole, "{time:?} of {whole:?}");
    let (time, delta) = measured.change("a pod comes to this node", |round| {
        let addresses: Vec<IpAddr> = vec![Ipv4Addr::from_bits(0x0aff_0000 + round).into()];
        Object::Pod(in_namespace(at(round), format!("new-{round}")), Pod { addresses, ..pod(at(round), 3, 0) })
    });
    assert!(delta.pods.len() == 1 && delta.classes.len() == 1 && time * 50 < whole, "{time:?} of {whole:?}");
    let (time, _) = measured.change("a policy has other ports", |round| {
        let mut policy = policy(at(round), 4);
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.ports.clear());
        Object::NetworkPolicy(in_namespace(at(round), "policy-4".into()), policy)
    });
    assert!(time * 20 < whole, "{time:?} of {whole:?}");
    let (time, _) = measured.change("a policy has one more cidr", |round| {
        let mut policy = policy(at(round), 2);
        policy.egress.iter_mut().flatten().for_each(|rule| rule.peers.push(block(u32::MAX - round)));
        Object::NetworkPolicy(in_namespace(at(round), "policy-2".into()), policy)
    });
    assert!(time * 20 < whole, "{time:?} of {whole:?}");
    let (time, _) = measured.change("a policy's peers are all pods", |round| {
        let mut policy = policy(at(round), 3);
        let all = Peer::Pods { namespaces: Namespaces::Matching(Selector::default()), pods: Selector::default() };
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.peers.push(all.clone()));
        Object::NetworkPolicy(in_namespace(at(round), "policy-3".into()), policy)
    });
    // Here there is no way around writing all pods' classes.
    assert!(time < whole, "{time:?} of {whole:?}");
    measured.change("a namespace changes teams", |round| {
        let labels = Labels::from([("team".into(), format!("team-{}", (at(round) + 1) % TEAMS))]);
        Object::Namespace(ObjectName::cluster(&format!("namespace-{}", at(round))), Namespace { labels })
    });
    let mut again = PolicyCompiler::default();
    again.compile(&measured.snapshot, &Touched::everything());
    assert_eq!(measured.compiler.policies(), again.policies());
}
