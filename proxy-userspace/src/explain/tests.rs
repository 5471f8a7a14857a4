//! Objects as a user writes them, a question, and the words of the answer.

use super::*;
use crate::compile::{PolicyCompiler, Touched};
use crate::contents::policies::{Policies, verdict};
use crate::dataplane::TableVerdicts;
use crate::model::{PortRange, Snapshot};
use crate::source::Ranges;
use crate::source::manifests::Directory;

const SHOP: &str = "
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: Namespace
metadata: {name: monitoring, labels: {team: ops}}
---
kind: Service
metadata: {namespace: shop, name: db}
spec: {clusterIP: 10.96.0.5, selector: {app: db}, ports: [{name: sql, port: 80, targetPort: sql}]}
---
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: node-b, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}
---
kind: Pod
metadata: {namespace: shop, name: db, labels: {app: db}}
spec: {nodeName: node-a, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}], conditions: [{type: Ready, status: 'True'}]}
---
kind: Pod
metadata: {namespace: monitoring, name: agent, labels: {app: agent}}
spec: {nodeName: node-a, hostNetwork: true, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 192.0.2.1}]}
---
kind: Pod
metadata: {namespace: monitoring, name: scraper, labels: {app: scraper}}
spec: {nodeName: node-b, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.2.9}]}
---
kind: Pod
metadata: {namespace: shop, name: job, labels: {app: api}}
spec: {nodeName: node-a, containers: [{name: c}]}
status: {phase: Succeeded, podIPs: [{ip: 10.244.1.9}]}
---
";

const DENY: &str = "{kind: NetworkPolicy, metadata: {namespace: shop, name: deny-all}, spec: {podSelector: {}}}\n---\n";

/// Returns `deny-all` and a policy for `app=db` with this ingress.
fn allow(ingress: &str) -> String {
    let policy = format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: {ingress}");
    format!(
        "{DENY}{{kind: NetworkPolicy, metadata: {{namespace: shop, name: allow-db}}, spec: {{{policy}}}}}\n"
    )
}

fn state(policies: &str) -> State {
    let cluster_ips = vec!["10.96.0.0/12".parse().expect("a prefix")];
    let mut directory = Directory::new("unused".into());
    directory.take("all.yaml".into(), format!("{SHOP}{policies}"), None);
    let mut state = State::default();
    let ranges = Ranges {
        node_ports: PortRange {
            first: 30000,
            last: 32767,
        },
        cluster_ips,
    };
    directory
        .updates(&ranges)
        .into_iter()
        .for_each(|update| _ = state.apply(update));
    assert_eq!(
        (state.pods.len(), state.invalid.len()),
        (5, 0),
        "{:?}",
        state.invalid
    );
    state
}

fn answer(policies: &str, from: &str, to: &str) -> Result<Answer> {
    explain(
        &state(policies),
        &from.parse().expect("an end"),
        &to.parse().expect("a target"),
    )
}

fn said(policies: &str, from: &str, to: &str) -> String {
    answer(policies, from, to).expect("an answer").to_string()
}

fn outcome(policies: &str, from: &str, to: &str) -> Outcome {
    answer(policies, from, to)
        .expect("an answer")
        .connections
        .remove(0)
        .ingress
        .outcome
}

/// Why the one rule of `allow-db` does not match.
fn against(rule: &str, from: &str, to: &str) -> Vec<String> {
    let mut answer = answer(&allow(&format!("[{rule}]")), from, to).expect("an answer");
    let policies = answer.connections.remove(0).ingress.policies;
    let rule = &policies
        .iter()
        .find(|policy| policy.name == "shop/allow-db")
        .expect("it selects the pod")
        .rules[0];
    assert!(!rule.allows, "{rule:?}");
    rule.because.clone()
}

#[test]
fn a_denied_connection_names_the_policies_and_what_each_rule_wants() {
    let ingress = "[{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}, {ports: [{port: 80}]}]";
    assert_eq!(
        said(&allow(ingress), "shop/web", "shop/db:5432"),
        "shop/web -> shop/db:5432/TCP is DENIED: ingress of shop/db is isolated by NetworkPolicies shop/allow-db, shop/deny-all, and no rule allows this.
  Egress: allowed: no policy selects shop/web for egress
  Ingress: denied
    rule 1 of shop/allow-db does not match: wants a pod with app=api of namespace shop, but shop/web has app=web
    rule 2 of shop/allow-db does not match: allows port 80/TCP, asked is 5432/TCP
    shop/deny-all has no rule for this direction: it allows nothing
"
    );
}

