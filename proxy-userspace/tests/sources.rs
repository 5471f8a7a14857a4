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

/// Longer than any backoff that is met here.
const SOON: Duration = Duration::from_secs(20);

/// A directory of its own, gone with the value.
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

/// Applies news until the state is as wanted.
async fn until(
    state: &mut State,
    news: &mut mpsc::Receiver<Update>,
    what: &str,
    wanted: impl Fn(&State) -> bool,
) {
    let waiting = async {
        while !wanted(state) {
            _ = state.apply(news.recv().await.expect("the source lives"));
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
    let (mut state, mut news) = (
        State::default(),
        source::spawn(manifests(&dir.0)).await.expect("a source"),
    );
    until(&mut state, &mut news, "the first list", |s| s.synced).await;
    assert!(has("a")(&state) && state.connection == Connection::Up);

    std::fs::write(dir.path(".b.yaml.new"), manifest("b", 80)).expect("written");
    std::fs::rename(dir.path(".b.yaml.new"), dir.path("b.yaml")).expect("renamed");
    until(&mut state, &mut news, "a file renamed into place", has("b")).await;

    std::fs::write(dir.path("b.yaml"), "kind: [").expect("written");
    until(
        &mut state,
        &mut news,
        "a file that is no YAML is said",
        |s| !s.invalid.is_empty(),
    )
    .await;
    assert!(has("b")(&state), "its last good content counts");

    std::fs::write(dir.path("b.yaml"), manifest("b", 0)).expect("written");
    until(&mut state, &mut news, "a bad object costs itself", |s| {
        !has("b")(s)
    })
    .await;
    assert!(has("a")(&state));

    std::fs::remove_file(dir.path("a.yaml")).expect("removed");
    until(&mut state, &mut news, "a file removed", |s| !has("a")(s)).await;
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
    let (mut state, mut news) = (
        State::default(),
        source::spawn(manifests(&dir.0)).await.expect("a source"),
    );
    until(&mut state, &mut news, "the first list", |s| s.synced).await;
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
    until(&mut state, &mut news, "a flaw is said", |s| {
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
    until(&mut state, &mut news, "the correction", |s| {
        s.flaws.is_empty() && s.namespaces.values().any(|n| n.labels.len() == 2)
    })
    .await;
    assert_eq!(rules(&state), Some(1));

    std::fs::remove_file(dir.path("a.yaml")).expect("removed");
    until(&mut state, &mut news, "a policy removed", |s| {
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

/// A server of just enough of the API: lists and watches.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Served>>);

#[derive(Default)]
struct Served {
    /// Names of the Services that there are.
    services: Vec<&'static str>,
    /// NetworkPolicies.
    policies: Vec<Value>,
    version: u64,
    /// Open watches of Services, to be written to.
    watches: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>,
    lists: usize,
}

fn service(name: &str, version: u64) -> Value {
    let metadata =
        json!({"namespace": "default", "name": name, "resourceVersion": version.to_string()});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}})
}

impl Api {
    fn change(&self, change: impl FnOnce(&mut Served)) {
        let mut served = self.0.lock().expect("no poison");
        served.version += 1;
        change(&mut served);
    }

    /// Sends a line to every open watch.
    fn tell(&self, event: Value) {
        let line = Bytes::from(format!("{event}\n"));
        self.0
            .lock()
            .expect("no poison")
            .watches
            .retain(|watch| watch.try_send(Ok(line.clone())).is_ok());
    }

    /// Listens on the address given; the server ends, its connections too, when the task is
    /// aborted.
    async fn serve(&self, address: &str) -> (String, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.expect("an address");
        let address = listener.local_addr().expect("bound").to_string();
        let router = Router::new().fallback(answer).with_state(self.clone());
        (
            address,
            tokio::spawn(async move { axum::serve(listener, router).await.expect("served") }),
        )
    }
}

#[derive(serde::Deserialize)]
struct Asked {
    watch: Option<String>,
}

async fn answer(Shared(api): Shared<Api>, uri: Uri, Query(asked): Query<Asked>) -> Response {
    let mut served = api.0.lock().expect("no poison");
    if uri.path() == "/version" {
        let version = [
            "major",
            "minor",
            "gitVersion",
            "gitCommit",
            "gitTreeState",
            "buildDate",
            "goVersion",
            "compiler",
            "platform",
        ];
        return axum::Json(
            version
                .into_iter()
                .map(|key| (key.to_owned(), "".into()))
                .collect::<serde_json::Map<_, _>>(),
        )
        .into_response();
    }
    let services = uri.path() == "/api/v1/services";
    if asked.watch.is_some() {
        let (events, stream) = mpsc::channel(16);
        if services {
            served.watches.push(events);
        } else {
            std::mem::forget(events);
        }
        let stream = futures::stream::unfold(stream, |mut stream| async move {
            Some((stream.recv().await?, stream))
        });
        return Response::new(Body::from_stream(stream));
    }
    let items: Vec<_> = match uri.path() {
        "/api/v1/services" => served
            .services
            .iter()
            .map(|name| service(name, served.version))
            .collect(),
        "/apis/networking.k8s.io/v1/networkpolicies" => served.policies.clone(),
        _ => Vec::new(),
    };
    served.lists += usize::from(services);
    let version = served.version.max(1).to_string();
    axum::Json(json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}))
        .into_response()
}

fn settings(dir: &Scratch, address: &str) -> SourceSettings {
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]});
    std::fs::write(dir.path("kubeconfig"), kubeconfig.to_string()).expect("written");
    SourceSettings::ApiServer {
        kubeconfig: Some(dir.path("kubeconfig")),
    }
}

