//! The rules of NetworkPolicy on small clusters, and histories: the incremental result equals that
//! of compiling from nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::net::{IfIndex, Protocol};

use super::PolicyCompiler;
use crate::compile::Touched;
use crate::contents::policies::{Class, Isolation, Policies, PolicyDelta, verdict};
use crate::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{
    ContainerPort, Invalid, Kind, Labels, Namespace, NetworkPolicy, Object, ObjectName, ObjectRef,
    Phase, Pod, PortRange, Snapshot, Update,
};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

fn any_of(key: &str, values: &[&str]) -> Requirement {
    Requirement::In(
        key.into(),
        values.iter().map(|value| (*value).into()).collect(),
    )
}

fn none_of(key: &str, values: &[&str]) -> Requirement {
    Requirement::NotIn(
        key.into(),
        values.iter().map(|value| (*value).into()).collect(),
    )
}

fn selector(requirements: &[Requirement]) -> Selector {
    Selector {
        requirements: requirements.iter().cloned().collect(),
    }
}

fn app(name: &str) -> Selector {
    selector(&[any_of("app", &[name])])
}

/// A podSelector alone.
fn own(pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: Namespaces::Own,
        pods,
    }
}

fn elsewhere(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: Namespaces::Matching(namespaces),
        pods,
    }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block {
        cidr: net(cidr),
        except: except.iter().map(|text| net(text)).collect(),
    }
}

fn number(port: u16) -> PolicyPort {
    PolicyPort {
        protocol: TCP,
        port: PortMatch::Range(PortRange {
            first: port,
            last: port,
        }),
    }
}

fn named(name: &str) -> PolicyPort {
    PolicyPort {
        protocol: TCP,
        port: PortMatch::Named(name.into()),
    }
}

fn rule(peers: &[Peer], ports: &[PolicyPort]) -> Rule {
    Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    }
}

fn ingress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    NetworkPolicy {
        pods,
        ingress: Some(rules.to_vec()),
        egress: None,
    }
}

fn egress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    NetworkPolicy {
        pods,
        ingress: None,
        egress: Some(rules.to_vec()),
    }
}

fn pod(addresses: &[&str], app: &str) -> Pod {
    Pod {
        addresses: addresses.iter().map(|text| addr(text)).collect(),
        node: Some("here".into()),
        phase: Phase::Running,
        ready: true,
        labels: labels(&[("app", app)]),
        created: Some(1),
        ..Pod::default()
    }
}

fn container_port(container: &str, name: &str, port: u16, protocol: Protocol) -> ContainerPort {
    ContainerPort {
        container: container.into(),
        name: Some(name.into()),
        port,
        host_port: None,
        protocol,
    }
}

/// A cluster, its compiler, and the changes since it compiled.
struct Cluster {
    snapshot: Snapshot,
    compiler: PolicyCompiler,
    touched: Touched,
}

