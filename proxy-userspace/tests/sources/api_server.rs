//! The source that watches an API server: lists, changes, expired versions, lost connections.

use super::*;

/// A server of just enough of the API: lists and watches.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Served>>);

#[derive(Default)]
struct Served {
    /// Names of the existing Services.
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
    fn send(&self, event: Value) {
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
    let (mut state, mut updates) = (State::default(), watched(&dir, &address).await);
    until(&mut state, &mut updates, "the first list", |s| {
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
    api.send(json!({"type": "ADDED", "object": service("b", 5)}));
    until(&mut state, &mut updates, "an addition", has("b")).await;

    api.change(|served| served.services = vec!["b", "c"]);
    api.send(json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}}));
    until(
        &mut state,
        &mut updates,
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
        let (mut state, mut updates) = (State::default(), watched(&dir, &address).await);
        until(&mut state, &mut updates, "the first list", |s| {
            s.synced && s.connection == Connection::Up
        })
        .await;

        theirs.shutdown_background();
        until(&mut state, &mut updates, "the loss", |s| {
            matches!(s.connection, Connection::Down(_))
        })
        .await;
        assert!(has("a")(&state), "what is known stays");

        api.change(|served| served.services = vec!["b"]);
        let (_, _server) = api.serve(&address).await;
        until(&mut state, &mut updates, "the return", |s| {
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
        api.send(json!({"type": "ADDED", "object": service("b", 9)}));
        until(
            &mut state,
            &mut updates,
            "changes after the return",
            has("b"),
        )
        .await;
    });
}
