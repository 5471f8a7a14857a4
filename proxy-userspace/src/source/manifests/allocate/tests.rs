//! Tests of `allocate`.

use super::*;
use crate::model::Object;
use serde_json::{Value, json};

fn ranges() -> Ranges {
    let cluster_ips = ["10.96.0.0/12", "fd00:10:96::/112"]
        .map(|p| p.parse().expect("a prefix"))
        .to_vec();
    Ranges {
        node_ports: PortRange {
            first: 30000,
            last: 32767,
        },
        cluster_ips,
    }
}

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
        .expect("a Service")
}

fn said(services: Vec<Service>, ranges: &Ranges) -> BTreeMap<String, String> {
    let words = |update| match update {
        Update::Apply(Object::Service(name, s)) => {
            let ports: Vec<_> = s.ports.iter().filter_map(|p| p.node_port).collect();
            (
                name.name.to_string(),
                format!("{:?} {ports:?}", s.cluster_ips),
            )
        }
        Update::Invalid(i) => (i.object.name.name.to_string(), i.to_string()),
        other @ (Update::Apply(_)
        | Update::Flawed(..)
        | Update::Delete(_)
        | Update::Synced
        | Update::Connection(_)) => panic!("{other:?}"),
    };
    allocate(services, ranges).into_iter().map(words).collect()
}

fn node_port() -> Value {
    json!({"type": "NodePort", "ports": [{"port": 80}]})
}

#[test]
fn every_agent_allocates_the_same_in_whatever_order_files_are_read_and_additions_move_nothing() {
    let names: Vec<String> = (0..200).map(|i| format!("web-{i}")).collect();
    let all = said(
        names.iter().map(|n| service(n, node_port())).collect(),
        &ranges(),
    );
    let reversed = said(
        names
            .iter()
            .rev()
            .map(|n| service(n, node_port()))
            .collect(),
        &ranges(),
    );
    assert_eq!(all, reversed);
    let few = said(
        names[..20]
            .iter()
            .map(|n| service(n, node_port()))
            .collect(),
        &ranges(),
    );
    let moved = few.iter().filter(|(name, got)| all[*name] != **got).count();
    assert!(moved <= 2, "{moved} of 20 moved when 180 were added");
    assert_eq!(
        said(vec![service("web", node_port())], &ranges())["web"],
        "[10.104.249.152] [31672]"
    );
}

#[test]
fn what_is_given_is_honoured_first_and_a_conflict_names_both() {
    let explicit = |port: u16| json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": port}]});
    let got = said(
        vec![
            service("b", explicit(30991)),
            service("a", explicit(30080)),
            service("web", node_port()),
        ],
        &ranges(),
    );
    assert_eq!(got["a"], "[10.96.0.10] [30080]");
    assert_eq!(
        got["b"],
        "Service shop/b: spec.clusterIP: 10.96.0.10 belongs to Service shop/a already"
    );
    let twice = said(
        vec![
            service("web", explicit(30080)),
            service(
                "also",
                json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30080}]}),
            ),
        ],
        &ranges(),
    );
    assert_eq!(
        twice["web"],
        "Service shop/web: spec.ports[0].nodePort: 30080 belongs to Service shop/also already"
    );
}

#[test]
fn of_two_that_want_one_port_the_one_written_first_has_it_whatever_their_names() {
    let stamped = |name: &str, time: &str| {
        let mut service = service(
            name,
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        service.metadata.creation_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time.parse().expect("a time")),
        );
        service
    };
    let got = said(
        vec![
            stamped("copycat", "2026-01-01T00:00:00.2Z"),
            stamped("web", "2026-01-01T00:00:00.1Z"),
        ],
        &ranges(),
    );
    assert_eq!(
        got["copycat"],
        "Service shop/copycat: spec.ports[0].nodePort: 30080 belongs to Service shop/web already"
    );
}

#[test]
fn two_protocols_of_one_service_may_share_a_node_port() {
    let dns = json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "dns-tcp", "port": 53, "nodePort": 30053}]});
    assert_eq!(
        said(vec![service("dns", dns)], &ranges())["dns"],
        "[10.96.0.10] [30053, 30053]"
    );
}

#[test]
fn mistakes_that_an_api_server_refuses() {
    for (spec, why) in [
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: a nodePort needs `type: NodePort` (or LoadBalancer)",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "spec.ports[0].nodePort: 80 is not in the range of nodePorts, 30000-32767",
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            "spec.ports[0].name: where there are several ports, each needs a name of its own",
        ),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: 0 is no port: 1 to 65535",
        ),
    ] {
        assert_eq!(
            said(vec![service("web", spec)], &ranges())["web"],
            format!("Service shop/web: {why}")
        );
    }
}

#[test]
fn families_follow_the_policy() {
    let dual = json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]});
    let both = &said(vec![service("web", dual)], &ranges())["web"];
    assert!(
        both.starts_with("[10.") && both.contains(", fd00:10:96::"),
        "{both}"
    );
    let only_v6 = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
    assert!(
        said(vec![service("web", only_v6.clone())], &ranges())["web"].starts_with("[fd00:10:96::")
    );
    let v4 = Ranges {
        cluster_ips: ranges().cluster_ips[..1].to_vec(),
        ..ranges()
    };
    assert_eq!(
        said(vec![service("web", only_v6)], &v4)["web"],
        "Service shop/web: spec.ipFamilies[0]: no cluster IPs of family IPv6 here"
    );
}

#[test]
fn a_full_range_is_said() {
    let small = Ranges {
        node_ports: PortRange {
            first: 30000,
            last: 30001,
        },
        ..ranges()
    };
    let got = said(
        ["a", "b", "c"].map(|n| service(n, node_port())).to_vec(),
        &small,
    );
    assert_eq!(
        got["c"],
        "Service shop/c: spec.ports[0].nodePort: none is free in 30000-30001"
    );
}