impl Cluster {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = "here".into();
        Self {
            snapshot,
            compiler: PolicyCompiler::default(),
            touched: Touched::default(),
        }
    }

    fn hear(&mut self, update: Update) {
        self.touched.record(&update);
        _ = self.snapshot.state.apply(update);
    }

    fn pod(&mut self, name: &str, pod: Pod) -> &mut Self {
        self.hear(Update::Apply(Object::Pod(object(name), pod)));
        self
    }

    fn namespace(&mut self, name: &str, pairs: &[(&str, &str)]) -> &mut Self {
        let namespace = Namespace {
            labels: labels(pairs),
        };
        self.hear(Update::Apply(Object::Namespace(
            ObjectName::cluster(name),
            namespace,
        )));
        self
    }

    fn policy(&mut self, name: &str, policy: NetworkPolicy) -> &mut Self {
        self.hear(Update::Apply(Object::NetworkPolicy(object(name), policy)));
        self
    }

    fn delete(&mut self, kind: Kind, name: &str) -> &mut Self {
        self.hear(Update::Delete(ObjectRef {
            kind,
            name: object(name),
        }));
        self
    }

    /// Compiles the changes, and compares with compiling from nothing.
    fn compile(&mut self) -> PolicyDelta {
        let before = self.compiler.policies().clone();
        let delta = self
            .compiler
            .compile(&self.snapshot, &std::mem::take(&mut self.touched));
        let mut whole = PolicyCompiler::default();
        whole.compile(&self.snapshot, &Touched::everything());
        assert_eq!(self.compiler.policies(), whole.policies());
        assert_eq!(delta, PolicyDelta::between(&before, whole.policies()));
        assert_as_few_as_can_be(whole.policies());
        assert_same_allocations(&before, self.compiler.policies(), &delta);
        delta
    }

    fn policies(&mut self) -> &Policies {
        self.compile();
        self.compiler.policies()
    }

    /// Returns true if both ends allow TCP to this port.
    fn allows(&mut self, from: &str, to: &str, port: u16) -> bool {
        verdict(self.policies(), addr(from), addr(to), TCP, port).allows()
    }

    fn classes(&mut self) -> Vec<String> {
        self.policies()
            .classes
            .keys()
            .map(IpNet::to_string)
            .collect()
    }
}

/// `namespace/name`. The default namespace is `shop`.
fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    ObjectName::new(namespace, name)
}

/// No prefix has the class of the longest prefix around it.
fn assert_as_few_as_can_be(policies: &Policies) {
    for (prefix, class) in &policies.classes {
        let mut others = policies.clone();
        others
            .classes
            .retain(|other, _| other != prefix && other.prefix_len() <= prefix.prefix_len());
        let around = others.class_of(prefix.addr()).cloned().unwrap_or_default();
        assert_ne!(&around, class, "{prefix} says nothing new");
    }
}

/// Elements that have not changed keep their allocations.
fn assert_same_allocations(before: &Policies, after: &Policies, delta: &PolicyDelta) {
    for (prefix, class) in before
        .classes
        .iter()
        .filter(|(prefix, _)| !delta.classes.contains(prefix))
    {
        assert!(Arc::ptr_eq(class, &after.classes[prefix]), "{prefix}");
    }
    for (name, pod) in before
        .pods
        .iter()
        .filter(|(name, _)| !delta.pods.contains(name))
    {
        for (a, b) in [
            (&pod.ingress, &after.pods[name].ingress),
            (&pod.egress, &after.pods[name].egress),
        ] {
            let same = match (a, b) {
                (Isolation::Rules(a), Isolation::Rules(b)) => Arc::ptr_eq(a, b),
                _ => a == b,
            };
            assert!(same, "{name}");
        }
    }
}

#[test]
fn p3_p7_only_selected_pods_are_isolated_and_only_in_the_directions_that_policies_name() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("db", pod(&["10.244.1.3"], "db"));
    assert!(!cluster.policies().exist);
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.policy("deny", ingress(app("web"), &[]));
    assert_eq!(
        cluster.compile(),
        PolicyDelta {
            pods: [object("web")].into(),
            classes: BTreeSet::new(),
            exist: true
        }
    );
    let web = &cluster.policies().pods[&object("web")];
    assert_eq!(
        (web.ingress.clone(), web.egress.clone()),
        (Isolation::Rules(Arc::default()), Isolation::None)
    );
    assert_eq!(
        cluster.policies().pods[&object("db")].ingress,
        Isolation::None
    );
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    assert!(cluster.allows("10.244.1.2", "10.244.1.3", 80));
    cluster.policy("allow", ingress(Selector::default(), &[rule(&[], &[])]));
    assert!(
        cluster.allows("10.244.1.3", "10.244.1.2", 80),
        "P4: a union"
    );
    assert!(
        cluster.allows("192.0.2.1", "10.244.1.3", 80),
        "P6: everybody"
    );
}

