//! Health as kube-proxy's own tests expect it (V22, V23): the recorded requests, answered by the pure functions that the servers use.
//!
//! The cases lie in `PORTWAY_CASES`, or in `../shared/cases` beside the repository; without them this says that it did not run.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portway::args::settings::Ranges;
use portway::compile::{health_checks, local_ready_endpoints};
use portway::health::answer::{Answer, Moment, healthz, livez};
use portway::health::{NodeVitals, TOO_LONG, Vitals, answer_at};
use portway::model::{Family, NodePortAddresses, PortRange, Snapshot, State};
use portway::source::manifests::Directory;
use proxy_common::net::IfIndex;
use serde_json::{Value, json};
use tokio::time::Instant;

/// An address of the host beside loopback.
const HOST: &str = "192.0.2.1";

fn cases(section: &str) -> Vec<Value> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases");
    let path = std::env::var_os("PORTWAY_CASES").map_or_else(beside, PathBuf::from).join("service/health.json");
    let Ok(text) = fs::read_to_string(&path) else {
        println!("NOT RUN: no cases at {}", path.display());
        return Vec::new();
    };
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    let cases = file[section].take().as_array().cloned().expect("cases");
    assert!(!cases.is_empty(), "no {section}");
    cases
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn state(objects: &[Value]) -> State {
    let ranges = Ranges { node_ports: PortRange { first: 30000, last: 32767 }, cluster_ips: Vec::new() };
    let mut directory = Directory::new("unused".into());
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    directory.take("objects.yaml".into(), text, None);
    let mut state = State::default();
    directory.updates(&ranges).into_iter().for_each(|update| _ = state.apply(update));
    state
}

/// Status, headers and body are as asked for; times in the body count in seconds from `base`.
fn assert_answer(answer: &Answer, expected: &Value, base: Timestamp, what: &str) {
    assert_eq!(json!(answer.status), expected["status"], "{what}: {}", answer.body);
    let headers: BTreeMap<_, _> = answer.headers.iter().cloned().collect();
    assert_eq!(json!(headers), expected["headers"], "{what}");
    let mut body: Value = serde_json::from_str(&answer.body).expect("JSON");
    count_seconds(&mut body, base);
    assert_eq!(body, expected["body"], "{what}");
}

fn count_seconds(value: &mut Value, base: Timestamp) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| count_seconds(field, base)),
        Value::String(text) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                *value = json!(time.duration_since(base).as_secs());
            }
        }
        _ => {}
    }
}

/// Services with these health check ports, and as many ready endpoints on this node as said.
fn objects(ports: &BTreeMap<String, u16>, endpoints: &BTreeMap<String, usize>) -> Vec<Value> {
    let name = |both: &str| both.split_once('/').map(|(n, m)| (n.to_owned(), m.to_owned())).expect("namespace/name");
    let services = ports.iter().enumerate().map(|(i, (service, port))| {
        let (namespace, name) = name(service);
        json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
                "clusterIP": format!("10.96.0.{}", i + 1), "ports": [{"port": 80}]}})
    });
    let slices = endpoints.iter().map(|(service, count)| {
        let (namespace, name) = name(service);
        let endpoint = |i: usize| json!({"addresses": [format!("10.244.1.{}", i + 1)], "nodeName": "here"});
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": (0..*count).map(endpoint).collect::<Vec<_>>()})
    });
    services.chain(slices).collect()
}

#[test]
fn v22_requests_about_services_are_answered_as_kube_proxy_does() {
    for case in cases("service_health") {
        let prefixes = list(&case["config"]["nodeport_addresses"]);
        let prefixes = prefixes.iter().map(|p| p.as_str().expect("a prefix").parse().expect("a prefix")).collect();
        let (mut ports, mut endpoints, mut healthy) = (BTreeMap::new(), BTreeMap::new(), true);
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let what = format!("{} step {number}", case["name"]);
            let unknown = step.as_object().expect("a step").keys().find(|field| !STEP.contains(&field.as_str()));
            assert_eq!(unknown, None, "{what}");
            tell(step, &mut ports, &mut endpoints);
            healthy = step.get("set_proxy_healthy").map_or(healthy, |now| now.as_bool().expect("yes or no"));
            let mut snapshot = Snapshot { state: state(&objects(&ports, &endpoints)), ..Snapshot::default() };
            snapshot.settings.node_name = "here".into();
            snapshot.settings.nodeport_addresses = NodePortAddresses::Within(Vec::clone(&prefixes));
            snapshot.links.host_addresses = [(HOST.parse().expect("an address"), IfIndex(2))].into();
            let now = Instant::now();
            assert_step(&snapshot, step, (&vitals(healthy, now), now), &what);
        }
    }
}

/// What a step may have; another field would be an input that this test does not heed.
const STEP: [&str; 6] =
    ["set_health_ports", "set_local_endpoints", "set_proxy_healthy", "expect_services", "expect_listening", "requests"];

/// An agent that is in step, or one for which an update has been waiting too long.
fn vitals(healthy: bool, now: Instant) -> Vitals {
    let mut vitals = Vitals::starting(now);
    if !healthy {
        vitals.queue(now.checked_sub(TOO_LONG * 2).expect("a time after the boot"));
    }
    vitals
}

