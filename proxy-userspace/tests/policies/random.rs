//! Clusters and policies as users write them, at random: undefaulted, with every form that the
//! rules know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::cases::{ContainerPort, External, Namespace, Pod, Step};
use crate::oracle::End;

const NAMESPACES: [&str; 3] = ["shop", "lab", "void"];
const KEYS: [&str; 3] = ["app", "tier", "zone"];
const VALUES: [&str; 4] = ["a", "b", "c", ""];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const NUMBERS: [u16; 4] = [53, 80, 81, 8080];
const NAMES: [&str; 3] = ["http", "names", "none"];
/// Blocks with host bits or leading zeros, inside one another, of everything, and of single
/// addresses.
const BLOCKS: [&str; 10] = [
    "10.244.1.77/24",
    "010.244.0.0/16",
    "10.244.1.0/28",
    "0.0.0.0/0",
    "203.0.113.0/24",
    "203.0.113.9/32",
    "10.244.1.3/32",
    "fd00::/64",
    "fd00::3/128",
    "::/0",
];

fn pick<T: Copy>(dice: &mut StdRng, from: &[T]) -> T {
    from[dice.random_range(0..from.len())]
}

fn chance(dice: &mut StdRng, percent: u32) -> bool {
    dice.random_range(0..100) < percent
}

fn labels(dice: &mut StdRng) -> BTreeMap<String, String> {
    let some = KEYS
        .into_iter()
        .filter(|_| dice.random_range(0..100) < 55)
        .collect::<Vec<_>>();
    some.into_iter()
        .map(|key| (key.to_owned(), pick(dice, &VALUES).to_owned()))
        .collect()
}

/// Some pods of both families on two nodes, their nodes, and the world outside.
pub fn cluster(dice: &mut StdRng) -> Step {
    let namespaces = NAMESPACES.map(|name| Namespace {
        name: name.to_owned(),
        labels: Some(labels(dice)),
    });
    let pods = (0..7).map(|number| pod(dice, number)).collect();
    let external = |name: &str, ip: &str, node: Option<&str>| External {
        name: name.to_owned(),
        ip: ip.parse().expect("an address"),
        node: node.map(str::to_owned),
    };
    let externals = vec![
        external("world", "203.0.113.9", None),
        external("far", "198.51.100.1", None),
        external("spare", "10.244.1.20", None),
        external("node1", "192.0.2.1", Some("n1")),
        external("six", "2001:db8::1", None),
    ];
    Step {
        namespaces: namespaces.into(),
        pods,
        externals: Some(externals),
        policies: Some(Vec::new()),
        expected: Vec::new(),
    }
}

fn pod(dice: &mut StdRng, number: u8) -> Pod {
    let host_network = number == 6 && chance(dice, 50);
    let (v4, v6) = (format!("10.244.1.{number}"), format!("fd00::{number}"));
    let mut ips: Vec<IpAddr> = vec![
        v4.parse().expect("an address"),
        v6.parse().expect("an address"),
    ];
    if host_network {
        ips = vec!["192.0.2.1".parse().expect("an address")];
    } else if chance(dice, 30) {
        // P23: pods of one family only, of either.
        ips.remove(dice.random_range(0..2));
    }
    let ports: Vec<_> = (0..dice.random_range(0..5))
        .map(|_| ContainerPort {
            name: chance(dice, 80).then(|| pick(dice, &NAMES[..2]).to_owned()),
            container_port: pick(dice, &NUMBERS).into(),
            protocol: chance(dice, 60).then(|| pick(dice, &PROTOCOLS).to_owned()),
        })
        .collect();
    Pod {
        namespace: pick(dice, &NAMESPACES).to_owned(),
        name: format!("pod-{number}"),
        container_ports: ports,
        labels: labels(dice),
        ips,
        phase: pick(
            dice,
            &[
                "Running",
                "Running",
                "Running",
                "Running",
                "Pending",
                "Succeeded",
                "Failed",
            ],
        )
        .to_owned(),
        node: Some(
            if host_network {
                "n1"
            } else {
                pick(dice, &["n1", "n2"])
            }
            .to_owned(),
        ),
        host_network,
    }
}

/// The next state: other labels, other policies, a pod that comes or goes.
pub fn change(dice: &mut StdRng, step: &mut Step) {
    for namespace in &mut step.namespaces {
        if chance(dice, 20) {
            namespace.labels = Some(labels(dice));
        }
    }
    for number in 0..step.pods.len() {
        if chance(dice, 20) {
            let before = &step.pods[number];
            let same = before
                .name
                .trim_start_matches("pod-")
                .parse()
                .expect("a number");
            step.pods[number] = pod(dice, same);
        } else if chance(dice, 20) {
            step.pods[number].labels = labels(dice);
        }
    }
    let policies = step.policies.get_or_insert_default();
    policies.retain(|_| dice.random_range(0..100) < 60);
    let names: Vec<_> = policies
        .iter()
        .map(|policy| policy["metadata"]["name"].clone())
        .collect();
    for number in 0..5 {
        let name = json!(format!("policy-{number}"));
        if !names.contains(&name) && chance(dice, 60) {
            policies.push(policy(dice, &name));
        }
    }
}