#[test]
fn p3_policies_of_other_namespaces_and_of_other_nodes_pods_do_not_count_but_exist() {
    let mut cluster = Cluster::new();
    let there = Pod {
        node: Some("there".into()),
        ..pod(&["10.244.2.2"], "web")
    };
    cluster
        .pod("web", there.clone())
        .pod("other/web", pod(&["10.244.1.2"], "web"));
    cluster.policy(
        "deny",
        ingress(
            Selector::default(),
            &[rule(&[block("192.0.2.0/24", &[])], &[])],
        ),
    );
    assert!(cluster.policies().exist);
    assert!(cluster.classes().is_empty());
    assert_eq!(cluster.policies().pods.len(), 1);
    cluster.pod(
        "web-2",
        Pod {
            node: Some("here".into()),
            ..there
        },
    );
    assert_eq!(cluster.classes(), ["192.0.2.0/24"]);
    cluster.delete(Kind::Pod, "web-2");
    assert!(cluster.classes().is_empty());
    cluster.delete(Kind::NetworkPolicy, "deny");
    assert!(cluster.compile().exist);
}

#[test]
fn p8_p10_peers_are_of_the_own_namespace_or_of_matching_ones() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("a", pod(&["10.244.1.3"], "client"));
    cluster
        .pod("team/a", pod(&["10.244.1.4"], "client"))
        .pod("team/b", pod(&["10.244.1.5"], "other"));
    let from = |cluster: &mut Cluster, peers: &[Peer]| -> Vec<u8> {
        cluster.policy("p", ingress(app("web"), &[rule(peers, &[])]));
        (2..6)
            .filter(|n| cluster.allows(&format!("10.244.1.{n}"), "10.244.1.2", 80))
            .collect()
    };
    let of_team = || selector(&[any_of("kubernetes.io/metadata.name", &["team"])]);
    assert_eq!(from(&mut cluster, &[own(Selector::default())]), [2, 3]);
    assert_eq!(from(&mut cluster, &[own(app("client"))]), [3]);
    assert_eq!(
        from(
            &mut cluster,
            &[elsewhere(Selector::default(), Selector::default())]
        ),
        [2, 3, 4, 5]
    );
    assert_eq!(
        from(&mut cluster, &[elsewhere(of_team(), Selector::default())]),
        [4, 5],
        "without a Namespace object"
    );
    assert_eq!(
        from(&mut cluster, &[elsewhere(of_team(), app("client"))]),
        [4]
    );
    assert_eq!(
        from(
            &mut cluster,
            &[
                elsewhere(of_team(), Selector::default()),
                own(app("client"))
            ]
        ),
        [3, 4, 5],
        "entries are ORed"
    );
    assert!(
        !cluster.allows("192.0.2.1", "10.244.1.2", 80),
        "P10: nobody outside"
    );
    cluster.namespace("team", &[("kubernetes.io/metadata.name", "lie")]);
    assert_eq!(
        from(&mut cluster, &[elsewhere(of_team(), app("client"))]),
        [4],
        "the name is the name"
    );
}

#[test]
fn p9_not_in_and_does_not_exist_match_where_the_key_is_absent() {
    let mut cluster = Cluster::new();
    let bare = Pod {
        labels: Labels::new(),
        ..pod(&["10.244.1.3"], "")
    };
    let empty = Pod {
        labels: labels(&[("tier", "")]),
        ..pod(&["10.244.1.4"], "")
    };
    let gold = Pod {
        labels: labels(&[("tier", "gold")]),
        ..pod(&["10.244.1.5"], "")
    };
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("bare", bare)
        .pod("empty", empty)
        .pod("gold", gold);
    let from = |cluster: &mut Cluster, requirement: Requirement| -> Vec<u8> {
        cluster.policy(
            "p",
            ingress(app("web"), &[rule(&[own(selector(&[requirement]))], &[])]),
        );
        (3..6)
            .filter(|n| cluster.allows(&format!("10.244.1.{n}"), "10.244.1.2", 80))
            .collect()
    };
    assert_eq!(from(&mut cluster, none_of("tier", &["gold"])), [3, 4]);
    assert_eq!(
        from(&mut cluster, Requirement::DoesNotExist("tier".into())),
        [3]
    );
    assert_eq!(
        from(&mut cluster, Requirement::Exists("tier".into())),
        [4, 5]
    );
    assert_eq!(from(&mut cluster, any_of("tier", &[""])), [4]);
}

