//! The lab's control plane is a real one: slices follow pods, kube-proxy programs Services,
//! accounts are held to their roles, and nothing is left behind. Needs root.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::lab::controlplane::{
    Client, KubeProxy, Kubelet, NodeSpec, ObjectRef, PodSpec, ProxySpec, Readiness, Refused, User,
    pending_pods, wait_for,
};

mod lan;

use lan::Lan;

const SOON: Duration = Duration::from_secs(10);
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: { app: demo }
  ports: [{ name: http, port: 80, targetPort: http, nodePort: 30080 }]
";

fn node(name: &str) -> Result<NodeSpec> {
    let addresses = vec!["192.0.2.1".parse()?, "2001:db8::1".parse()?];
    let pod_cidrs = vec!["10.244.1.0/24".parse()?, "fd00:244:1::/64".parse()?];
    Ok(NodeSpec {
        name: name.into(),
        addresses,
        pod_cidrs,
        labels: BTreeMap::new(),
    })
}

fn web_pod(name: &str) -> PodSpec {
    let labels = BTreeMap::from([("app".into(), "demo".into())]);
    PodSpec {
        namespace: "default".into(),
        name: name.into(),
        labels,
        ports: vec![("http".into(), 8080, "TCP".into())],
    }
}

fn pod_ips(last: u8) -> Result<Vec<IpAddr>> {
    Ok(vec![
        format!("10.244.1.{last}").parse()?,
        format!("fd00:244:1::{last}").parse()?,
    ])
}

/// The endpoints of the Service `web`: address, port, ready, serving, terminating, one line each.
fn endpoints(client: &Client) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for slice in client.list(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        Some("default"),
        "kubernetes.io/service-name=web",
    )? {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let is = |condition: &'static str| {
                if endpoint["conditions"][condition] == json!(true) {
                    condition
                } else {
                    "-"
                }
            };
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            let port = &slice["ports"][0]["port"];
            lines.push(format!(
                "{address} {port} {} {} {}",
                is("ready"),
                is("serving"),
                is("terminating")
            ));
        }
    }
    lines.sort();
    Ok(lines)
}

/// Waits until the endpoints of `web` are these, and returns how long it took.
fn expect_endpoints(client: &Client, wanted: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    let mut seen = Vec::new();
    wait_for("endpoints", SOON, || {
        seen = endpoints(client)?;
        Ok((seen == wanted).then_some(()))
    })
    .with_context(|| format!("wanted {wanted:#?}, saw {seen:#?}"))?;
    Ok(start.elapsed())
}

#[test]
fn slices_follow_pods() -> Result<()> {
    let lan = Lan::new()?;
    let plane = lan.control_plane()?;
    let client = plane.client();
    let version: Value = serde_json::from_str(&client.raw("/version")?)?;
    assert_eq!(
        version["gitVersion"],
        json!(xtask::lab::controlplane::version()?)
    );

    let kubelet = Kubelet::register(client, &node("node-a")?)?;
    client.apply_yaml(SERVICE)?;
    let first = kubelet.run(&web_pod("web-1").manifest(), &pod_ips(11)?)?;
    kubelet.run(&web_pod("web-2").manifest(), &pod_ips(12)?)?;
    let up = |address: &str| format!("{address} 8080 ready serving -");
    let second = [up("10.244.1.12"), up("fd00:244:1::12")];
    let all = [
        &up("10.244.1.11"),
        &second[0],
        &up("fd00:244:1::11"),
        &second[1],
    ];
    eprintln!(
        "first slices after {:.1?}",
        expect_endpoints(client, &all.map(String::as_str))?
    );

    kubelet.set_readiness(&first, Readiness::NotReady)?;
    let down = |address: &str, state: &str| format!("{address} 8080 {state}");
    let flipped = [
        &down("10.244.1.11", "- - -"),
        &second[0],
        &down("fd00:244:1::11", "- - -"),
        &second[1],
    ];
    let took = expect_endpoints(client, &flipped.map(String::as_str))?;
    eprintln!("a readiness flip is in the slices after {took:.1?}");
    assert!(
        took < Duration::from_secs(2),
        "the endpoint slice controller is slow: {took:?}"
    );

    kubelet.set_readiness(&first, Readiness::Ready)?;
    expect_endpoints(client, &all.map(String::as_str))?;
    kubelet.terminate(&first, Duration::from_secs(30))?;
    let ending = "- serving terminating";
    let ending = [
        &down("10.244.1.11", ending),
        &second[0],
        &down("fd00:244:1::11", ending),
        &second[1],
    ];
    expect_endpoints(client, &ending.map(String::as_str))?;
    kubelet.finish(&first)?;
    expect_endpoints(client, &second.each_ref().map(String::as_str))?;
    Ok(())
}