#[test]
fn an_allowed_connection_names_the_rule() {
    let text = said(&allow("[{}]"), "203.0.113.7", "shop/db:sql");
    assert_eq!(
        text,
        "203.0.113.7 -> shop/db:5432/TCP is allowed.
  Egress: nothing judges here: 203.0.113.7 is no pod
  Ingress: allowed by rule 1 of shop/allow-db
    rule 1 of shop/allow-db allows it: everybody, every port
    shop/deny-all has no rule for this direction: it allows nothing
"
    );
}

#[test]
fn p1_both_ends_judge() {
    let egress = "{kind: NetworkPolicy, metadata: {namespace: monitoring, name: none}, spec: {policyTypes: [Egress]}}";
    let answer = answer(egress, "monitoring/scraper", "shop/db:5432").expect("an answer");
    assert!(
        !answer.allowed()
            && answer.connections[0].ingress.allows()
            && !answer.connections[0].egress.allows()
    );
    assert!(answer.to_string().contains(
        "egress of monitoring/scraper is isolated by NetworkPolicy monitoring/none, and no rule"
    ));
}

#[test]
fn p8_to_p11_what_speaks_against_a_peer() {
    let table = [
        (
            "{podSelector: {}}",
            "monitoring/scraper",
            "wants a pod of namespace shop, but monitoring/scraper is of namespace monitoring",
        ),
        (
            "{namespaceSelector: {matchLabels: {team: dev}}}",
            "monitoring/scraper",
            "wants a pod of a namespace with team=dev, but namespace monitoring has team=ops",
        ),
        (
            "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}",
            "shop/web",
            "wants a pod with a label tier of any namespace, but shop/web has no label tier",
        ),
        (
            "{podSelector: {}}",
            "203.0.113.7",
            "wants a pod of namespace shop, but 203.0.113.7 is no pod",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8}}",
            "203.0.113.7",
            "allows 10.0.0.0/8, but 203.0.113.7 is not within",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16]}}",
            "shop/web",
            "allows 10.0.0.0/8 except 10.244.0.0/16, and 10.244.1.2 is within that",
        ),
    ];
    for (peer, from, why) in table {
        assert_eq!(
            against(&format!("{{from: [{peer}]}}"), from, "shop/db:5432"),
            [why]
        );
    }
}

#[test]
fn p10_the_namespaces_name_is_a_label_of_it() {
    let by_name =
        "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}]";
    assert!(
        answer(&allow(by_name), "monitoring/scraper", "shop/db:5432")
            .expect("an answer")
            .allowed()
    );
}

#[test]
fn p13_to_p16_what_speaks_against_a_port() {
    let table = [
        (
            "{protocol: UDP}",
            "allows every UDP port, asked is 5432/TCP",
        ),
        (
            "{port: 80, endPort: 90}",
            "allows ports 80-90/TCP, asked is 5432/TCP",
        ),
        (
            "{port: http}",
            "allows port http/TCP, but no container of shop/db has a port of that name and protocol",
        ),
    ];
    for (port, why) in table {
        assert_eq!(
            against(&format!("{{ports: [{port}]}}"), "shop/web", "shop/db:5432"),
            [why]
        );
    }
    assert_eq!(
        against("{ports: [{port: sql}]}", "shop/web", "shop/db:80"),
        ["allows port sql/TCP, which is 5432 at shop/db, asked is 80/TCP"]
    );
    assert!(
        answer(
            &allow("[{ports: [{port: sql}]}]"),
            "shop/web",
            "shop/db:5432"
        )
        .expect("an answer")
        .allowed()
    );
}