#[test]
fn p11_an_except_narrows_its_own_entry_only() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("a", pod(&["10.1.2.3"], "client"));
    let wide = block("10.0.0.0/8", &["10.1.0.0/16"]);
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(std::slice::from_ref(&wide), &[])]),
    );
    assert_eq!(cluster.classes(), ["10.0.0.0/8", "10.1.0.0/16"]);
    assert!(cluster.allows("10.2.0.1", "10.244.1.2", 80));
    assert!(!cluster.allows("10.1.2.3", "10.244.1.2", 80), "pods too");
    // Another entry of the same rule gives a part back. Prefixes with the class around them are
    // left out.
    cluster.policy(
        "p",
        ingress(
            app("web"),
            &[rule(
                &[wide, block("10.1.2.0/24", &[]), block("10.9.0.0/16", &[])],
                &[],
            )],
        ),
    );
    assert_eq!(
        cluster.classes(),
        ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"]
    );
    assert!(
        cluster.allows("10.1.2.3", "10.244.1.2", 80)
            && !cluster.allows("10.1.3.3", "10.244.1.2", 80)
    );
    assert!(
        !cluster.allows("fd00::1", "10.244.1.2", 80),
        "P12: no address of the other family"
    );
}

/// P34: 1,000 rules for nearly everybody, each with excepts of its own, do not make a class of
/// nearly all rules for each except.
#[test]
fn p34_an_address_is_not_the_peer_of_more_rules_than_there_is_room_for() {
    let everywhere = |number: u32| {
        let excepts: Vec<String> = (0..10)
            .map(|n| format!("10.{}.{}.0/24", number / 25, number % 25 * 10 + n))
            .collect();
        ingress(
            app("web"),
            &[rule(
                &[block(
                    "0.0.0.0/0",
                    &excepts.iter().map(String::as_str).collect::<Vec<_>>(),
                )],
                &[self::number(1 + number as u16)],
            )],
        )
    };
    let mut cluster = Cluster::new();
    cluster.pod("web", pod(&["10.244.0.1"], "web"));
    (0..500).for_each(|n| _ = cluster.policy(&format!("policy-{n}"), everywhere(n)));
    assert!(
        cluster.allows("192.0.2.1", "10.244.0.1", 1 + 499)
            && !cluster.allows("10.19.240.1", "10.244.0.1", 1 + 499)
    );
    assert!(
        cluster.compiler.crowded().is_empty()
            && cluster
                .compiler
                .crowding(&cluster.snapshot)
                .next()
                .is_none()
    );
    (500..1100).for_each(|n| _ = cluster.policy(&format!("policy-{n}"), everywhere(n)));
    cluster.policy(
        "another",
        ingress(app("web"), &[rule(&[block("fd00::/8", &[])], &[])]),
    );
    let peers: usize = cluster
        .policies()
        .classes
        .values()
        .map(|class| class.peers.len())
        .sum();
    assert!(peers < 1 << 23, "{peers} peers in all classes");
    // Addresses of crowded prefixes are denied and reported.
    assert!(
        !cluster.allows("192.0.2.1", "10.244.0.1", 1) && cluster.allows("fd00::1", "10.244.0.1", 1)
    );
    assert_eq!(cluster.compiler.crowding(&cluster.snapshot).count(), 1100);
    let mut again = PolicyCompiler::default();
    again.compile(&cluster.snapshot, &Touched::everything());
    assert_eq!(
        (again.policies(), again.crowded()),
        (cluster.compiler.policies(), cluster.compiler.crowded())
    );
    (500..1100).for_each(|n| _ = cluster.delete(Kind::NetworkPolicy, &format!("policy-{n}")));
    assert!(
        cluster.allows("192.0.2.1", "10.244.0.1", 1 + 499) && cluster.compiler.crowded().is_empty()
    );
}