#[test]
fn a_deployment_gets_pods_and_loses_them() -> Result<()> {
    let lan = Lan::new()?;
    let plane = lan.control_plane()?;
    let client = plane.client();
    let kubelet = Kubelet::register(client, &node("node-a")?)?;
    client.apply_yaml(SERVICE)?;
    let template = json!({ "metadata": { "labels": { "app": "demo" } }, "spec": web_pod("any").manifest()["spec"] });
    let spec = json!({ "replicas": 2, "selector": { "matchLabels": { "app": "demo" } }, "template": template });
    let metadata = json!({ "name": "web", "namespace": "default" });
    let deployment =
        client.apply(&json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec }))?;

    let pods = wait_for("the pods of a Deployment", SOON, || {
        Ok(Some(pending_pods(client)?).filter(|pods| pods.len() == 2))
    })?;
    for (pod, last) in pods.iter().zip(21..) {
        kubelet.adopt(&ObjectRef::of(pod)?, &pod_ips(last)?)?;
    }
    let wanted = [
        "10.244.1.21",
        "10.244.1.22",
        "fd00:244:1::21",
        "fd00:244:1::22",
    ]
    .map(|address| format!("{address} 8080 ready serving -"));
    expect_endpoints(client, &wanted.each_ref().map(String::as_str))?;

    client.delete(&ObjectRef::of(&deployment)?)?;
    wait_for("the end of the Deployment's pods", SOON, || {
        for pod in client
            .list("v1", "Pod", Some("default"), "")?
            .iter()
            .filter(|pod| pod["metadata"].get("deletionTimestamp").is_some())
        {
            kubelet.finish(&ObjectRef::of(pod)?)?;
        }
        Ok(endpoints(client)?.is_empty().then_some(()))
    })
}

#[test]
fn kube_proxy_programs_a_node_port_and_cleans_up() -> Result<()> {
    let lan = Lan::new()?;
    let plane = lan.control_plane()?;
    let client = plane.client();
    let node_ns = lan.node("192.0.2.1")?;
    let kubelet = Kubelet::register(client, &node("node-a")?)?;
    let start = Instant::now();
    let cluster_cidrs = vec!["10.244.0.0/16".parse()?, "fd00:244::/32".parse()?];
    let proxy = KubeProxy::start(
        &plane,
        &ProxySpec {
            netns: node_ns.netns(),
            node: "node-a".into(),
            cluster_cidrs,
        },
    )?;
    eprintln!("kube-proxy's first rules after {:.1?}", start.elapsed());

    client.apply_yaml(SERVICE)?;
    kubelet.run(&web_pod("web-1").manifest(), &pod_ips(11)?)?;
    let start = Instant::now();
    wait_for("the nodePort's rules", SOON, || {
        let rules = proxy.rules()?;
        let wanted = ["tcp . 30080", "10.244.1.11 . 8080", "fd00:244:1::11 . 8080"];
        Ok(wanted
            .iter()
            .all(|wanted| rules.contains(wanted))
            .then_some(()))
    })
    .with_context(|| proxy.rules().unwrap_or_default())?;
    eprintln!("a nodePort is in nftables after {:.1?}", start.elapsed());

    drop(proxy);
    let left = Command::new("nsenter")
        .arg(format!("--net={}", node_ns.netns().display()))
        .args(["nft", "list", "ruleset"])
        .output()?;
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    Ok(())
}

