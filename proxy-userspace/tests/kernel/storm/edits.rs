//! The pods of the storm, and its random policies.

use super::*;

/// Returns one local pod, which policies select, and others that they name.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.settings.node_name = "here".into();
    let pods = PEERS.iter().filter(|(_, app)| !app.is_empty()).enumerate();
    let pods = pods.map(|(number, (addr, app))| (format!("peer-{number}"), *addr, *app, "there"));
    for (name, addr, app, node) in pods.chain([("subject".to_owned(), SUBJECT, "subject", "here")])
    {
        let pod = Pod {
            addresses: vec![addr.parse().expect("an address")],
            node: Some(node.into()),
            phase: Phase::Running,
            ready: true,
            labels: Labels::from([("app".to_owned(), app.to_owned())]),
            created: Some(1),
            ..Pod::default()
        };
        _ = snapshot.state.apply(Update::Apply(Object::Pod(
            ObjectName::new("shop", &name),
            pod,
        )));
    }
    let addr = SUBJECT.parse().expect("an address");
    snapshot.links.pods = BTreeMap::from([(addr, DEVICE)]);
    snapshot
}

/// Replaces one of two policies.
pub fn edit_of(dice: &mut Dice) -> Update {
    Update::Apply(Object::NetworkPolicy(
        ObjectName::new("shop", dice.pick(&["one", "two"])),
        policy(dice),
    ))
}

/// Returns a random policy of the pod: pods by label, blocks with and without exceptions, ports or
/// none.
fn policy(dice: &mut Dice) -> NetworkPolicy {
    let app = |app: &str| Selector {
        requirements: [Requirement::In("app".into(), [app.to_owned()].into())].into(),
    };
    let rules = |dice: &mut Dice| {
        let mut rule = || {
            let peers = match dice.below(5) {
                0 => vec![],
                1 => vec![Peer::Block {
                    cidr: "203.0.113.0/24".parse().expect("a prefix"),
                    except: Default::default(),
                }],
                2 => vec![Peer::Block {
                    cidr: "0.0.0.0/0".parse().expect("a prefix"),
                    except: [
                        "10.244.2.0/24".parse().expect("a prefix"),
                        "198.51.100.8/29".parse().expect("a prefix"),
                    ]
                    .into(),
                }],
                _ => vec![Peer::Pods {
                    namespaces: Namespaces::Own,
                    pods: app(dice.pick(&["a", "b", "c"])),
                }],
            };
            let ports = match dice.below(3) {
                0 => vec![],
                _ => {
                    let port = dice.pick(&PORTS);
                    vec![PolicyPort {
                        protocol: Protocol::TCP,
                        port: PortMatch::Range(PortRange {
                            first: port,
                            last: port,
                        }),
                    }]
                }
            };
            Rule { peers, ports }
        };
        let first = rule();
        vec![first, rule()]
    };
    let ingress = dice.chance(80).then(|| rules(dice));
    let egress = dice.chance(80).then(|| rules(dice));
    NetworkPolicy {
        pods: app("subject"),
        ingress,
        egress,
    }
}
