//! Specs as they are written to what they mean, rule by rule, and what is said of mistakes.

use super::super::seen;
use super::*;
use crate::model::{Labels, Update};
use proxy_common::net::Protocol;
use serde_json::json;

/// A spec as it is written to what it means, with what is said of it.
fn said(spec: Value) -> (NetworkPolicy, Vec<String>) {
    let (policy, flaws) = read(&spec);
    (
        policy,
        flaws
            .into_iter()
            .map(|Field { path, why }| format!("{path}: {why}"))
            .collect(),
    )
}

/// A spec without flaws.
fn policy(spec: Value) -> NetworkPolicy {
    let (policy, flaws) = said(spec);
    assert_eq!(flaws, [""; 0]);
    policy
}

/// The one rule of an ingress policy, without flaws.
fn rule(rule: Value) -> Rule {
    let mut rules = policy(json!({"podSelector": {}, "ingress": [rule]}))
        .ingress
        .expect("ingress");
    assert_eq!(rules.len(), 1);
    rules.remove(0)
}

fn peer(peer: Value) -> Peer {
    rule(json!({"from": [peer]})).peers.remove(0)
}

fn policy_port(port: Value) -> PolicyPort {
    rule(json!({"ports": [port]})).ports.remove(0)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn nets<const N: usize>(texts: [&str; N]) -> BTreeSet<IpNet> {
    texts.map(|text| text.parse().expect("a prefix")).into()
}

/// Reads `from` or `to` with two peers, the second of them good; returns the peers left and the
/// flaws.
fn beside_a_good_peer(bad: Value) -> (Vec<Peer>, Vec<String>) {
    let good = json!({"podSelector": {"matchLabels": {"app": "good"}}});
    let (policy, said) = said(json!({"podSelector": {}, "ingress": [{"from": [bad, good]}]}));
    (policy.ingress.expect("ingress").remove(0).peers, said)
}

#[test]
fn p2_directions_come_from_the_types_else_from_the_rules() {
    let named = |spec: Value| {
        let NetworkPolicy {
            ingress, egress, ..
        } = policy(spec);
        (
            ingress.map(|rules| rules.len()),
            egress.map(|rules| rules.len()),
        )
    };
    assert_eq!(named(Value::Null), (Some(0), None));
    assert_eq!(named(json!({"podSelector": {}})), (Some(0), None));
    assert_eq!(
        named(json!({"policyTypes": [], "egress": []})),
        (Some(0), None)
    );
    assert_eq!(named(json!({"egress": [{}]})), (Some(0), Some(1)));
    assert_eq!(
        named(json!({"policyTypes": ["Ingress"], "egress": [{}]})),
        (Some(0), None)
    );
    assert_eq!(
        named(json!({"policyTypes": ["Egress"], "ingress": [{}]})),
        (None, Some(0))
    );
    assert_eq!(
        named(json!({"policyTypes": ["Egress", "Ingress"], "ingress": [{}, {}]})),
        (Some(2), Some(0))
    );
}

#[test]
fn p5_no_pod_selector_and_an_empty_one_select_every_pod() {
    for spec in [
        json!({}),
        json!({"podSelector": null}),
        json!({"podSelector": {}}),
        json!({"podSelector": {"matchLabels": {}}}),
    ] {
        assert_eq!(policy(spec).pods, Selector::default());
    }
}

#[test]
fn p6_p7_empty_is_everybody_and_every_port_but_no_rule_is_nobody() {
    for all in [
        json!({}),
        json!({"from": [], "ports": []}),
        json!({"from": null, "ports": null}),
    ] {
        assert_eq!(
            rule(all),
            Rule {
                peers: vec![],
                ports: vec![]
            }
        );
    }
    assert_eq!(policy(json!({"ingress": []})), policy(json!({})));
}

#[test]
fn p8_the_four_kinds_of_peers() {
    let app = Selector {
        requirements: [Requirement::In("app".into(), ["web".into()].into())].into(),
    };
    let by_label = json!({"matchLabels": {"app": "web"}});
    let pods = |namespaces, pods: &Selector| Peer::Pods {
        namespaces,
        pods: pods.clone(),
    };
    assert_eq!(
        peer(json!({"podSelector": by_label})),
        pods(Namespaces::Own, &app)
    );
    let all = Selector::default();
    assert_eq!(
        peer(json!({"namespaceSelector": by_label})),
        pods(Namespaces::Matching(app.clone()), &all)
    );
    assert_eq!(
        peer(json!({"namespaceSelector": {}, "podSelector": by_label})),
        pods(Namespaces::Matching(all.clone()), &app)
    );
    assert_eq!(
        peer(json!({"podSelector": {}})),
        pods(Namespaces::Own, &all)
    );
    assert!(matches!(
        peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}})),
        Peer::Block { .. }
    ));
}