#[test]
fn p11_blocks_and_selectors_both_count_for_a_pod() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("a", pod(&["10.244.1.3"], "client"));
    let rules = [
        rule(&[own(app("client"))], &[number(80)]),
        rule(&[block("10.244.0.0/16", &[])], &[number(81)]),
    ];
    cluster.policy("p", ingress(app("web"), &rules));
    assert_eq!(cluster.classes(), ["10.244.0.0/16", "10.244.1.3/32"]);
    assert!(
        cluster.allows("10.244.1.3", "10.244.1.2", 80)
            && cluster.allows("10.244.1.3", "10.244.1.2", 81)
    );
    assert!(
        !cluster.allows("10.244.1.4", "10.244.1.2", 80)
            && cluster.allows("10.244.1.4", "10.244.1.2", 81)
    );
}

#[test]
fn p15_ingress_names_are_the_selected_pods_own_over_all_its_containers() {
    let mut cluster = Cluster::new();
    let ports = vec![
        container_port("a", "http", 8080, TCP),
        container_port("b", "http", 9090, TCP),
        container_port("b", "http", 7070, UDP),
    ];
    cluster
        .pod(
            "web",
            Pod {
                ports,
                ..pod(&["10.244.1.2"], "web")
            },
        )
        .pod("bare", pod(&["10.244.1.3"], "web"));
    cluster.policy("p", ingress(app("web"), &[rule(&[], &[named("http")])]));
    let open = [8080, 9090, 7070].map(|port| cluster.allows("192.0.2.1", "10.244.1.2", port));
    assert_eq!(open, [true, true, false]);
    assert!(!cluster.allows("192.0.2.1", "10.244.1.3", 8080));
    assert_eq!(
        cluster.policies().pods[&object("bare")].ingress,
        Isolation::Rules(Arc::default()),
        "a name it lacks is nothing"
    );
}

#[test]
fn p15_egress_names_are_each_destinations_own_and_split_no_class_needlessly() {
    let mut cluster = Cluster::new();
    let with = |addr: &str, app: &str, port| Pod {
        ports: vec![
            container_port("a", "http", port, TCP),
            container_port("a", "metrics", 9, TCP),
        ],
        ..pod(&[addr], app)
    };
    cluster
        .pod("client", pod(&["10.244.1.2"], "client"))
        .pod("a", with("10.244.2.1", "web", 8080));
    cluster
        .pod("b", with("10.244.2.2", "web", 9090))
        .pod("c", with("10.244.2.3", "other", 8080));
    cluster.policy(
        "p",
        egress(app("client"), &[rule(&[own(app("web"))], &[named("http")])]),
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.1", 8080)
            && !cluster.allows("10.244.1.2", "10.244.2.1", 9090)
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.2", 9090)
            && !cluster.allows("10.244.1.2", "10.244.2.2", 8080)
    );
    assert!(
        !cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "192.0.2.1", 8080)
    );
    assert_eq!(
        cluster.classes(),
        ["10.244.2.1/32", "10.244.2.2/32"],
        "nobody asks the third"
    );
    let class = cluster.policies().classes[&net("10.244.2.1/32")].clone();
    assert_eq!(
        class.named.keys().cloned().collect::<Vec<_>>(),
        [("http".into(), TCP)],
        "nobody asks for metrics"
    );
    cluster.policy("p", egress(app("client"), &[rule(&[], &[named("http")])]));
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "192.0.2.1", 8080)
    );
    cluster.policy(
        "p",
        egress(
            app("client"),
            &[rule(&[block("10.244.2.2/31", &[])], &[named("http")])],
        ),
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "10.244.2.1", 8080)
    );
}