#[test]
fn p17_a_pod_in_its_nodes_network_is_the_node() {
    let by_selector = "{from: [{namespaceSelector: {}}]}";
    let elsewhere = state(&allow(&format!("[{by_selector}]")));
    let [from, to] = ["192.0.2.1", "10.244.1.2"].map(|addr| addr.parse().expect("an address"));
    let parties = [Party::at(&elsewhere, from), Party::at(&elsewhere, to)];
    let port = Port {
        number: 80,
        protocol: proxy_common::net::Protocol::TCP,
    };
    // shop/web is on another node, and isolated by deny-all.
    assert_eq!(
        judge(&elsewhere, Side::Ingress, &parties[0], &parties[1], &port).outcome,
        Outcome::Denied
    );
    let text = said(DENY, "monitoring/agent", "shop/web:80");
    assert!(
        text.starts_with(
            "Note: pod monitoring/agent has its node's network: to policies it is the node."
        ),
        "{text}"
    );
    assert!(matches!(
        outcome(DENY, "shop/web", "monitoring/agent:80"),
        Outcome::NoPod(_)
    ));
}

#[test]
fn p18_the_own_node_is_always_let_in_and_other_nodes_are_not() {
    assert_eq!(outcome(DENY, "192.0.2.1", "shop/db:5432"), Outcome::OwnNode);
    assert_eq!(
        outcome(DENY, "monitoring/agent", "shop/db:5432"),
        Outcome::OwnNode
    );
    assert_eq!(outcome(DENY, "192.0.2.1", "shop/web:80"), Outcome::Denied);
}

#[test]
fn p19_a_pod_may_reach_itself() {
    assert_eq!(outcome(DENY, "shop/db", "svc/shop/db:sql"), Outcome::Itself);
}

#[test]
fn p20_a_pod_that_has_ended_is_nobody() {
    let by_label = "{from: [{podSelector: {matchLabels: {app: api}}}]}";
    assert_eq!(
        against(by_label, "shop/job", "shop/db:5432"),
        ["wants a pod with app=api of namespace shop, but shop/job has ended"]
    );
    assert!(matches!(
        outcome(DENY, "shop/web", "shop/job:80"),
        Outcome::NoPod(_)
    ));
}

#[test]
fn p23_each_family_by_itself_and_once_where_they_say_the_same() {
    let v4_only = allow("[{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]");
    let both = answer(&v4_only, "shop/web", "shop/db:5432").expect("an answer");
    assert_eq!(
        both.connections
            .iter()
            .map(|c| c.allowed)
            .collect::<Vec<_>>(),
        [true, false]
    );
    assert!(!both.allowed());
    assert_eq!(
        said(DENY, "shop/web", "shop/db:5432")
            .matches("DENIED")
            .count(),
        1
    );
    assert!(answer(DENY, "203.0.113.7", "[fd00::3]:80").is_err());
}

#[test]
fn p28_a_service_is_judged_at_its_backends_and_their_ports() {
    let only_5432 = allow("[{ports: [{port: 5432}]}]");
    for to in ["svc/shop/db:80", "svc/shop/db:sql", "10.96.0.5:80"] {
        assert!(
            said(&only_5432, "shop/web", to).contains("shop/web -> shop/db:5432/TCP is allowed."),
            "{to}"
        );
    }
    let text = said(&only_5432, "shop/web", "10.96.0.5:80");
    assert!(
        text.starts_with(
            "Note: 10.96.0.5 is the cluster IP of Service shop/db; judged are its backends."
        ),
        "{text}"
    );
}

#[test]
fn p28_a_node_port_is_the_nodes_and_its_service_is_named() {
    let service = "{kind: Service, metadata: {namespace: shop, name: out}, spec: {type: NodePort, selector: {app: db}, ports: [{port: 80, nodePort: 30080}]}}";
    let text = said(service, "shop/web", "192.0.2.1:30080");
    assert!(
        text.contains(
            "Note: 30080 is a nodePort of Service shop/out: judged here is the way to node node-a; "
        ),
        "{text}"
    );
    assert!(
        text.contains("shop/web -> node node-a:30080/TCP is allowed."),
        "{text}"
    );
    assert!(!said(service, "shop/web", "192.0.2.1:30081").contains("nodePort"));
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let error = |from: &str, to: &str| {
        answer(DENY, from, to)
            .expect_err("nothing to explain")
            .to_string()
    };
    assert_eq!(
        error("shop/wep", "shop/db:80"),
        "no pod shop/wep; nearest are web, db, job"
    );
    assert_eq!(
        error("web", "shop/db:80"),
        "no pod default/web: namespace default has no pods"
    );
    assert_eq!(
        error("shop/web", "svc/shop/db:81"),
        "Service shop/db has no port 81/TCP; it has 80/TCP (sql)"
    );
    assert_eq!(
        error("shop/web", "shop/db:htpp"),
        "no container of pod shop/db has a port named `htpp` with protocol TCP"
    );
    assert_eq!(
        error("svc/shop/db", "shop/db:80"),
        "Service shop/db connects to nobody: name a pod or an address"
    );
}