/// kube-proxy's servers are told ports and endpoints in two calls, and forget endpoints of a Service that has no port then, or gets
/// another; a snapshot has both at once, so only what they remember is put into it.
fn tell(step: &Value, ports: &mut BTreeMap<String, u16>, endpoints: &mut BTreeMap<String, usize>) {
    if let Some(now) = step.get("set_health_ports") {
        let now: BTreeMap<String, u16> = serde_json::from_value(now.clone()).expect("ports");
        endpoints.retain(|service, _| now.get(service) == ports.get(service) && now.contains_key(service));
        *ports = now;
    }
    if let Some(now) = step.get("set_local_endpoints") {
        *endpoints = serde_json::from_value(now.clone()).expect("counts");
        endpoints.retain(|service, _| ports.contains_key(service));
    }
}

fn assert_step(snapshot: &Snapshot, step: &Value, (vitals, now): (&Vitals, Instant), what: &str) {
    let checks = health_checks(snapshot).served;
    let services = checks
        .iter()
        .map(|(name, check)| (name.to_string(), json!({"port": check.port, "local_endpoints": check.local_endpoints.len()})));
    assert_eq!(json!(services.collect::<BTreeMap<_, _>>()), step["expect_services"], "{what}");
    let mut listening: Vec<_> = checks
        .values()
        .flat_map(|check| check.addresses.iter().map(|ip| SocketAddr::new(*ip, check.port)))
        // Where all addresses are meant kube-proxy listens on the wildcard, we on each.
        .map(|at| at.to_string().replace(HOST, "0.0.0.0"))
        .collect();
    listening.sort();
    assert_eq!(json!(listening), step["expect_listening"], "{what}");
    for request in list(&step["requests"]) {
        let service = request["service"].as_str().expect("a Service");
        let (_, check) = checks.iter().find(|(name, _)| name.to_string() == service).expect("served");
        let at = SocketAddr::new(*check.addresses.first().expect("an address"), check.port);
        let answer = answer_at(&checks, at, vitals, now).expect("an answer");
        assert_answer(&answer, &request, Timestamp::now(), what);
    }
}

#[test]
fn v23_healthz_and_livez_are_answered_as_kube_proxy_does() {
    for case in cases("proxy_health") {
        let patience = Duration::from_secs(case["config"]["timeout_seconds"].as_u64().expect("seconds"));
        let node = |object: &Value| NodeVitals::of(&state(std::slice::from_ref(object)), "test-node", NodeVitals::Unknown);
        let mut vitals = Vitals { node: node(&case["config"]["node"]), ..Vitals::default() };
        let base = Timestamp::from_second(1_800_000_000).expect("a time");
        let mut at = Moment { now: Instant::now(), wall: base };
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            for event in list(&step["events"]) {
                let (what, value) = event.as_object().and_then(|e| e.iter().next()).expect("an event");
                let progress = |vitals: &mut Vitals, change: fn(&mut portway::health::Progress, Instant)| {
                    let v4 = value.as_str() == Some(Family::V4.name());
                    change(if v4 { &mut vitals.v4 } else { &mut vitals.v6 }, at.now);
                };
                match what.as_str() {
                    "updated" => progress(&mut vitals, portway::health::Progress::update),
                    "queued_update" => progress(&mut vitals, portway::health::Progress::queue),
                    "node" => vitals.node = node(value),
                    "advance_seconds" => {
                        let seconds = value.as_u64().expect("seconds");
                        at.now += Duration::from_secs(seconds);
                        at.wall += SignedDuration::from_secs(seconds as i64);
                    }
                    other => panic!("unknown event {other}"),
                }
            }
            let request = &step["request"];
            let answer = match request["path"].as_str() {
                Some("/healthz") => healthz(&vitals, at, patience),
                Some("/livez") => livez(&vitals, at, patience),
                other => panic!("unknown path {other:?}"),
            };
            assert_answer(&answer, request, base, &format!("{} step {number}", case["name"]));
        }
    }
}

#[test]
fn v22_the_endpoints_that_count_are_those_that_kube_proxy_counts() {
    for case in cases("local_ready_endpoints") {
        let node = case["config"]["node_name"].as_str().expect("a node");
        let mut objects: BTreeMap<String, Value> = BTreeMap::new();
        for step in list(&case["steps"]) {
            for event in list(&step["events"]) {
                let object = &event["object"];
                let key = format!("{} {}", object["kind"], object["metadata"]["name"]);
                match event["op"].as_str() {
                    Some("add" | "update") => _ = objects.insert(key, object.clone()),
                    Some("delete") => _ = objects.remove(&key),
                    other => panic!("unknown op {other:?}"),
                }
            }
            let state = state(&objects.values().cloned().collect::<Vec<_>>());
            let found = local_ready_endpoints(&state, node);
            let counts: BTreeMap<_, _> =
                found.iter().map(|(name, ips): (_, &std::collections::BTreeSet<IpAddr>)| (name.to_string(), ips.len())).collect();
            assert_eq!(json!(counts), step["expect"]["local_ready_endpoints"], "{}", case["name"]);
        }
    }
}