#[test]
fn p17_host_network_pods_are_neither_selected_nor_matched_by_selectors() {
    let mut cluster = Cluster::new();
    let host = Pod {
        host_network: true,
        ..pod(&["192.0.2.7"], "client")
    };
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("host", host);
    cluster.policy(
        "p",
        ingress(
            Selector::default(),
            &[rule(&[own(Selector::default())], &[])],
        ),
    );
    assert!(!cluster.allows("192.0.2.7", "10.244.1.2", 80));
    assert!(!cluster.policies().pods.contains_key(&object("host")));
    cluster.policy(
        "q",
        ingress(
            Selector::default(),
            &[rule(&[block("192.0.2.0/24", &[])], &[])],
        ),
    );
    assert!(cluster.allows("192.0.2.7", "10.244.1.2", 80));
    cluster.delete(Kind::Pod, "web");
    assert!(
        cluster.classes().is_empty(),
        "it does not make a policy count either"
    );
}

#[test]
fn p20_finished_pods_leave_at_once_and_terminating_ones_stay() {
    let mut cluster = Cluster::new();
    let client = pod(&["10.244.1.3"], "client");
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("a", client.clone());
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "a",
        Pod {
            terminating: true,
            ..client.clone()
        },
    );
    assert!(cluster.compile().is_empty());
    for phase in [Phase::Succeeded, Phase::Failed] {
        cluster.pod(
            "a",
            Pod {
                phase,
                ..client.clone()
            },
        );
        assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
        assert!(!cluster.policies().pods.contains_key(&object("a")));
        cluster.pod("a", client.clone()).compile();
    }
    cluster.pod(
        "web",
        Pod {
            phase: Phase::Failed,
            ..pod(&["10.244.1.2"], "web")
        },
    );
    assert!(cluster.classes().is_empty());
}

#[test]
fn p21_a_pod_has_its_rows_before_it_has_an_address() {
    let mut cluster = Cluster::new();
    cluster
        .pod(
            "web",
            Pod {
                phase: Phase::Pending,
                ..pod(&[], "web")
            },
        )
        .policy("p", ingress(app("web"), &[]));
    let web = cluster.policies().pods[&object("web")].clone();
    assert!(web.addresses.is_empty() && web.ingress != Isolation::None);
    cluster.pod("web", pod(&["10.244.1.2"], "web"));
    assert!(!cluster.allows("192.0.2.1", "10.244.1.2", 80));
}

#[test]
fn p22_an_address_used_again_is_the_new_pods() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("old", pod(&["10.244.1.3"], "client"));
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "new",
        Pod {
            created: Some(2),
            ..pod(&["10.244.1.3"], "other")
        },
    );
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    assert!(cluster.policies().pods[&object("old")].addresses.is_empty());
    cluster.delete(Kind::Pod, "new");
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "web-2",
        Pod {
            created: Some(2),
            ..pod(&["10.244.1.2"], "other")
        },
    );
    assert!(
        cluster.allows("192.0.2.1", "10.244.1.2", 80),
        "what selected the predecessor does not bind the successor"
    );
}

#[test]
fn p23_a_pod_of_two_families_is_one_peer_with_two_addresses() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2", "fd00::2"], "web"))
        .pod("a", pod(&["10.244.1.3", "fd00::3"], "client"));
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert_eq!(cluster.classes(), ["10.244.1.3/32", "fd00::3/128"]);
    assert!(cluster.allows("fd00::3", "fd00::2", 80) && !cluster.allows("fd00::4", "fd00::2", 80));
    cluster.policy(
        "q",
        ingress(app("web"), &[rule(&[block("::/0", &["fd00::/8"])], &[])]),
    );
    assert!(
        cluster.allows("2001:db8::1", "fd00::2", 80) && !cluster.allows("fd00::4", "fd00::2", 80)
    );
    assert!(!cluster.allows("192.0.2.1", "10.244.1.2", 80), "P12");
}

