//! Rules, peers and blocks on small clusters (P3-P11, P34).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::compile::PolicyCompiler;
use crate::compile::Touched;
use crate::contents::policies::{Isolation, PolicyDelta};
use crate::model::policy::{Peer, Requirement, Selector};
use crate::model::{Kind, Labels, Pod};

use super::cluster::*;

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
