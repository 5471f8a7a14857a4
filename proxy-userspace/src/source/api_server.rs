//! Watches an API server. Objects stay as they are while the connection is lost; an expired
//! resource version (410) starts a new list.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{BoxStream, Stream, StreamExt, select_all};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::runtime::utils::{Backoff, WatchStreamExt};
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;

use super::{Closed, Updates};
use crate::model::k8s::{self, Convert};
use crate::model::{Connection, Kind, ObjectName, ObjectRef, Update};

/// Interval between probes of the API server while it answers.
const PROBE: Duration = Duration::from_secs(10);
/// Interval between probes while it does not answer.
const PROBE_LOST: Duration = Duration::from_secs(1);
/// Time limit for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the watches.
///
/// # Errors
/// If the configuration cannot be used. An API server that does not answer is no error.
pub(super) async fn spawn(kubeconfig: Option<PathBuf>, updates_tx: Updates) -> Result<()> {
    let client = client(kubeconfig).await?;
    let watches: Vec<_> = Kind::WATCHED
        .iter()
        .filter_map(|kind| watch_kind(*kind, &client))
        .chain([probe(client.clone()).boxed()])
        .collect();
    tokio::spawn(forward(select_all(watches), updates_tx));
    Ok(())
}

/// Watches the objects of one of [`Kind::WATCHED`]; `None` for other kinds.
fn watch_kind(kind: Kind, client: &Client) -> Option<BoxStream<'static, Step>> {
    Some(match kind {
        // Other proxies' Services too (V1): their addresses are not unknown ones.
        Kind::Service => watch::<Service>(client, ""),
        Kind::EndpointSlice => watch::<EndpointSlice>(client, "!service.kubernetes.io/headless"),
        Kind::Pod => watch::<Pod>(client, ""),
        Kind::Node => watch::<Node>(client, ""),
        Kind::Namespace => watch::<Namespace>(client, ""),
        Kind::NetworkPolicy => watch::<NetworkPolicy>(client, ""),
        Kind::ServiceCIDR => watch::<ServiceCIDR>(client, ""),
        Kind::Deployment
        | Kind::ReplicaSet
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::Manifest => return None,
    })
}

pub(super) async fn client(kubeconfig: Option<PathBuf>) -> Result<Client> {
    Client::try_from(config(kubeconfig).await?).context("set up the client of the API server")
}

/// Returns the configuration from the given file, else from the pod's service account, else from
/// the user's kubeconfig.
async fn config(kubeconfig: Option<PathBuf>) -> Result<Config> {
    let Some(path) = kubeconfig else {
        return match Config::incluster() {
            Ok(config) => Ok(config),
            Err(_) => Config::infer().await.context(
                "find an API server: no --kubeconfig, no pod's service account, no ~/.kube/config",
            ),
        };
    };
    let read = || format!("read kubeconfig {}", path.display());
    // kube's own error for an absent file repeats itself.
    std::fs::File::open(&path).with_context(read)?;
    let kubeconfig = Kubeconfig::read_from(&path).with_context(read)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(read)
}

/// A step of a watch.
enum Step {
    Update(Update),
    /// Every object of the kind was listed for the first time.
    Listed(Kind),
    Lost(Kind, watcher::Error),
}

/// Passes steps on; sends [`Update::Synced`] when every kind was listed.
async fn forward(mut steps: impl Stream<Item = Step> + Unpin, mut updates_tx: Updates) {
    let mut unlisted: BTreeSet<_> = Kind::WATCHED.iter().copied().collect();
    while let Some(step) = steps.next().await {
        let sent = match step {
            Step::Update(update) => updates_tx.send(update).await,
            Step::Listed(kind) if unlisted.remove(&kind) && unlisted.is_empty() => {
                updates_tx.send(Update::Synced).await
            }
            Step::Listed(_) => Ok(()),
            // Kubernetes before 1.33 has no ServiceCIDRs: a refusal counts as an empty list.
            // An API server that does not answer is waited for.
            Step::Lost(Kind::ServiceCIDR, error) => {
                tracing::debug!("watch of ServiceCIDRs: {error}; trying again");
                let absent =
                    is_absent(&error) && unlisted.remove(&Kind::ServiceCIDR) && unlisted.is_empty();
                if absent {
                    updates_tx.send(Update::Synced).await
                } else {
                    Ok(())
                }
            }
            Step::Lost(kind, error) => {
                tracing::info!("watch of {kind}s: {error}; trying again");
                Ok(())
            }
        };
        if let Err(Closed) = sent {
            return;
        }
    }
}