#[test]
fn p24_new_labels_of_pods_and_namespaces_count_at_once() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("team/a", pod(&["10.244.1.3"], "client"));
    let of_team = selector(&[any_of("team", &["red"])]);
    cluster.policy(
        "p",
        ingress(
            app("web"),
            &[rule(&[elsewhere(of_team, app("client"))], &[])],
        ),
    );
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.namespace("team", &[("team", "red")]);
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod("team/a", pod(&["10.244.1.3"], "other"));
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster
        .pod("team/a", pod(&["10.244.1.3"], "client"))
        .namespace("team", &[]);
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod("web", pod(&["10.244.1.2"], "free"));
    assert!(
        cluster.allows("10.244.1.3", "10.244.1.2", 80),
        "no policy selects it any more"
    );
}

#[test]
fn a_pods_device_comes_and_goes_with_the_links() {
    let mut cluster = Cluster::new();
    cluster.pod("web", pod(&["10.244.1.2", "fd00::2"], "web"));
    assert_eq!(
        cluster.policies().pods[&object("web")].device,
        IfIndex::NONE
    );
    let before = cluster.snapshot.links.clone();
    cluster
        .snapshot
        .links
        .pods
        .insert(addr("fd00::2"), IfIndex(7));
    cluster
        .touched
        .record_links(&before, &cluster.snapshot.links);
    assert_eq!(cluster.policies().pods[&object("web")].device, IfIndex(7));
}

#[test]
fn pods_that_are_alike_share_rows_and_classes() {
    let mut cluster = Cluster::new();
    cluster
        .pod("a", pod(&["10.244.1.2"], "web"))
        .pod("b", pod(&["10.244.1.3"], "web"));
    cluster.policy("p", ingress(app("web"), &[rule(&[own(app("web"))], &[])]));
    let policies = cluster.policies();
    let row = |name: &str| match &policies.pods[&object(name)].ingress {
        Isolation::Rules(row) => row.clone(),
        Isolation::None => panic!("not isolated"),
    };
    assert!(Arc::ptr_eq(&row("a"), &row("b")));
    let classes: Vec<&Arc<Class>> = policies.classes.values().collect();
    assert!(classes.len() == 2 && Arc::ptr_eq(classes[0], classes[1]));
}

