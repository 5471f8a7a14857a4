//! `portway doctor` on the usual mistakes; the objects are as a user writes them.

use std::net::SocketAddr;

use portway::doctor::{Finding, Listener, examine};
use portway::model::{PortRange, Snapshot};
use portway::source::Ranges;
use portway::source::manifests::Directory;
use proxy_common::net::Protocol;

mod policies;
mod services;

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