/// Returns true if the API server answered that it has no such kind, or does not let us see it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "kube's list of errors is open"
)]
fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => {
            matches!(status.code, 403 | 404)
        }
        _ => false,
    }
}

/// Watches the objects of one kind. After an error the watch resumes, or lists again where it must.
fn watch<K>(client: &Client, labels: &str) -> BoxStream<'static, Step>
where
    K: Convert
        + Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let config = watcher::Config {
        label_selector: Some(labels.to_owned()).filter(|l| !l.is_empty()),
        ..Default::default()
    };
    let events = watcher(
        Api::<DeserializeGuard<K>>::all(client.clone()),
        config.any_semantic(),
    )
    .backoff(Impatient(DefaultBackoff::default()));
    let mut known = Known::default();
    events
        .flat_map(move |event| futures::stream::iter(known.steps(event)))
        .boxed()
}

/// kube's backoff divided by three: 0.25 to 10 seconds, with jitter, so that nodes do not retry all
/// at once.
struct Impatient(DefaultBackoff);

impl Iterator for Impatient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait / 3)
    }
}

impl Backoff for Impatient {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// The objects of one kind that were reported. Those missing from a new list are deleted.
#[derive(Default)]
struct Known {
    reported: BTreeSet<ObjectRef>,
    /// The objects of the list that is being read.
    listed: BTreeSet<ObjectRef>,
}

impl Known {
    fn steps<K: Convert>(
        &mut self,
        event: watcher::Result<Event<DeserializeGuard<K>>>,
    ) -> Vec<Step> {
        match event {
            Ok(Event::Init) => {
                self.listed.clear();
                Vec::new()
            }
            Ok(Event::InitApply(object)) => {
                let (reference, update) = seen(object);
                self.listed.insert(reference);
                vec![Step::Update(update)]
            }
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> = self.reported.difference(&listed).cloned().collect();
                self.reported = listed;
                let gone = gone
                    .into_iter()
                    .map(|object| Step::Update(Update::Delete(object)));
                gone.chain([Step::Listed(K::KIND)]).collect()
            }
            Ok(Event::Apply(object)) => {
                let (reference, update) = seen(object);
                self.reported.insert(reference);
                vec![Step::Update(update)]
            }
            Ok(Event::Delete(object)) => {
                let (reference, _) = seen(object);
                self.reported.remove(&reference);
                vec![Step::Update(Update::Delete(reference))]
            }
            Err(error) => vec![Step::Lost(K::KIND, error)],
        }
    }
}

/// Returns an object's reference and its update; for an unreadable object an update that marks it
/// as invalid.
fn seen<K: Convert>(DeserializeGuard(object): DeserializeGuard<K>) -> (ObjectRef, Update) {
    match object {
        Ok(object) => (k8s::reference(&object), k8s::seen(&object)),
        Err(unreadable) => {
            let [namespace, name] = [unreadable.metadata.namespace, unreadable.metadata.name]
                .map(Option::unwrap_or_default);
            let reference = ObjectRef {
                kind: K::KIND,
                name: ObjectName::new(&namespace, &name),
            };
            let update =
                k8s::seen_unreadable(reference.clone(), "the object".to_owned(), unreadable.error);
            (reference, update)
        }
    }
}