#[test]
fn an_account_may_do_what_its_role_says_and_bad_objects_are_refused() -> Result<()> {
    let lan = Lan::new()?;
    let mut plane = lan.control_plane()?;
    plane.client().apply_yaml(
        "
apiVersion: v1
kind: ServiceAccount
metadata: { name: reader, namespace: kube-system }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: reader }
rules: [{ apiGroups: [''], resources: [services], verbs: [list] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader }
subjects: [{ kind: ServiceAccount, name: reader, namespace: kube-system }]
",
    )?;
    let user = User::ServiceAccount {
        namespace: "kube-system".into(),
        name: "reader".into(),
    };
    let config: Value = serde_json::from_str(&std::fs::read_to_string(plane.kubeconfig(&user)?)?)?;
    let token = config["users"][0]["user"]["token"]
        .as_str()
        .context("find the token")?;
    let reader = Client::new(&plane.url(), plane.ca(), token, &lan.netns())?;
    wait_for("the role to be known", SOON, || {
        Ok(reader.list("v1", "Service", None, "").ok())
    })?;
    assert_eq!(status(reader.list("v1", "Pod", None, "")), Some(403));

    let misspelt = SERVICE.replace("selector", "selecter");
    let refusal = plane
        .client()
        .apply_yaml(&misspelt)
        .err()
        .context("a misspelt field was accepted")?;
    assert!(format!("{refusal:#}").contains("selecter"), "{refusal:#}");
    assert_eq!(
        status(
            plane
                .client()
                .apply_yaml(&SERVICE.replace("port: 80", "port: 0"))
        ),
        Some(422)
    );

    plane.client().apply_yaml(SERVICE)?;
    plane.stop_apiserver();
    assert!(plane.client().raw("/version").is_err());
    plane.start_apiserver()?;
    let services = plane.client().list("v1", "Service", Some("default"), "")?;
    let names: Vec<_> = services
        .iter()
        .map(|service| service["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, [Some("kubernetes"), Some("web")]);
    Ok(())
}

#[test]
fn the_manifests_of_deploy_are_accepted_and_grant_no_more_than_needed() -> Result<()> {
    let lan = Lan::new()?;
    let plane = lan.control_plane()?;
    let client = plane.client();
    Kubelet::register(
        client,
        &NodeSpec {
            labels: BTreeMap::from([("kubernetes.io/os".into(), "linux".into())]),
            ..node("node-a")?
        },
    )?;
    client.apply_yaml(include_str!("../../../deploy/portway.yaml"))?;
    let pods = wait_for("the agent's pod", SOON, || {
        Ok(Some(client.list("v1", "Pod", Some("portway"), "")?).filter(|pods| !pods.is_empty()))
    })?;
    assert_eq!(
        pods[0]["spec"]["priority"],
        json!(2_000_001_000),
        "system-node-critical"
    );

    let token = plane.service_account_token("portway", "portway")?;
    let agent = Client::new(&plane.url(), plane.ca(), &token, &lan.netns())?;
    let core = ["Service", "Pod", "Namespace", "Node"].map(|kind| ("v1", kind));
    let networking = ["NetworkPolicy", "ServiceCIDR"].map(|kind| ("networking.k8s.io/v1", kind));
    let readable = core
        .into_iter()
        .chain(networking)
        .chain([("discovery.k8s.io/v1", "EndpointSlice")]);
    for (api_version, kind) in readable {
        // A role is known a moment after it was made.
        wait_for(&format!("leave to read {kind}"), SOON, || {
            Ok(agent.list(api_version, kind, None, "").ok())
        })?;
    }
    let event = |namespace: &str| {
        let regarding = json!({ "kind": "Service", "namespace": namespace, "name": "kubernetes" });
        let metadata = json!({ "namespace": namespace, "name": "trial" });
        json!({ "apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": regarding, "reason": "Trial", "type": "Normal" })
    };
    agent
        .apply(&event("default"))
        .context("the agent needs to post events about objects")?;

    assert_eq!(status(agent.list("v1", "Secret", None, "")), Some(403));
    assert_eq!(status(agent.list("v1", "ConfigMap", None, "")), Some(403));
    let service = ObjectRef::namespaced("v1", "Service", "default", "kubernetes");
    assert_eq!(
        status(agent.patch(&service, &json!({ "metadata": { "labels": { "a": "b" } } }))),
        Some(403)
    );
    assert_eq!(status(agent.delete(&service)), Some(403));
    Ok(())
}

#[test]
fn a_dropped_control_plane_leaves_nothing_behind() -> Result<()> {
    let lan = Lan::new()?;
    let plane = lan.control_plane()?;
    let dir = plane.dir().to_owned();
    let pids = Command::new("ip")
        .args(["netns", "pids", lan.name()])
        .output()?
        .stdout;
    assert_eq!(
        String::from_utf8_lossy(&pids).lines().count(),
        3,
        "etcd, the API server and the controllers"
    );
    drop(plane);
    assert!(!dir.exists(), "{} is left", dir.display());
    let pids = Command::new("ip")
        .args(["netns", "pids", lan.name()])
        .output()?
        .stdout;
    assert_eq!(String::from_utf8_lossy(&pids), "");
    Ok(())
}

/// The HTTP status of a refusal.
fn status<T>(outcome: Result<T>) -> Option<u16> {
    outcome
        .err()?
        .downcast_ref::<Refused>()
        .map(|refused| refused.status)
}
