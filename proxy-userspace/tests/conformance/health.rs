//! Health checks (V22, V23): local ready endpoints of a Service, and the answers to load balancers
//! and the kubelet, by the pure functions that the servers use.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use portway::compile::health_checks;
use portway::health::answer::{Answer, Moment, healthz, livez};
use portway::health::{Checks, NodeVitals, Progress, TOO_LONG, Vitals, answer_at};
use portway::model::{Family, NodePortAddresses, Snapshot};
use proxy_common::net::IfIndex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cases::{Asked, HealthFile, ProxyHealthCase, ServiceHealthCase, ServiceHealthStep};
use crate::report::{Tally, Weight};
use crate::world::prefixes;
use crate::{cluster, slices};

/// An address of the host that is not loopback's.
const HOST: &str = "192.0.2.1";

/// Checks a file.
pub fn check(file: &HealthFile, tally: &mut Tally) -> Result<()> {
    slices::check_events(&file.local_ready_endpoints, tally)?;
    file.service_health
        .iter()
        .try_for_each(|case| services(case, tally).with_context(|| case.name.clone()))?;
    file.proxy_health
        .iter()
        .try_for_each(|case| proxy(case, tally).with_context(|| case.name.clone()))
}

/// V22: the servers of healthCheckNodePorts.
fn services(case: &ServiceHealthCase, tally: &mut Tally) -> Result<()> {
    let nodeport_addresses = prefixes(&case.config.nodeport_addresses)?;
    let (mut ports, mut endpoints, mut healthy) = (BTreeMap::new(), BTreeMap::new(), true);
    for (number, step) in case.steps.iter().enumerate() {
        tell(step, &mut ports, &mut endpoints);
        healthy = step.set_proxy_healthy.unwrap_or(healthy);
        let mut snapshot = Snapshot {
            state: cluster::of(&objects(&ports, &endpoints)?)?,
            ..Snapshot::default()
        };
        snapshot.settings.node_name = "here".into();
        snapshot.settings.nodeport_addresses =
            NodePortAddresses::Within(nodeport_addresses.clone());
        snapshot.links.host_addresses = [(HOST.parse()?, IfIndex(2))].into();
        let checks = health_checks(&snapshot).served;
        let name = |what: &str| format!("{}, step {}: {what}", case.name, number + 1);
        tally.compare(
            &name("Services"),
            Weight::Binding,
            &step.expect_services,
            &checks.iter().map(|(name, check): (&_, &portway::compile::HealthCheck)| {
            (
                ToString::to_string(name),
                json!({ "port": check.port, "local_endpoints": check.local_endpoints.len() }),
            )
        }).collect(),
        );
        tally.compare(
            &name("listening"),
            Weight::Binding,
            &step.expect_listening,
            &listening(&checks),
        );
        let now = Instant::now();
        for (service, asked) in step
            .requests
            .iter()
            .map(|request| (&request.service, &request.asked))
        {
            let (_, check) = checks
                .iter()
                .find(|(name, _)| name.to_string() == *service)
                .context("find the Service")?;
            let at = SocketAddr::new(
                *check.addresses.first().context("find an address")?,
                check.port,
            );
            let answer =
                answer_at(&checks, at, &vitals(healthy, now)?, now).context("get an answer")?;
            compare(
                &name(&format!("{service}{}", asked.path)),
                asked,
                &answer,
                Timestamp::now(),
                tally,
            )?;
        }
    }
    Ok(())
}

/// Returns the listening addresses. For all addresses kube-proxy listens on the wildcard, Portway
/// on each.
fn listening(checks: &Checks) -> Vec<String> {
    let all = checks.values().flat_map(|check| {
        check
            .addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, check.port))
    });
    let mut all: Vec<_> = all
        .map(|at| at.to_string().replace(HOST, "0.0.0.0"))
        .collect();
    all.sort();
    all
}

/// Returns the vitals of an agent in step, or of one with an update that waits for too long.
fn vitals(healthy: bool, now: Instant) -> Result<Vitals> {
    let mut vitals = Vitals::starting(now);
    if !healthy {
        vitals.queue(now.checked_sub(TOO_LONG * 2).context("go back in time")?);
    }
    Ok(vitals)
}

