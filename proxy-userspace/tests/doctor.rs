//! `portway doctor` on the usual mistakes; the objects are as a user writes them.

use std::net::SocketAddr;

use portway::doctor::{Finding, Listener, examine};
use portway::model::{PortRange, Snapshot};
use portway::source::Ranges;
use portway::source::manifests::Directory;
use proxy_common::net::Protocol;

const POD: &str = "---
kind: Pod
metadata: {name: web-1, labels: {app: demo, tier: web}}
spec: {nodeName: node-a, containers: [{name: web, ports: [{name: http, containerPort: 80}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}], conditions: [{type: Ready, status: 'True'}]}
";

fn findings(yaml: &str, listeners: &[Listener]) -> Vec<Finding> {
    let cluster_ips = vec!["10.96.0.0/12".parse().expect("a prefix")];
    let ranges = Ranges {
        node_ports: PortRange {
            first: 30000,
            last: 32767,
        },
        cluster_ips,
    };
    let mut directory = Directory::new("unused".into());
    directory.take("all.yaml".into(), yaml.to_owned(), None);
    assert!(directory.manifests().count() > 0, "nothing was read");
    let mut snapshot = Snapshot::default();
    directory
        .updates(&ranges)
        .into_iter()
        .for_each(|update| _ = snapshot.state.apply(update));
    examine(&snapshot, listeners)
}

fn only(yaml: &str) -> Finding {
    let mut all = findings(yaml, &[]);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn service(name: &str, spec: &str) -> String {
    format!("---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn nothing_is_said_where_nothing_is_wrong() {
    let good = service(
        "web",
        "{type: NodePort, selector: {app: demo}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}",
    );
    assert_eq!(findings(&format!("{POD}{good}"), &[]), []);
}

#[test]
fn a_selector_that_matches_nothing_names_what_comes_nearest() {
    let finding = only(&format!(
        "{POD}{}",
        service(
            "web",
            "{selector: {app: demo, tier: wbe}, ports: [{port: 80}]}"
        )
    ));
    assert_eq!(
        (&*finding.object, &*finding.field, finding.check.name()),
        (
            "Service default/web",
            "spec.selector",
            "selector-matches-nothing"
        )
    );
    assert_eq!(
        finding.problem,
        "the selector app=demo, tier=wbe matches no pod of namespace default; nearest are pod web-1: tier=web where the selector asks for tier=wbe"
    );
    assert_eq!(
        finding.advice,
        "if those are meant, let the selector ask for tier=web"
    );
}

#[test]
fn a_deployment_without_pods_is_named() {
    let deployment = "---\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3, template: {metadata: {labels: {app: demo}}}}\n";
    let finding = only(&format!(
        "{deployment}{}",
        service("web", "{selector: {app: demo}, ports: [{port: 80}]}")
    ));
    assert!(
        finding
            .problem
            .ends_with("Deployment default/web would make them, but no such Pod is there"),
        "{finding}"
    );
}

#[test]
fn pods_of_another_namespace_are_pointed_out() {
    let finding = only(&format!(
        "{}{}",
        POD.replace("{name: web-1", "{namespace: shop, name: web-1"),
        service("web", "{selector: {app: demo}, ports: [{port: 80}]}")
    ));
    assert!(
        finding.problem.contains(
            "pod shop/web-1 has these labels, but a Service only picks pods of its own namespace"
        ),
        "{finding}"
    );
}

#[test]
fn a_named_target_port_that_no_container_has() {
    let finding = only(&format!(
        "{POD}{}",
        service(
            "web",
            "{selector: {app: demo}, ports: [{port: 80, targetPort: htpp}]}"
        )
    ));
    assert_eq!(
        (&*finding.field, finding.check.name()),
        ("spec.ports[0].targetPort", "unknown-target-port")
    );
    assert_eq!(
        finding.problem,
        "no container of the matching pods has a port named `htpp`; they are called `http`"
    );
    let udp = only(&format!(
        "{POD}{}",
        service(
            "web",
            "{selector: {app: demo}, ports: [{port: 80, protocol: UDP, targetPort: http}]}"
        )
    ));
    assert_eq!(
        udp.problem,
        "the pods' port `http` is TCP, the Service port is UDP"
    );
}

#[test]
fn no_ready_endpoint_says_why() {
    let waiting = POD.replace(
        "status: 'True'}]",
        "status: 'False'}], containerStatuses: [{name: web, ready: false, state: {waiting: {reason: ImagePullBackOff}}}]",
    );
    let finding = only(&format!(
        "{waiting}{}",
        service("web", "{selector: {app: demo}, ports: [{port: 80}]}")
    ));
    assert_eq!(finding.check.name(), "no-ready-endpoint");
    assert_eq!(
        finding.problem,
        "of 1 pod that its selector matches none is ready; pod web-1: container web waits: ImagePullBackOff"
    );
    let without = only(&service("web", "{ports: [{port: 80}]}"));
    assert_eq!(
        without.problem,
        "it has neither a selector nor an EndpointSlice, so it leads nowhere"
    );
}

#[test]
fn a_node_port_used_twice_names_both_services() {
    let spec = "{type: NodePort, selector: {app: demo}, ports: [{port: 80, nodePort: 30080}]}";
    let finding = only(&format!(
        "{POD}{}{}",
        service("a", spec),
        service("b", spec)
    ));
    assert_eq!(
        (&*finding.object, &*finding.field),
        ("Service default/b", "spec.ports[0].nodePort")
    );
    assert_eq!(
        finding.problem,
        "30080 belongs to Service default/a already"
    );
}

#[test]
fn a_node_port_taken_by_a_process_of_the_host_names_the_process() {
    let good = service(
        "web",
        "{type: NodePort, selector: {app: demo}, ports: [{port: 80, nodePort: 30080}]}",
    );
    let listener = |addr: &str, protocol| Listener {
        addr: addr.parse::<SocketAddr>().expect("an address"),
        protocol,
        process: Some(("nginx".to_owned(), 42)),
    };
    let harmless = [
        listener("127.0.0.1:30080", Protocol::TCP),
        listener("0.0.0.0:30080", Protocol::UDP),
        listener("0.0.0.0:30081", Protocol::TCP),
    ];
    assert_eq!(findings(&format!("{POD}{good}"), &harmless), []);
    let taken = findings(
        &format!("{POD}{good}"),
        &[
            listener("0.0.0.0:30080", Protocol::TCP),
            listener("[::]:30080", Protocol::TCP),
        ],
    );
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert!(
        taken[0]
            .problem
            .starts_with("process nginx (42) of this host listens on 30080/TCP too"),
        "{}",
        taken[0]
    );
}

/// A policy for `app=demo` with more of a spec.
fn policy(spec: &str) -> String {
    format!(
        "---\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{podSelector: {{matchLabels: {{app: demo}}}}, {spec}}}\n"
    )
}

fn of_policy(spec: &str) -> Vec<Finding> {
    findings(&format!("{POD}{}", policy(spec)), &[])
}

#[test]
fn a_policy_that_is_right_is_not_spoken_of() {
    assert_eq!(
        of_policy(
            "ingress: [{from: [{podSelector: {matchLabels: {tier: web}}}], ports: [{port: http}, {port: 443}]}]"
        ),
        []
    );
    assert_eq!(of_policy("policyTypes: [Ingress, Egress]"), []);
    assert_eq!(
        of_policy("egress: [{ports: [{port: 443}]}, {ports: [{port: 53, protocol: UDP}]}]"),
        []
    );
    assert_eq!(
        findings(
            &format!(
                "{POD}---\nkind: NetworkPolicy\nmetadata: {{namespace: empty, name: all}}\nspec: {{}}\n"
            ),
            &[]
        ),
        []
    );
}

#[test]
fn a_policy_in_the_wrong_namespace_or_with_a_wrong_selector_selects_nothing() {
    let finding = only(&format!(
        "{POD}{}",
        policy("").replace("{name: p}", "{name: p, namespace: shop}")
    ));
    assert_eq!(
        (&*finding.object, finding.check.name()),
        ("NetworkPolicy shop/p", "policy-selects-nothing")
    );
    assert_eq!(
        finding.problem,
        "the selector app=demo matches no pod of namespace shop; pod default/web-1 has these labels, but a policy only selects pods of its own namespace"
    );
    let finding = only(&format!(
        "{POD}{}",
        policy("").replace("app: demo", "app: dmeo, tier: web")
    ));
    assert!(
        finding
            .problem
            .ends_with("nearest are pod web-1: app=demo where the selector asks for app=dmeo"),
        "{finding}"
    );
}

#[test]
fn a_policy_cannot_guard_a_pod_in_its_nodes_network() {
    let finding = only(&format!(
        "{}{}",
        POD.replace("nodeName", "hostNetwork: true, nodeName"),
        policy("")
    ));
    assert_eq!(
        finding.problem,
        "pod default/web-1 has its node's network, where no policy is enforced"
    );
}

#[test]
fn a_peer_that_matches_nothing_says_why() {
    let other = POD.replace(
        "{name: web-1, labels: {app: demo, tier: web}}",
        "{name: api, namespace: shop, labels: {app: api}}",
    );
    let with = |peer: &str| {
        only(&format!(
            "{POD}{other}{}",
            policy(&format!(
                "ingress: [{{from: [{{podSelector: {{}}}}, {peer}]}}]"
            ))
        ))
    };
    let finding = with("{podSelector: {matchLabels: {app: api}}}");
    assert_eq!(
        (finding.check.name(), &*finding.field),
        ("peer-matches-nothing", "spec.ingress[0].from[1]")
    );
    assert_eq!(
        finding.problem,
        "there is not a pod with app=api of namespace default; pod shop/api has these labels, but a podSelector alone means the policy's own namespace"
    );
    let finding = with("{namespaceSelector: {matchLabels: {name: shop}}}");
    assert_eq!(
        finding.problem,
        "there is not a pod of a namespace with name=shop; no namespace has name=shop"
    );
    assert!(
        finding
            .advice
            .contains("kubernetes.io/metadata.name: default, shop"),
        "{finding}"
    );
}

#[test]
fn a_rule_for_a_port_name_that_no_pod_has() {
    let [finding] = of_policy("ingress: [{ports: [{port: htpp}]}]")
        .try_into()
        .expect("one");
    assert_eq!(
        (finding.check.name(), &*finding.field),
        ("unknown-port-name", "spec.ingress[0].ports[0].port")
    );
    assert_eq!(
        finding.problem,
        "port htpp/TCP allows nothing: the 1 pod that it is about call theirs http"
    );
    let [finding] = of_policy("ingress: [{ports: [{port: http, protocol: UDP}]}]")
        .try_into()
        .expect("one");
    assert_eq!(
        finding.problem,
        "port http/UDP allows nothing: the pods' port `http` is TCP"
    );
}

#[test]
fn an_egress_policy_that_forgets_dns() {
    let [finding] = of_policy("egress: [{ports: [{port: 443}]}]")
        .try_into()
        .expect("one");
    assert_eq!(
        (finding.check.name(), &*finding.field),
        ("egress-blocks-dns", "spec.egress")
    );
    let dns = "---\nkind: Service\nmetadata: {namespace: kube-system, name: kube-dns}\nspec: {selector: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP, targetPort: 5353}]}\n".to_owned()
        + &POD.replace("{name: web-1, labels: {app: demo, tier: web}}", "{namespace: kube-system, name: dns, labels: {k8s-app: kube-dns}}").replace("10.244.1.2", "10.244.1.9");
    let with = |egress: &str| {
        findings(
            &format!("{POD}{dns}{}", policy(&format!("egress: {egress}"))),
            &[],
        )
        .len()
    };
    let to_dns = |port: u16| {
        format!(
            "[{{to: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{k8s-app: kube-dns}}}}}}], ports: [{{port: {port}, protocol: UDP}}]}}]"
        )
    };
    assert_eq!(
        (with(&to_dns(53)), with(&to_dns(5353))),
        (1, 0),
        "the port at the pod counts (P14)"
    );
    assert_eq!(with("[{to: [{podSelector: {}}]}]"), 1, "own pods only");
    assert_eq!(
        with("[{to: [{ipBlock: {cidr: 169.254.20.10/32}}]}]"),
        0,
        "a cache on the node"
    );
}

#[test]
fn p29_a_block_for_clients_whose_addresses_do_not_arrive() {
    let service = service(
        "web",
        "{type: NodePort, selector: {app: demo}, ports: [{port: 80, nodePort: 30080}]}",
    );
    let block = policy("ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]");
    let finding = only(&format!("{POD}{service}{block}"));
    assert_eq!(
        (finding.check.name(), &*finding.field),
        ("client-addresses-hidden", "spec.ingress[0].from[0].ipBlock")
    );
    let local = service.replace(
        "type: NodePort",
        "type: NodePort, externalTrafficPolicy: Local",
    );
    assert_eq!(findings(&format!("{POD}{local}{block}"), &[]), []);
    let direct = service.replace(
        "name: web",
        "name: web, annotations: {portway.dev/forwarding: dsr}",
    );
    assert_ne!(direct, service);
    assert_eq!(
        findings(&format!("{POD}{direct}{block}"), &[]),
        [],
        "direct server return keeps them"
    );
    assert_eq!(
        findings(
            &format!(
                "{POD}{service}{}",
                policy("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")
            ),
            &[]
        ),
        []
    );
}

#[test]
fn a_part_of_a_policy_that_cannot_be_read_is_named() {
    let [finding] = of_policy("ingress: [{ports: [{port: 0}, {port: 80}]}]")
        .try_into()
        .expect("one");
    assert_eq!(
        (finding.check.name(), &*finding.field),
        ("unusable-field", "spec.ingress[0].ports[0].port")
    );
}
