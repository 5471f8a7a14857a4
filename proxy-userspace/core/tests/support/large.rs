//! A large cluster: pods of many Deployments, policies that select them, and blocks all over the
//! world. The file that includes this one has `model` in scope.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use proxy_common::net::Protocol;

use super::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use super::model::{
    ContainerPort, Labels, Namespace, NetworkPolicy, ObjectName, Phase, Pod, PortRange, Snapshot,
};

/// Deployments of a namespace. Each has one pod on this node, so that every policy is in force
/// here: more than any real node has.
pub const APPS: u32 = 5;
/// Pods of each Deployment.
pub const PODS_OF_AN_APP: u32 = 20;
/// Policies of a namespace, each for one Deployment.
pub const POLICIES_OF_A_NAMESPACE: u32 = 10;
/// Number of teams; each namespace belongs to one.
pub const TEAMS: u32 = 10;

/// The size of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of namespaces; each has so many pods and policies.
    pub namespaces: u32,
    /// Number of prefixes of each policy; a tenth of them are excepts.
    pub cidrs: u32,
}

/// Returns the name of an object of a namespace.
pub fn in_namespace(namespace: u32, name: String) -> ObjectName {
    ObjectName::new(&format!("namespace-{namespace}"), &name)
}

/// Returns one pod of a Deployment.
pub fn pod(namespace: u32, app: u32, n: u32) -> Pod {
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
        labels: labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<Labels>(),
        ports: vec![port("http", 8080), port("metrics", 9090)],
        created: Some(i64::from(number)),
        ..Pod::default()
    }
}

/// Returns a selector of one label.
pub fn one(key: &str, value: &str) -> Selector {
    Selector {
        requirements: BTreeSet::from([Requirement::In(key.into(), BTreeSet::from([value.into()]))]),
    }
}

/// Returns the n-th prefix, somewhere in the world. Every tenth is a wide one with an except.
pub fn block(n: u32) -> Peer {
    let random = n.wrapping_mul(0x9e37_79b1);
    let length = if n.is_multiple_of(10) {
        14
    } else {
        20 + (random >> 7) as u8 % 9
    };
    let cidr = Ipv4Net::new_assert(Ipv4Addr::from_bits(random | 0x8000_0000), length).trunc();
    let except = n
        .is_multiple_of(10)
        .then(|| IpNet::from(Ipv4Net::new_assert(cidr.addr(), 18)));
    Peer::Block {
        cidr: cidr.into(),
        except: except.into_iter().collect(),
    }
}

/// Returns one policy of a namespace.
pub fn policy(namespace: u32, n: u32, cidrs: u32) -> NetworkPolicy {
    let number = namespace * POLICIES_OF_A_NAMESPACE + n;
    // Of eleven prefixes ten are CIDRs.
    let mut blocks = (0..cidrs * 10 / 11).map(|i| block(number * cidrs + i));
    let from = blocks.by_ref().take(cidrs as usize / 2).collect();
    let own = |app: u32| Peer::Pods {
        namespaces: Namespaces::Own,
        pods: one("app", &format!("app-{app}")),
    };
    let team = Namespaces::Matching(one("team", &format!("team-{}", number % TEAMS)));
    let port = |port| PolicyPort {
        protocol: Protocol::TCP,
        port,
    };
    let ports = vec![
        port(PortMatch::Named("http".into())),
        port(PortMatch::Range(PortRange {
            first: 443,
            last: 443,
        })),
    ];
    let mut ingress = vec![
        Rule {
            peers: vec![own((n + 1) % APPS), own((n + 2) % APPS)],
            ports: ports.clone(),
        },
        Rule {
            peers: vec![Peer::Pods {
                namespaces: team,
                pods: one("tier", "front"),
            }],
            ports: ports.clone(),
        },
    ];
    let mut egress = vec![Rule {
        peers: vec![own((n + 3) % APPS)],
        ports: ports.clone(),
    }];
    // A rule without peers would allow everybody.
    if cidrs > 0 {
        ingress.push(Rule { peers: from, ports });
        egress.push(Rule {
            peers: blocks.collect(),
            ports: vec![],
        });
    }
    NetworkPolicy {
        pods: one("app", &format!("app-{}", n % APPS)),
        ingress: Some(ingress),
        egress: Some(egress),
    }
}

/// Returns the whole cluster.
pub fn cluster(size: Size) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.settings.node_name = "here".into();
    for namespace in 0..size.namespaces {
        let labels = Labels::from([("team".into(), format!("team-{}", namespace % TEAMS))]);
        let name = ObjectName::cluster(&format!("namespace-{namespace}"));
        snapshot.state.namespaces.insert(name, Namespace { labels });
        for (app, n) in (0..APPS).flat_map(|app| (0..PODS_OF_AN_APP).map(move |n| (app, n))) {
            snapshot.state.pods.insert(
                in_namespace(namespace, format!("app-{app}-{n}")),
                pod(namespace, app, n),
            );
        }
        for n in 0..POLICIES_OF_A_NAMESPACE {
            snapshot.state.policies.insert(
                in_namespace(namespace, format!("policy-{n}")),
                policy(namespace, n, size.cidrs),
            );
        }
    }
    snapshot
}
