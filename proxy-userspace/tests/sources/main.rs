//! The two sources as the control loop meets them: a directory that changes, an API server that
//! goes and comes back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Shared};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use portway::model::{Connection, ObjectName, PortRange, State, Update};
use portway::source;
use portway::source::{Ranges, SourceSettings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

mod api_server;

/// Time limit, longer than any backoff of these tests.
const SOON: Duration = Duration::from_secs(20);

/// A directory that is removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("portway-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Applies updates until the state is as wanted.
async fn until(
    state: &mut State,
    updates: &mut mpsc::Receiver<Update>,
    what: &str,
    wanted: impl Fn(&State) -> bool,
) {
    let waiting = async {
        while !wanted(state) {
            _ = state.apply(updates.recv().await.expect("the source lives"));
        }
    };
    if tokio::time::timeout(SOON, waiting).await.is_err() {
        panic!("not in time: {what}");
    }
}

fn has(name: &'static str) -> impl Fn(&State) -> bool {
    move |state| {
        state
            .services
            .contains_key(&ObjectName::new("default", name))
    }
}

fn manifest(name: &str, port: u16) -> String {
    format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n")
}

fn manifests(dir: &Path) -> SourceSettings {
    let cluster_ips = vec!["10.96.0.0/12".parse().expect("a prefix")];
    SourceSettings::Manifests {
        dir: dir.to_owned(),
        ranges: Ranges {
            node_ports: PortRange {
                first: 30000,
                last: 32767,
            },
            cluster_ips,
        },
    }
}

#[tokio::test]
async fn a_directory_is_followed_through_writes_renames_mistakes_and_removals() {
    let dir = Scratch::new("followed");
    std::fs::write(dir.path("a.yaml"), manifest("a", 80)).expect("written");
    let (mut state, mut updates) = (
        State::default(),
        source::spawn(manifests(&dir.0)).await.expect("a source"),
    );
    until(&mut state, &mut updates, "the first list", |s| s.synced).await;
    assert!(has("a")(&state) && state.connection == Connection::Up);

    std::fs::write(dir.path(".b.yaml.new"), manifest("b", 80)).expect("written");
    std::fs::rename(dir.path(".b.yaml.new"), dir.path("b.yaml")).expect("renamed");
    until(
        &mut state,
        &mut updates,
        "a file renamed into place",
        has("b"),
    )
    .await;

    std::fs::write(dir.path("b.yaml"), "kind: [").expect("written");
    until(
        &mut state,
        &mut updates,
        "a file that is no YAML is said",
        |s| !s.invalid.is_empty(),
    )
    .await;
    assert!(has("b")(&state), "its last good content counts");

    std::fs::write(dir.path("b.yaml"), manifest("b", 0)).expect("written");
    until(&mut state, &mut updates, "a bad object costs itself", |s| {
        !has("b")(s)
    })
    .await;
    assert!(has("a")(&state));

    std::fs::remove_file(dir.path("a.yaml")).expect("removed");
    until(&mut state, &mut updates, "a file removed", |s| !has("a")(s)).await;
}

#[tokio::test]
async fn policies_of_a_directory_stay_closed_through_mistakes_and_the_namespaces_that_files_name_are_there()
 {
    let dir = Scratch::new("policies");
    let policy = |ingress: &str| {
        format!(
            "kind: NetworkPolicy\nmetadata: {{namespace: shop, name: db}}\nspec: {{ingress: {ingress}}}\n"
        )
    };
    let name = ObjectName::new("shop", "db");
    let rules = |s: &State| {
        s.policies
            .get(&name)
            .and_then(|policy| policy.ingress.as_ref())
            .map(Vec::len)
    };
    std::fs::write(dir.path("a.yaml"), policy("[{ports: [{port: 80}]}]")).expect("written");
    let (mut state, mut updates) = (
        State::default(),
        source::spawn(manifests(&dir.0)).await.expect("a source"),
    );
    until(&mut state, &mut updates, "the first list", |s| s.synced).await;
    assert_eq!((rules(&state), state.flaws.len()), (Some(1), 0));
    let labels = &state.namespaces[&ObjectName::cluster("shop")].labels;
    assert_eq!(
        labels
            .get("kubernetes.io/metadata.name")
            .map(String::as_str),
        Some("shop"),
        "P10"
    );

    std::fs::write(dir.path("a.yaml"), policy("{from: []}")).expect("written");
    until(&mut state, &mut updates, "a flaw is said", |s| {
        !s.flaws.is_empty()
    })
    .await;
    assert_eq!(rules(&state), Some(0), "what cannot be read allows nothing");

    std::fs::write(
        dir.path("b.yaml"),
        "kind: Namespace\nmetadata: {name: shop, labels: {tier: a}}\n",
    )
    .expect("written");
    std::fs::write(dir.path("a.yaml"), policy("[{}]")).expect("written");
    until(&mut state, &mut updates, "the correction", |s| {
        s.flaws.is_empty() && s.namespaces.values().any(|n| n.labels.len() == 2)
    })
    .await;
    assert_eq!(rules(&state), Some(1));

    std::fs::remove_file(dir.path("a.yaml")).expect("removed");
    until(&mut state, &mut updates, "a policy removed", |s| {
        s.policies.is_empty()
    })
    .await;
}

#[tokio::test]
async fn no_such_directory_and_no_such_kubeconfig_are_errors_at_once() {
    let missing = Path::new("/nonexistent/portway");
    assert!(source::spawn(manifests(missing)).await.is_err());
    let kubeconfig = SourceSettings::ApiServer {
        kubeconfig: Some(missing.to_owned()),
    };
    assert!(source::spawn(kubeconfig).await.is_err());
}
