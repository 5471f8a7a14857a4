//! Publishes warnings as Events, where objects come from an API server.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::info;

use super::api_server;
use super::args::SourceSettings;
use crate::events::{Events, Warning};
use crate::model::{Kind, ObjectName};

/// Capacity of the queue of Events that wait for the API server.
const QUEUE: usize = 256;
/// Attempts to send an Event, with pauses that double.
const TRIES: u32 = 6;
/// Maximum length of a note, in bytes; the API server refuses longer ones.
const NOTE: usize = 1024;

/// Returns the destination of this node's warnings about objects.
///
/// # Errors
/// If the configuration of the API server's client cannot be used.
pub async fn events(settings: &SourceSettings, node: &str) -> Result<Events> {
    let SourceSettings::ApiServer { kubeconfig } = settings else {
        return Ok(Events::default());
    };
    let client = api_server::client(kubeconfig.clone()).await?;
    let reporter = Reporter {
        controller: "portway".into(),
        instance: Some(node.into()),
    };
    let (sender, warnings) = mpsc::channel(QUEUE);
    tokio::spawn(publish_all(client, reporter, warnings));
    Ok(Events::to(sender))
}

async fn publish_all(client: Client, reporter: Reporter, mut warnings: mpsc::Receiver<Warning>) {
    while let Some(warning) = warnings.recv().await {
        for attempt in 0..TRIES {
            match publish(&client, &reporter, &warning).await {
                Ok(()) => break,
                Err(error) => info!("cannot publish the Event of {}: {error}", warning.object),
            }
            tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
        }
    }
}

async fn publish(client: &Client, reporter: &Reporter, warning: &Warning) -> kube::Result<()> {
    let event = Event {
        type_: EventType::Warning,
        reason: warning.reason.into(),
        note: Some(cut(&warning.note).to_owned()),
        action: warning.action.into(),
        secondary: None,
    };
    let object = reference(client, warning).await?;
    // A new recorder each time: one that is kept would merge two causes with the same reason.
    Recorder::new(client.clone(), reporter.clone())
        .publish(&event, &object)
        .await
}

fn cut(note: &str) -> &str {
    &note[..note.floor_char_boundary(NOTE)]
}

/// Returns a reference with the uid, by which `kubectl describe` finds an object's Events.
async fn reference(client: &Client, warning: &Warning) -> kube::Result<ObjectReference> {
    let ObjectName { namespace, name } = &warning.object.name;
    let (version, metadata) = match warning.object.kind {
        Kind::NetworkPolicy => {
            let all = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
            (
                NetworkPolicy::API_VERSION,
                all.get_metadata_opt(name)
                    .await?
                    .map(|policy| policy.metadata),
            )
        }
        Kind::Service => {
            let all = Api::<Service>::namespaced(client.clone(), namespace);
            (
                Service::API_VERSION,
                all.get_metadata_opt(name)
                    .await?
                    .map(|service| service.metadata),
            )
        }
        Kind::EndpointSlice
        | Kind::Pod
        | Kind::Node
        | Kind::Namespace
        | Kind::ServiceCIDR
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::Manifest => (Service::API_VERSION, None),
    };
    Ok(ObjectReference {
        api_version: Some(version.into()),
        kind: Some(warning.object.kind.to_string()),
        namespace: Some(namespace.to_string()),
        name: Some(name.to_string()),
        uid: metadata.and_then(|metadata| metadata.uid),
        ..ObjectReference::default()
    })
}