async fn watched(dir: &Scratch, address: &str) -> mpsc::Receiver<Update> {
    source::spawn(settings(dir, address))
        .await
        .expect("a source")
}

#[tokio::test]
async fn a_list_has_everything_that_there_is_and_a_source_that_is_away_is_an_error() {
    let (dir, api) = (Scratch::new("listed"), Api::default());
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "deny"}});
    api.change(|served| (served.services, served.policies) = (vec!["a"], vec![policy]));
    let (address, server) = api.serve("127.0.0.1:0").await;
    let state = source::list(settings(&dir, &address))
        .await
        .expect("a list");
    assert_eq!((state.services.len(), state.policies.len()), (1, 1));
    server.abort();
    _ = server.await;
    let error = source::list(settings(&dir, &address))
        .await
        .expect_err("nobody to ask");
    assert!(
        error.to_string().starts_with("reach the API server: "),
        "{error:#}"
    );
}

#[tokio::test]
async fn an_api_server_is_followed_through_changes_and_an_expired_version() {
    let (dir, api) = (Scratch::new("expired"), Api::default());
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "deny"}, "spec": {"podSelector": {}}});
    api.change(|served| (served.services, served.policies) = (vec!["a"], vec![policy]));
    let (address, _server) = api.serve("127.0.0.1:0").await;
    let (mut state, mut news) = (State::default(), watched(&dir, &address).await);
    until(&mut state, &mut news, "the first list", |s| {
        s.synced && s.connection == Connection::Up
    })
    .await;
    assert!(
        has("a")(&state)
            && state
                .policies
                .contains_key(&ObjectName::new("shop", "deny")),
        "nothing is synced before all is"
    );

    while api.0.lock().expect("no poison").watches.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api.tell(json!({"type": "ADDED", "object": service("b", 5)}));
    until(&mut state, &mut news, "an addition", has("b")).await;

    api.change(|served| served.services = vec!["b", "c"]);
    api.tell(json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}}));
    until(
        &mut state,
        &mut news,
        "what was deleted meanwhile is gone after 410",
        |s| has("c")(s) && !has("a")(s),
    )
    .await;
    assert!(has("b")(&state) && api.0.lock().expect("no poison").lists == 2);
}

#[test]
fn a_lost_api_server_is_said_what_is_known_stays_and_watching_resumes() {
    let (dir, api) = (Scratch::new("lost"), Api::default());
    api.change(|served| served.services = vec!["a"]);
    let ours = tokio::runtime::Runtime::new().expect("a runtime");
    // The server has a runtime of its own: shutting that down cuts its connections as a crash does.
    let theirs = tokio::runtime::Runtime::new().expect("a runtime");
    let (address, _) = theirs.block_on(api.serve("127.0.0.1:0"));
    ours.block_on(async {
        let (mut state, mut news) = (State::default(), watched(&dir, &address).await);
        until(&mut state, &mut news, "the first list", |s| {
            s.synced && s.connection == Connection::Up
        })
        .await;

        theirs.shutdown_background();
        until(&mut state, &mut news, "the loss", |s| {
            matches!(s.connection, Connection::Down(_))
        })
        .await;
        assert!(has("a")(&state), "what is known stays");

        api.change(|served| served.services = vec!["b"]);
        let (_, _server) = api.serve(&address).await;
        until(&mut state, &mut news, "the return", |s| {
            s.connection == Connection::Up
        })
        .await;
        while api
            .0
            .lock()
            .expect("no poison")
            .watches
            .iter()
            .all(|watch| watch.is_closed())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        api.tell(json!({"type": "ADDED", "object": service("b", 9)}));
        until(&mut state, &mut news, "changes after the return", has("b")).await;
    });
}
