//! NetworkPolicies that do not do what their author meant.

use super::*;

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