/// Applies a step. kube-proxy's servers get ports and endpoints in two calls, and forget endpoints
/// of a Service that has no port then, or gets another. A snapshot has both at once, so it gets
/// only what they remember.
fn tell(
    step: &ServiceHealthStep,
    ports: &mut BTreeMap<String, u16>,
    endpoints: &mut BTreeMap<String, usize>,
) {
    if let Some(now) = &step.set_health_ports {
        endpoints.retain(|service, _| {
            now.get(service) == ports.get(service) && now.contains_key(service)
        });
        ports.clone_from(now);
    }
    if let Some(now) = &step.set_local_endpoints {
        endpoints.clone_from(now);
        endpoints.retain(|service, _| ports.contains_key(service));
    }
}

/// Returns Services with these health check ports and numbers of ready local endpoints.
fn objects(
    ports: &BTreeMap<String, u16>,
    endpoints: &BTreeMap<String, usize>,
) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (i, (service, port)) in ports.iter().enumerate() {
        let (namespace, name) = service.split_once('/').context("split a Service's name")?;
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": namespace, "name": name },
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
                "clusterIP": format!("10.96.0.{}", i + 1), "ports": [{ "port": 80 }],
            },
        }));
    }
    for (service, count) in endpoints {
        let (namespace, name) = service.split_once('/').context("split a Service's name")?;
        let endpoint =
            |i: usize| json!({ "addresses": [format!("10.244.1.{}", i + 1)], "nodeName": "here" });
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": namespace, "name": name, "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "", "port": 80 }],
            "endpoints": (0..*count).map(endpoint).collect::<Vec<_>>(),
        }));
    }
    Ok(objects)
}

/// V23: `/healthz` and `/livez`.
fn proxy(case: &ProxyHealthCase, tally: &mut Tally) -> Result<()> {
    let patience = Duration::from_secs(case.config.timeout_seconds);
    let node = |object: &Value| {
        Ok::<_, anyhow::Error>(NodeVitals::of(
            &nodes(object)?,
            "test-node",
            NodeVitals::Unknown,
        ))
    };
    let mut vitals = Vitals {
        node: node(&case.config.node)?,
        ..Vitals::default()
    };
    let base = Timestamp::from_second(1_800_000_000)?;
    let mut at = Moment {
        now: Instant::now(),
        wall: base,
    };
    for (number, step) in case.steps.iter().enumerate() {
        for (what, value) in step.events.iter().flatten() {
            let family = if value.as_str() == Some(Family::V4.name()) {
                &mut vitals.v4
            } else {
                &mut vitals.v6
            };
            match what.as_str() {
                "updated" => Progress::update(family, at.now),
                "queued_update" => Progress::queue(family, at.now),
                "node" => vitals.node = node(value)?,
                "advance_seconds" => {
                    let seconds = value.as_u64().context("read seconds")?;
                    at.now += Duration::from_secs(seconds);
                    at.wall += SignedDuration::from_secs(i64::try_from(seconds)?);
                }
                other => bail!("an unknown event `{other}`"),
            }
        }
        let answer = match step.request.path.as_str() {
            "/healthz" => healthz(&vitals, at, patience),
            "/livez" => livez(&vitals, at, patience),
            other => bail!("an unknown path `{other}`"),
        };
        compare(
            &format!("{}, step {}", case.name, number + 1),
            &step.request,
            &answer,
            base,
            tally,
        )?;
    }
    Ok(())
}

fn nodes(object: &Value) -> Result<portway::model::State> {
    cluster::of(if object.is_null() {
        &[]
    } else {
        std::slice::from_ref(object)
    })
}

/// Status, headers and body; times in the body count in seconds from `base`.
fn compare(
    name: &str,
    asked: &Asked,
    answer: &Answer,
    base: Timestamp,
    tally: &mut Tally,
) -> Result<()> {
    let mut body: Value = serde_json::from_str(&answer.body).context("parse the body")?;
    count_seconds(&mut body, base);
    let headers: BTreeMap<String, String> = answer
        .headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    let owed = (asked.status, &asked.headers, &asked.body);
    ensure!(!asked.path.is_empty(), "a request without a path");
    tally.compare(
        name,
        Weight::Binding,
        &owed,
        &(answer.status, &headers, &body),
    );
    Ok(())
}

fn count_seconds(value: &mut Value, base: Timestamp) {
    match value {
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|field| count_seconds(field, base)),
        Value::String(text) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                *value = json!(time.duration_since(base).as_secs());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
    }
}
