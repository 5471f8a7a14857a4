//! Services that lead nowhere, or not where their author meant.

use super::*;

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