#[test]
fn p9_labels_and_expressions_must_all_hold() {
    let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
    let table = [
        (json!({"matchLabels": {"k": ""}}), [false, true, false]),
        (expression("In", json!(["v", "w"])), [false, false, true]),
        (expression("NotIn", json!(["v"])), [true, true, false]),
        (expression("Exists", json!([])), [false, true, true]),
        (
            expression("DoesNotExist", Value::Null),
            [true, false, false],
        ),
        (
            json!({"matchLabels": {"k": "v"}, "matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["v"]}]}),
            [false; 3],
        ),
    ];
    for (written, selected) in table {
        let pods = policy(json!({"podSelector": written})).pods;
        assert_eq!(
            [labels(&[]), labels(&[("k", "")]), labels(&[("k", "v")])].map(|l| pods.selects(&l)),
            selected,
            "{written}"
        );
    }
}

#[test]
fn p11_p12_blocks_are_normalised_and_keep_only_what_narrows_them() {
    let written = json!({"ipBlock": {"cidr": "010.1.2.3/8", "except": ["10.0.0.9/24", "::ffff:10.2.0.0/112"]}});
    let cidr = "10.0.0.0/8".parse().expect("a prefix");
    assert_eq!(
        peer(written),
        Peer::Block {
            cidr,
            except: nets(["10.0.0.0/24", "10.2.0.0/16"])
        }
    );

    let written = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "192.0.2.0/24", "fd00::/8"]}});
    let (peers, said) = beside_a_good_peer(written);
    assert_eq!(
        (peers.len(), &peers[0]),
        (
            2,
            &Peer::Block {
                cidr,
                except: nets(["10.1.0.0/16"])
            }
        )
    );
    assert_eq!(
        said,
        [
            "spec.ingress[0].from[0].ipBlock.except[1]: `192.0.2.0/24` is not within 10.0.0.0/8; it takes nothing out",
            "spec.ingress[0].from[0].ipBlock.except[2]: `fd00::/8` is not within 10.0.0.0/8; it takes nothing out",
        ]
    );
}

#[test]
fn p13_to_p16_ports() {
    let range = |first, last| PortMatch::Range(PortRange { first, last });
    let table = [
        (json!({}), Protocol::TCP, PortMatch::All),
        (json!({"protocol": "UDP"}), Protocol::UDP, PortMatch::All),
        (json!({"port": 80}), Protocol::TCP, range(80, 80)),
        (
            json!({"protocol": "SCTP", "port": 80}),
            Protocol::SCTP,
            range(80, 80),
        ),
        (
            json!({"port": 80, "endPort": 90}),
            Protocol::TCP,
            range(80, 90),
        ),
        (
            json!({"port": 80, "endPort": 80}),
            Protocol::TCP,
            range(80, 80),
        ),
        (
            json!({"protocol": "UDP", "port": "dns"}),
            Protocol::UDP,
            PortMatch::Named("dns".into()),
        ),
    ];
    for (written, protocol, port) in table {
        assert_eq!(
            policy_port(written.clone()),
            PolicyPort { protocol, port },
            "{written}"
        );
    }
}

