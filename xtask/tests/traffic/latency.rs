//! Latency of a change at the API server until it is in the kernel of every node.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, IN_FORCE, load_average};
use crate::measured::{Log, Spread};

const CHANGES: usize = 200;
/// The goal: the 99th percentile from the API server's event to the kernel.
const GOAL: Duration = Duration::from_millis(50);

/// A change that the API server has taken.
struct Change {
    version: String,
    /// When each agent's maps had it.
    in_force: Vec<SystemTime>,
    asked: SystemTime,
}

#[test]
fn a_change_is_in_every_kernel_within_50_ms_of_its_event() -> Result<()> {
    let cluster = Cluster::start_alone(Wiring::PointToPoint, Join::Routes, &[])?;
    let client = cluster.plane.client();
    client.apply(&service())?;
    client.apply(&slice())?;
    let target = ObjectRef::of(&slice())?;
    let (event_tx, events) = mpsc::channel();
    let changes = std::thread::scope(|scope| {
        scope.spawn(|| client.watch(&target, |event| heed(event, &event_tx)));
        let changes = change_often(&cluster, &target);
        client.delete(&target)?;
        changes
    })?;
    let readable: BTreeMap<String, SystemTime> = events.try_iter().collect();
    let mut after_event = Vec::new();
    let mut after_request = Vec::new();
    for change in &changes {
        let event = readable
            .get(&change.version)
            .with_context(|| format!("find the event of version {}", change.version))?;
        for at in &change.in_force {
            // An agent may be done before our own watch has read the event.
            after_event.push(at.duration_since(*event).unwrap_or_default());
            after_request.push(at.duration_since(change.asked).unwrap_or_default());
        }
    }
    let (event, request) = (Spread::of(after_event), Spread::of(after_request));
    println!(
        "{CHANGES} changes on {} nodes, load average {}",
        cluster.agents.len(),
        load_average()?
    );
    println!(
        "  from the event to the kernel: {event}\n  from the request to the kernel: {request}"
    );
    ensure!(
        event.p99 <= GOAL,
        "from the event to the kernel: {event}, load average {}",
        load_average()?
    );
    metric_has_them(&cluster)
}

fn heed(event: &Value, event_tx: &mpsc::Sender<(String, SystemTime)>) -> ControlFlow<()> {
    let now = SystemTime::now();
    if event["type"] == "DELETED" {
        return ControlFlow::Break(());
    }
    let version = event
        .pointer("/object/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match event_tx.send((version.to_owned(), now)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

/// An endpoint gets ready and unready, each time after all agents have said that their maps have
/// the last change.
fn change_often(cluster: &Cluster, target: &ObjectRef) -> Result<Vec<Change>> {
    let mut logs: Vec<Log> = cluster.agents.iter().map(Log::from_here).collect();
    let mut changes = Vec::new();
    for round in 0..CHANGES {
        let asked = SystemTime::now();
        let taken = cluster
            .plane
            .client()
            .patch(target, &flip(round % 2 == 0, asked)?)?;
        let version = taken
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .context("read a version")?;
        let in_force = logs
            .iter_mut()
            .map(|log| log.when("the kernel is in step", asked))
            .collect::<Result<_>>()?;
        changes.push(Change {
            version: version.to_owned(),
            in_force,
            asked,
        });
    }
    Ok(changes)
}

/// V24: each node's agent has measured the same changes by the time in their annotation.
fn metric_has_them(cluster: &Cluster) -> Result<()> {
    for node in cluster.lab.nodes() {
        let name = "kubeproxy_network_programming_duration_seconds_count";
        wait_for("the metric to have all changes", IN_FORCE, || {
            let count = cluster.metric(node, name, "")?;
            Ok((count >= CHANGES as u64).then_some(()))
        })?;
    }
    Ok(())
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "restless", "namespace": "default" },
        "spec": { "ports": [{ "name": "http", "port": 80 }] },
    })
}

fn slice() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "restless-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "restless" } },
        "addressType": "IPv4",
        "endpoints": endpoints(true),
        "ports": [{ "name": "http", "port": 8080 }],
    })
}

fn endpoints(second_ready: bool) -> Value {
    json!([
        { "addresses": ["10.244.1.10"], "conditions": { "ready": true }, "nodeName": "node1" },
        { "addresses": ["10.244.2.10"], "conditions": { "ready": second_ready }, "nodeName": "node2" },
    ])
}

fn flip(second_unready: bool, now: SystemTime) -> Result<Value> {
    let now = Timestamp::try_from(now).context("name a time")?.to_string();
    let annotations = json!({ "endpoints.kubernetes.io/last-change-trigger-time": now });
    Ok(
        json!({ "metadata": { "annotations": annotations }, "endpoints": endpoints(!second_unready) }),
    )
}