#[test]
fn flaws_of_the_policies_that_judge_are_said() {
    let text = said(&allow("[{ports: [{port: 0}]}]"), "shop/web", "shop/db:5432");
    assert!(
        text.starts_with(
            "Note: NetworkPolicy shop/allow-db: spec.ingress[0].ports[0].port: 0 is no port"
        ),
        "{text}"
    );
    assert!(
        text.contains("shop/allow-db has no rule for this direction"),
        "{text}"
    );
}

/// Returns the verdicts of tables that hold what was compiled for the node.
fn verdicts(policies: &Policies, connection: &Explanation) -> TableVerdicts {
    let Explanation {
        from_address: Some(from),
        to_address: Some(to),
        port,
        ..
    } = connection
    else {
        return TableVerdicts::default();
    };
    let said = verdict(policies, *from, *to, port.protocol, port.number);
    let here = |addr, said| policies.pod_at(addr).map(|_| said);
    TableVerdicts {
        egress: here(*from, said.egress),
        ingress: here(*to, said.ingress),
    }
}

#[test]
fn the_tables_agree_with_the_objects_and_where_they_do_not_it_is_said() {
    let policies = allow(
        "[{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: sql}]}]",
    );
    let compiled = |policies: &str, node: &str| {
        let mut snapshot = Snapshot {
            state: state(policies),
            ..Snapshot::default()
        };
        snapshot.settings.node_name = node.into();
        let mut compiler = PolicyCompiler::default();
        _ = compiler.compile(&snapshot, &Touched::everything());
        compiler.policies().clone()
    };
    let (db, web) = (compiled(&policies, "node-a"), compiled(&policies, "node-b"));
    for (from, to) in [
        ("shop/web", "shop/db:5432"),
        ("shop/web", "shop/db:80"),
        ("203.0.113.7", "shop/db:5432"),
        ("198.51.100.7", "shop/db:5432"),
        ("monitoring/scraper", "shop/db:5432"),
        ("monitoring/agent", "shop/db:5432"),
        ("shop/db", "shop/db:80"),
        ("shop/db", "shop/web:80"),
    ] {
        for connection in answer(&policies, from, to).expect("an answer").connections {
            let both = [&db, &web]
                .map(|tables| compare(verdicts(tables, &connection), &connection).disagreements);
            assert_eq!(both.concat(), [""; 0], "{from} {to}");
        }
    }
    let now_open = answer("", "shop/web", "shop/db:80").expect("an answer");
    let connection = &now_open.connections[0];
    let [by_db, by_web] =
        [&db, &web].map(|tables| compare(verdicts(tables, connection), connection));
    assert_eq!(
        by_db.to_string(),
        "  Tables: the tables of this node deny this ingress of shop/db and the objects allow it: the agent is not in step\n"
    );
    assert_eq!(
        by_web.to_string(),
        "  Tables: Egress in the kernel of this node gives the same verdict\n",
        "shop/db is no pod of that node"
    );
}

#[test]
fn ends_and_targets_as_they_are_typed() {
    let end = |text: &str| text.parse::<End>();
    assert_eq!(
        end("web"),
        Ok(End::Pod(crate::model::ObjectName::new("default", "web")))
    );
    assert_eq!(
        end("pod/svc/web"),
        end("svc/web").map(|_| End::Pod(crate::model::ObjectName::new("svc", "web")))
    );
    assert_eq!(
        end("::ffff:10.0.0.1"),
        Ok(End::Address("10.0.0.1".parse().expect("an address")))
    );
    assert!(end("a/b/c").is_err() && end("").is_err() && end("a//b").is_err());
    for bad in [
        "shop/db",
        "shop/db:",
        "shop/db:0",
        "shop/db:80/icmp",
        "fd00::1:80",
        ":80",
    ] {
        assert!(bad.parse::<Target>().is_err(), "{bad}");
    }
    let target: Target = "[fd00::1]:53/udp".parse().expect("a target");
    assert_eq!(
        (target.port.as_str(), target.protocol),
        ("53", proxy_common::net::Protocol::UDP)
    );
}
