//! What `portway doctor` says about the usual mistakes; the objects are as a user writes them.

use std::net::SocketAddr;

use portway::args::settings::Ranges;
use portway::doctor::{Finding, Listener, examine};
use portway::model::{PortRange, Snapshot};
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
    let ranges = Ranges { node_ports: PortRange { first: 30000, last: 32767 }, cluster_ips };
    let mut directory = Directory::new("unused".into());
    directory.take("all.yaml".into(), yaml.to_owned(), None);
    assert!(directory.manifests().count() > 0, "nothing was read");
    let mut snapshot = Snapshot::default();
    directory.updates(&ranges).into_iter().for_each(|update| _ = snapshot.state.apply(update));
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
    let good = service("web", "{type: NodePort, selector: {app: demo}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}");
    assert_eq!(findings(&format!("{POD}{good}"), &[]), []);
}

#[test]
fn a_selector_that_matches_nothing_names_what_comes_nearest() {
    let finding = only(&format!("{POD}{}", service("web", "{selector: {app: demo, tier: wbe}, ports: [{port: 80}]}")));
    assert_eq!(
        (&*finding.object, &*finding.field, finding.check),
        ("Service default/web", "spec.selector", "selector-matches-nothing")
    );
    assert_eq!(
        finding.problem,
        "the selector app=demo, tier=wbe matches no pod of namespace default; nearest are pod web-1: tier=web where the selector asks for tier=wbe"
    );
    assert_eq!(finding.advice, "if those are meant, let the selector ask for tier=web");
}

#[test]
fn a_deployment_without_pods_is_named() {
    let deployment =
        "---\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3, template: {metadata: {labels: {app: demo}}}}\n";
    let finding = only(&format!("{deployment}{}", service("web", "{selector: {app: demo}, ports: [{port: 80}]}")));
    assert!(finding.problem.ends_with("Deployment default/web would make them, but no such Pod is there"), "{finding}");
}

#[test]
fn pods_of_another_namespace_are_pointed_out() {
    let finding = only(&format!(
        "{}{}",
        POD.replace("{name: web-1", "{namespace: shop, name: web-1"),
        service("web", "{selector: {app: demo}, ports: [{port: 80}]}")
    ));
    assert!(
        finding.problem.contains("pod shop/web-1 has these labels, but a Service only picks pods of its own namespace"),
        "{finding}"
    );
}

#[test]
fn a_named_target_port_that_no_container_has() {
    let finding = only(&format!("{POD}{}", service("web", "{selector: {app: demo}, ports: [{port: 80, targetPort: htpp}]}")));
    assert_eq!((&*finding.field, finding.check), ("spec.ports[0].targetPort", "unknown-target-port"));
    assert_eq!(finding.problem, "no container of the matching pods has a port named `htpp`; they are called `http`");
    let udp = only(&format!(
        "{POD}{}",
        service("web", "{selector: {app: demo}, ports: [{port: 80, protocol: UDP, targetPort: http}]}")
    ));
    assert_eq!(udp.problem, "the pods' port `http` is TCP, the Service port is UDP");
}

#[test]
fn no_ready_endpoint_says_why() {
    let waiting = POD.replace(
        "status: 'True'}]",
        "status: 'False'}], containerStatuses: [{name: web, ready: false, state: {waiting: {reason: ImagePullBackOff}}}]",
    );
    let finding = only(&format!("{waiting}{}", service("web", "{selector: {app: demo}, ports: [{port: 80}]}")));
    assert_eq!(finding.check, "no-ready-endpoint");
    assert_eq!(
        finding.problem,
        "of 1 pod that its selector matches none is ready; pod web-1: container web waits: ImagePullBackOff"
    );
    let without = only(&service("web", "{ports: [{port: 80}]}"));
    assert_eq!(without.problem, "it has neither a selector nor an EndpointSlice, so it leads nowhere");
}

#[test]
fn a_node_port_used_twice_names_both_services() {
    let spec = "{type: NodePort, selector: {app: demo}, ports: [{port: 80, nodePort: 30080}]}";
    let finding = only(&format!("{POD}{}{}", service("a", spec), service("b", spec)));
    assert_eq!((&*finding.object, &*finding.field), ("Service default/b", "spec.ports[0].nodePort"));
    assert_eq!(finding.problem, "30080 belongs to Service default/a already");
}

#[test]
fn a_node_port_taken_by_a_process_of_the_host_names_the_process() {
    let good = service("web", "{type: NodePort, selector: {app: demo}, ports: [{port: 80, nodePort: 30080}]}");
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
    let taken =
        findings(&format!("{POD}{good}"), &[listener("0.0.0.0:30080", Protocol::TCP), listener("[::]:30080", Protocol::TCP)]);
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert!(taken[0].problem.starts_with("process nginx (42) of this host listens on 30080/TCP too"), "{}", taken[0]);
}