/// Probes the API server and yields a step when its connection changes.
fn probe(client: Client) -> impl Stream<Item = Step> {
    futures::stream::unfold((client, Connection::Never), |(client, before)| async move {
        loop {
            match &before {
                Connection::Never => {}
                Connection::Up => tokio::time::sleep(PROBE).await,
                Connection::Down(_) => tokio::time::sleep(PROBE_LOST).await,
            }
            let now = match tokio::time::timeout(PROBE_TIMEOUT, client.apiserver_version()).await {
                Ok(Ok(_)) => Connection::Up,
                Ok(Err(error)) => Connection::Down(error.to_string().into()),
                Err(_) => Connection::Down(format!("no answer within {PROBE_TIMEOUT:?}").into()),
            };
            if std::mem::discriminant(&now) != std::mem::discriminant(&before) {
                log_connection(&now);
                return Some((Step::Update(Update::Connection(now.clone())), (client, now)));
            }
        }
    })
}

fn log_connection(connection: &Connection) {
    match connection {
        Connection::Down(error) => tracing::warn!(
            "the API server cannot be reached: {error}; the objects known so far stay in force"
        ),
        Connection::Never | Connection::Up => tracing::info!("the API server answers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;
    use serde_json::json;

    fn service(name: &str) -> DeserializeGuard<Service> {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
        DeserializeGuard(Ok(serde_json::from_value(object).expect("a Service")))
    }

    fn steps_in_words(known: &mut Known, event: Event<DeserializeGuard<Service>>) -> Vec<String> {
        let words = |step: Step| match step {
            Step::Update(Update::Apply(o)) => format!("+{}", o.reference().name.name),
            Step::Update(Update::Delete(o)) => format!("-{}", o.name.name),
            Step::Listed(_) => "listed".to_owned(),
            Step::Update(_) | Step::Lost(..) => "other".to_owned(),
        };
        known.steps(Ok(event)).into_iter().map(words).collect()
    }

    #[test]
    fn an_object_deleted_while_the_watch_was_broken_is_taken_back_by_the_next_list() {
        let mut known = Known::default();
        steps_in_words(&mut known, Event::Init);
        assert_eq!(
            steps_in_words(&mut known, Event::InitApply(service("a"))),
            ["+a"]
        );
        assert_eq!(steps_in_words(&mut known, Event::InitDone), ["listed"]);
        assert_eq!(
            steps_in_words(&mut known, Event::Apply(service("b"))),
            ["+b"]
        );
        steps_in_words(&mut known, Event::Init);
        assert_eq!(
            steps_in_words(&mut known, Event::InitApply(service("b"))),
            ["+b"]
        );
        assert_eq!(
            steps_in_words(&mut known, Event::InitDone),
            ["-a", "listed"]
        );
        assert_eq!(
            steps_in_words(&mut known, Event::Delete(service("b"))),
            ["-b"]
        );
    }

    #[test]
    fn an_object_that_cannot_be_read_costs_itself() {
        let unreadable =
            json!({"metadata": {"namespace": "shop", "name": "bad"}, "spec": {"ports": "none"}});
        let guard: DeserializeGuard<Service> = serde_json::from_value(unreadable).expect("a guard");
        let (reference, update) = seen(guard);
        assert_eq!(reference.to_string(), "Service shop/bad");
        assert!(matches!(update, Update::Invalid(_)));
    }

    #[test]
    fn p34_a_policy_that_cannot_be_read_isolates_what_it_may_have_selected() {
        let unreadable =
            json!({"metadata": {"namespace": "shop", "name": "bad"}, "spec": {"ingress": "all"}});
        let guard: DeserializeGuard<NetworkPolicy> =
            serde_json::from_value(unreadable).expect("a guard");
        let (reference, update) = seen(guard);
        let Update::Flawed(Object::NetworkPolicy(_, policy), flaws) = update else {
            panic!("left out")
        };
        assert_eq!(
            (policy.ingress, policy.egress, flaws.len()),
            (Some(vec![]), Some(vec![]), 1)
        );
        assert_eq!(reference.to_string(), "NetworkPolicy shop/bad");
    }
}