#[test]
fn a_bad_peer_matches_nothing_and_is_named_by_its_path() {
    let expression = |e: Value| json!({"podSelector": {"matchExpressions": [e]}});
    let table = [
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
            "ipBlock.cidr: `10.0.0.0/33` is no CIDR",
        ),
        (
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0"]}}),
            "ipBlock.except[0]: `10.0.0.0` is no CIDR",
        ),
        (
            json!({"ipBlock": {"except": []}}),
            "ipBlock.cidr: `` is no CIDR",
        ),
        (
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "excpet": []}}),
            "ipBlock.excpet: no such field: cidr, except may stand here",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
            ": an ipBlock cannot be combined with selectors",
        ),
        (
            json!({}),
            ": a peer needs a podSelector, a namespaceSelector or an ipBlock",
        ),
        (Value::Null, ": nothing where fields are needed"),
        (
            json!({"podSelector": {}, "namespaceselector": {}}),
            "namespaceselector: no such field: podSelector, namespaceSelector, ipBlock may stand here",
        ),
        (
            expression(json!({"key": "app", "operator": "Equals", "values": ["a"]})),
            "podSelector.matchExpressions[0].operator: `Equals` is no operator: In, NotIn, Exists or DoesNotExist",
        ),
        (
            expression(json!({"key": "app", "operator": "NotIn"})),
            "podSelector.matchExpressions[0].values: NotIn needs at least one value",
        ),
        (
            expression(json!({"key": "app", "operator": "Exists", "values": ["a"]})),
            "podSelector.matchExpressions[0].values: Exists takes no values",
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": 1}}}),
            "podSelector.matchLabels.app: invalid type: integer `1`, expected a string",
        ),
    ];
    for (bad, why) in table {
        let (peers, said) = beside_a_good_peer(bad.clone());
        assert_eq!(peers.len(), 1, "{bad}");
        let at = if why.starts_with(':') {
            "spec.ingress[0].from[0]"
        } else {
            "spec.ingress[0].from[0]."
        };
        assert_eq!(said, [format!("{at}{why}; this entry matches nothing")]);
    }
}

#[test]
fn a_bad_port_matches_nothing_and_is_named_by_its_path() {
    let table = [
        (json!({"port": 0}), "port: 0 is no port: 1 to 65535"),
        (json!({"port": 65536}), "port: 65536 is no port: 1 to 65535"),
        (
            json!({"port": "80"}),
            "port: `80` is no name of a port; numbers are written without quotes",
        ),
        (
            json!({"port": 80, "endPort": 79}),
            "endPort: 79 is below the port, 80",
        ),
        (
            json!({"port": "http", "endPort": 90}),
            "endPort: an endPort needs a port that is a number",
        ),
        (
            json!({"endPort": 90}),
            "endPort: an endPort needs a port that is a number",
        ),
        (
            json!({"protocol": "tcp", "port": 80}),
            "protocol: `tcp` is no protocol: TCP, UDP or SCTP",
        ),
        (
            json!({"prot": "UDP"}),
            "prot: no such field: protocol, port, endPort may stand here",
        ),
    ];
    for (bad, why) in table {
        let (policy, said) = said(json!({"ingress": [{"ports": [{"port": 443}, bad]}]}));
        assert_eq!(policy.ingress.expect("ingress")[0].ports.len(), 1, "{bad}");
        assert_eq!(
            said,
            [format!(
                "spec.ingress[0].ports[1].{why}; this entry matches nothing"
            )]
        );
    }
}