fn policy(dice: &mut StdRng, name: &Value) -> Value {
    let mut spec = json!({});
    if chance(dice, 85) {
        spec["podSelector"] = if chance(dice, 40) {
            json!({})
        } else {
            selector(dice)
        };
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        match dice.random_range(0..10) {
            0..3 => {}
            3 => spec[direction] = json!([]),
            _ => {
                spec[direction] = (0..dice.random_range(1..3))
                    .map(|_| rule(dice, peers))
                    .collect()
            }
        }
    }
    match dice.random_range(0..6) {
        0 => spec["policyTypes"] = json!(["Ingress"]),
        1 => spec["policyTypes"] = json!(["Egress"]),
        2 => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        3 => spec["policyTypes"] = json!([]),
        _ => {}
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": pick(dice, &NAMESPACES[..2]), "name": name },
        "spec": spec,
    })
}

fn rule(dice: &mut StdRng, peers: &str) -> Value {
    let mut rule = json!({});
    if chance(dice, 75) {
        rule[peers] = (0..dice.random_range(0..4)).map(|_| peer(dice)).collect();
    }
    if chance(dice, 60) {
        rule["ports"] = (0..dice.random_range(0..3)).map(|_| port(dice)).collect();
    }
    rule
}

fn peer(dice: &mut StdRng) -> Value {
    match dice.random_range(0..10) {
        0..4 => {
            let cidr = pick(dice, &BLOCKS);
            let inside = |except: &&&str| {
                except.contains(':') == cidr.contains(':')
                    && bits(except) > bits(cidr)
                    && covers(cidr, except)
            };
            let except: Vec<_> = BLOCKS
                .iter()
                .filter(inside)
                .filter(|_| dice.random_range(0..100) < 40)
                .collect();
            if except.is_empty() {
                json!({ "ipBlock": { "cidr": cidr } })
            } else {
                json!({ "ipBlock": { "cidr": cidr, "except": except } })
            }
        }
        4..6 => json!({ "podSelector": selector(dice) }),
        6..8 => json!({ "namespaceSelector": selector(dice) }),
        _ => json!({ "podSelector": selector(dice), "namespaceSelector": selector(dice) }),
    }
}

fn bits(cidr: &str) -> u8 {
    cidr.split_once('/')
        .and_then(|(_, bits)| bits.parse().ok())
        .expect("a prefix")
}

/// Returns true if one block lies in another.
fn covers(cidr: &str, other: &str) -> bool {
    let net = |text: &str| {
        text.trim_start_matches('0')
            .parse::<ipnet::IpNet>()
            .or_else(|_| text.parse())
            .expect("a prefix")
            .trunc()
    };
    net(cidr).contains(&net(other))
}

fn selector(dice: &mut StdRng) -> Value {
    let mut selector = json!({});
    if chance(dice, 50) {
        let key = pick(dice, &["app", "tier", "kubernetes.io/metadata.name"]);
        let value = if key.contains('/') {
            pick(dice, &NAMESPACES)
        } else {
            pick(dice, &VALUES)
        };
        selector["matchLabels"] = json!({ key: value });
    }
    if chance(dice, 50) {
        let operator = pick(dice, &["In", "NotIn", "Exists", "DoesNotExist"]);
        let mut expression = json!({ "key": pick(dice, &KEYS), "operator": operator });
        if operator.ends_with("In") {
            expression["values"] = json!([pick(dice, &VALUES), pick(dice, &VALUES)]);
        }
        selector["matchExpressions"] = json!([expression]);
    }
    selector
}

fn port(dice: &mut StdRng) -> Value {
    let mut port = json!({});
    if chance(dice, 60) {
        port["protocol"] = json!(pick(dice, &PROTOCOLS));
    }
    match dice.random_range(0..10) {
        0 => {}
        1..4 => port["port"] = json!(pick(dice, &NAMES)),
        4..6 => {
            let first = pick(dice, &NUMBERS);
            port["port"] = json!(first);
            port["endPort"] = json!(first.max(pick(dice, &NUMBERS)));
        }
        _ => port["port"] = json!(pick(dice, &NUMBERS)),
    }
    port
}

/// Every connection between two ends of one family.
pub fn connections(step: &Step) -> Vec<(End<'_>, End<'_>, &'static str, u16)> {
    let pods = step.pods.iter().flat_map(|pod| {
        pod.ips.iter().map(move |ip| {
            let lives = !matches!(pod.phase.as_str(), "Succeeded" | "Failed");
            let node = if pod.host_network {
                pod.node.as_deref()
            } else {
                None
            };
            End {
                pod: Some(pod).filter(|pod| lives && !pod.host_network),
                node,
                ip: *ip,
            }
        })
    });
    let externals = step.externals.iter().flatten().map(|e| End {
        pod: None,
        node: e.node.as_deref(),
        ip: e.ip,
    });
    let ends: Vec<_> = pods.chain(externals).collect();
    let pairs = ends
        .iter()
        .flat_map(|from| ends.iter().map(move |to| (*from, *to)));
    let pairs = pairs.filter(|(from, to)| from.ip != to.ip && from.ip.is_ipv4() == to.ip.is_ipv4());
    let ports = PROTOCOLS
        .into_iter()
        .flat_map(|protocol| NUMBERS.map(|number| (protocol, number)));
    let ports: Vec<_> = ports.collect();
    pairs
        .flat_map(|(from, to)| {
            ports
                .clone()
                .into_iter()
                .map(move |(protocol, number)| (from, to, protocol, number))
        })
        .collect()
}