/// Bytes that decide each choice. When they are used up, the first option is taken.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn below(&mut self, n: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % n)
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.below(all.len() as u8))].clone()
    }

    fn some<T>(&mut self, most: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| one(self)).collect()
    }

    fn name(&mut self) -> ObjectName {
        ObjectName::new(self.pick(&["a", "b"]), self.pick(&["k", "l", "m", "n"]))
    }

    fn selector(&mut self) -> Selector {
        let requirement = |dice: &mut Self| {
            let (key, values) = (
                dice.pick(&["app", "tier"]),
                dice.pick(&[&["x"][..], &["y"], &["x", "y"]]),
            );
            match dice.below(4) {
                0 => any_of(key, values),
                1 => none_of(key, values),
                2 => Requirement::Exists(key.into()),
                _ => Requirement::DoesNotExist(key.into()),
            }
        };
        Selector {
            requirements: self.some(2, requirement).into_iter().collect(),
        }
    }

    fn labels(&mut self) -> Labels {
        self.some(2, |dice| {
            (
                dice.pick(&["app", "tier"]).into(),
                dice.pick(&["x", "y"]).into(),
            )
        })
        .into_iter()
        .collect()
    }

    fn peer(&mut self) -> Peer {
        match self.below(4) {
            0 => own(self.selector()),
            1 => elsewhere(self.selector(), self.selector()),
            _ => {
                let cidrs = [
                    "0.0.0.0/0",
                    "10.0.0.0/29",
                    "10.0.0.0/30",
                    "10.0.0.2/31",
                    "10.0.0.3/32",
                    "::/0",
                    "fd00::2/127",
                ];
                let cidr = net(self.pick(&cidrs));
                let except = self.some(2, |dice| net(dice.pick(&cidrs[1..]))).into_iter();
                Peer::Block {
                    cidr,
                    except: except.filter(|except| cidr.contains(except)).collect(),
                }
            }
        }
    }

    fn policy_port(&mut self) -> PolicyPort {
        let port = match self.below(4) {
            0 | 1 => PortMatch::Named(self.pick(&["http", "dns"]).into()),
            2 => {
                let (first, last) = self.pick(&[(80, 80), (80, 90), (1, 65535)]);
                PortMatch::Range(PortRange { first, last })
            }
            _ => PortMatch::All,
        };
        PolicyPort {
            protocol: self.pick(&[TCP, UDP]),
            port,
        }
    }

    fn rules(&mut self) -> Option<Vec<Rule>> {
        let rule = |dice: &mut Self| Rule {
            peers: dice.some(2, Self::peer),
            ports: dice.some(2, Self::policy_port),
        };
        (self.below(4) != 0).then(|| self.some(2, rule))
    }

    fn policy(&mut self) -> NetworkPolicy {
        NetworkPolicy {
            pods: self.selector(),
            ingress: self.rules(),
            egress: self.rules(),
        }
    }

    fn address(&mut self) -> IpAddr {
        addr(self.pick(&[
            "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::2", "fd00::9",
        ]))
    }

    fn pod(&mut self) -> Pod {
        let port = |dice: &mut Self| {
            container_port(
                "c",
                dice.pick(&["http", "dns"]),
                dice.pick(&[80, 81]),
                dice.pick(&[TCP, UDP]),
            )
        };
        Pod {
            addresses: self.some(2, Self::address),
            node: self
                .pick(&[Some("here"), Some("there"), None])
                .map(Into::into),
            host_network: self.pick(&[false, false, false, true]),
            phase: self.pick(&[
                Phase::Running,
                Phase::Running,
                Phase::Pending,
                Phase::Failed,
            ]),
            labels: self.labels(),
            ports: self.some(2, port),
            created: self.pick(&[Some(1), Some(2)]),
            ..pod(&[], "")
        }
    }
}

fn happen(dice: &mut Dice, cluster: &mut Cluster) {
    let object = match dice.below(10) {
        0..4 => Object::Pod(dice.name(), dice.pod()),
        4..8 => Object::NetworkPolicy(dice.name(), dice.policy()),
        8 => Object::Namespace(
            ObjectName::cluster(dice.pick(&["a", "b"])),
            Namespace {
                labels: dice.labels(),
            },
        ),
        _ => {
            let before = cluster.snapshot.links.clone();
            cluster.snapshot.links.pods = dice
                .some(2, |dice| (dice.address(), IfIndex(dice.below(3).into())))
                .into_iter()
                .collect();
            return cluster
                .touched
                .record_links(&before, &cluster.snapshot.links);
        }
    };
    cluster.hear(match dice.below(8) {
        0 => Update::Delete(object.reference()),
        1 => Update::Invalid(Invalid {
            object: object.reference(),
            field: String::new(),
            why: String::new(),
        }),
        _ => Update::Apply(object),
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_to_the_same_policies_as_compiling_from_nothing(
        history in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 48), 1..4), 1..24),
    ) {
        let mut cluster = Cluster::new();
        for batch in history {
            for bytes in &batch {
                happen(&mut Dice(bytes.iter()), &mut cluster);
            }
            cluster.compile();
        }
    }
}