#[test]
fn a_rule_of_which_nothing_can_be_read_is_not_one_for_everybody() {
    let bad_rules = [
        json!({"from": [{"ipBlock": {"cidr": "x"}}]}),
        json!({"ports": [{"port": 0}]}),
        json!({"from": {"podSelector": {}}}),
        json!({"ports": {"port": 80}}),
        json!({"form": [{"podSelector": {}}]}),
        json!({"to": [{"podSelector": {}}]}),
        Value::Null,
    ];
    for bad in bad_rules {
        let (policy, said) =
            said(json!({"podSelector": {}, "ingress": [bad, {"ports": [{"port": 80}]}]}));
        let rules = policy.ingress.expect("ingress");
        assert_eq!(
            (rules.len(), rules[0].ports.len(), said.len()),
            (1, 1, 1),
            "{bad}: {said:?}"
        );
        assert!(said[0].starts_with("spec.ingress[0]"), "{said:?}");
    }
    let (policy, said) = said(json!({"ingress": {"from": []}}));
    assert_eq!(
        (policy.ingress, said),
        (
            Some(vec![]),
            vec!["spec.ingress: fields where a list is needed".to_owned()]
        )
    );
}

#[test]
fn a_policy_whose_selector_cannot_be_read_isolates_what_it_may_have_meant_and_allows_nothing() {
    let selector = json!({"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "tier", "operator": "in", "values": ["a"]}]});
    let (policy, said) = said(json!({"podSelector": selector, "ingress": [{}], "egress": [{}]}));
    assert!(
        policy
            .pods
            .selects(&labels(&[("app", "db"), ("tier", "b")]))
            && !policy.pods.selects(&labels(&[("app", "web")]))
    );
    assert_eq!(
        (policy.ingress, policy.egress),
        (Some(vec![]), Some(vec![]))
    );
    assert!(
        said[0].starts_with("spec.podSelector.matchExpressions[0].operator: `in` is no operator"),
        "{said:?}"
    );
    assert!(
        said[0].ends_with("are isolated, and no rule of this policy allows anything"),
        "{said:?}"
    );
}

#[test]
fn types_and_fields_that_cannot_be_read_close_what_they_may_have_named() {
    let closed = Some(vec![]);
    for (spec, ingress, egress) in [
        (
            json!({"policyTypes": ["ingress"], "ingress": [{}], "egress": [{}]}),
            0,
            0,
        ),
        (
            json!({"policyTypes": ["Ingress", "egress"], "ingress": [{}], "egress": [{}]}),
            1,
            0,
        ),
        (json!({"policyTypes": "Ingress", "ingress": [{}]}), 0, 0),
        (json!({"ingress": [{}], "egres": [{}]}), 0, 0),
        (
            json!({"podSelector": {}, "ingress": [{}], "egres": [{}]}),
            1,
            0,
        ),
        (json!("all"), 0, 0),
    ] {
        let (policy, said) = said(spec.clone());
        assert_eq!(policy.ingress.map(|r| r.len()), Some(ingress), "{spec}");
        assert_eq!(policy.egress.as_ref().map(Vec::len), Some(egress), "{spec}");
        assert_eq!(policy.egress, closed, "{spec}");
        assert_eq!(said.len(), 1, "{spec}: {said:?}");
    }
}

#[test]
fn a_typed_policy_with_a_flaw_is_applied_and_the_flaw_named_with_the_object() {
    let written = json!({"metadata": {"namespace": "shop", "name": "db"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 0}, {"port": 80}]}]}});
    let typed: networking::NetworkPolicy =
        serde_json::from_value(written).expect("a NetworkPolicy");
    let Update::Flawed(Object::NetworkPolicy(name, policy), flaws) = seen(&typed) else {
        panic!("not as flawed as it is")
    };
    assert_eq!(
        (name, policy.ingress.expect("ingress")[0].ports.len()),
        (ObjectName::new("shop", "db"), 1)
    );
    assert_eq!(
        flaws[0].to_string(),
        "NetworkPolicy shop/db: spec.ingress[0].ports[0].port: 0 is no port: 1 to 65535; this entry matches nothing"
    );
}
