//! Services of the API to ours: ports, addresses, policies; refuses ports of 0 and Services without
//! any.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Convert, Field, annotation, created, label, port, prefix, protocol, unicast};
use crate::model::{
    Kind, Object, ObjectName, Proxied, Service, ServiceAnnotations, ServicePort, TargetPort,
    TrafficPolicy,
};

const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
const DEFAULT_AFFINITY: u32 = 10_800;

impl Convert for core::Service {
    const KIND: Kind = Kind::Service;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let spec = self.spec.clone().unwrap_or_default();
        let proxied = proxied(&self.metadata, &spec);
        let served = matches!(proxied, Proxied::Yes | Proxied::NoClusterIp);
        let service = Service {
            proxied,
            cluster_ips: match proxied {
                Proxied::Yes => cluster_ips(&spec)?,
                // Whatever is wrong with it is another proxy's business.
                Proxied::OtherProxy => cluster_ips(&spec).unwrap_or_default(),
                Proxied::Headless | Proxied::NoClusterIp | Proxied::ExternalName => Vec::new(),
            },
            external_ips: if served {
                external_ips(&spec)?
            } else {
                BTreeSet::new()
            },
            load_balancer_ips: if served {
                load_balancer_ips(self)?
            } else {
                BTreeSet::new()
            },
            source_ranges: source_ranges(&spec, &name),
            ports: if served { ports(&spec)? } else { Vec::new() },
            external_policy: policy(spec.external_traffic_policy.as_deref()),
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            affinity: affinity(&spec)?,
            annotations: annotations(&self.metadata)?,
            health_check_node_port: if served {
                health_check_node_port(&spec)?
            } else {
                None
            },
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            selector: spec.selector.unwrap_or_default(),
            created: created(&self.metadata),
        };
        Ok(Some(Object::Service(name, service)))
    }
}

fn annotations(metadata: &ObjectMeta) -> Result<ServiceAnnotations, Field> {
    ServiceAnnotations::read(|key| annotation(metadata, key)).map_err(|bad| {
        let path = format!("metadata.annotations[{}]", bad.annotation.key);
        Field::new(path, bad.to_string())
    })
}

/// V1.
fn proxied(metadata: &ObjectMeta, spec: &core::ServiceSpec) -> Proxied {
    if label(metadata, OTHER_PROXY).is_some() {
        return Proxied::OtherProxy;
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        return Proxied::ExternalName;
    }
    match spec.cluster_ip.as_deref().or(spec
        .cluster_ips
        .as_deref()
        .and_then(|ips| ips.first())
        .map(String::as_str))
    {
        Some("None") => Proxied::Headless,
        None | Some("") => Proxied::NoClusterIp,
        Some(_) => Proxied::Yes,
    }
}

fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, Field> {
    let mut found: Vec<IpAddr> = Vec::new();
    let several = spec
        .cluster_ips
        .iter()
        .flatten()
        .enumerate()
        .map(|(i, ip)| (ip, format!("spec.clusterIPs[{i}]")));
    for (text, path) in spec
        .cluster_ip
        .iter()
        .map(|ip| (ip, "spec.clusterIP".to_owned()))
        .chain(several)
    {
        let ip = unicast(text, &path)?;
        match found.iter().find(|known| known.is_ipv4() == ip.is_ipv4()) {
            Some(known) if *known != ip => {
                return Err(Field::new(
                    path,
                    format!("`{ip}` beside `{known}`: one per family"),
                ));
            }
            Some(_) => {}
            None => found.push(ip),
        }
    }
    Ok(found)
}

fn external_ips(spec: &core::ServiceSpec) -> Result<BTreeSet<IpAddr>, Field> {
    let all = spec.external_ips.iter().flatten().enumerate();
    all.map(|(i, ip)| unicast(ip, &format!("spec.externalIPs[{i}]")))
        .collect()
}

/// V3: those that nodes are to serve.
fn load_balancer_ips(service: &core::Service) -> Result<BTreeSet<IpAddr>, Field> {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let ingress = status
        .and_then(|s| s.ingress.as_ref())
        .into_iter()
        .flatten()
        .enumerate();
    let served = ingress.filter(|(_, i)| matches!(i.ip_mode.as_deref(), None | Some("VIP")));
    let ips = served
        .filter_map(|(i, ingress)| Some((i, ingress.ip.as_deref().filter(|ip| !ip.is_empty())?)));
    ips.map(|(i, ip)| unicast(ip, &format!("status.loadBalancer.ingress[{i}].ip")))
        .collect()
}

/// V3: an invalid range is logged and skipped.
fn source_ranges(spec: &core::ServiceSpec, name: &ObjectName) -> BTreeSet<IpNet> {
    let all = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate();
    let read = all.map(|(i, text)| prefix(text, &format!("spec.loadBalancerSourceRanges[{i}]")));
    read.filter_map(|range| {
        range
            .inspect_err(|e| tracing::warn!("Service {name}: {}: {}; skipped", e.path, e.why))
            .ok()
    })
    .collect()
}

fn ports(spec: &core::ServiceSpec) -> Result<Vec<ServicePort>, Field> {
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() {
        return Err(Field::new(
            "spec.ports",
            "a Service needs at least one port",
        ));
    }
    ports
        .iter()
        .enumerate()
        .map(|(i, p)| service_port(p, &format!("spec.ports[{i}]")))
        .collect()
}

fn service_port(p: &core::ServicePort, path: &str) -> Result<ServicePort, Field> {
    let number = port(p.port, format!("{path}.port"))?;
    Ok(ServicePort {
        name: p.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(p.protocol.as_deref(), format!("{path}.protocol"))?,
        port: number,
        node_port: match p.node_port {
            None | Some(0) => None,
            Some(number) => Some(port(number, format!("{path}.nodePort"))?),
        },
        target: match &p.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => {
                TargetPort::Number(port(*target, format!("{path}.targetPort"))?)
            }
            Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
        },
    })
}

fn policy(name: Option<&str>) -> TrafficPolicy {
    if name == Some("Local") {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

/// V22: load balancers ask where it matters on which node the backends are.
fn health_check_node_port(spec: &core::ServiceSpec) -> Result<Option<u16>, Field> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer")
        && policy(spec.external_traffic_policy.as_deref()) == TrafficPolicy::Local;
    match spec.health_check_node_port {
        Some(number) if asked && number != 0 => port(number, "spec.healthCheckNodePort").map(Some),
        _ => Ok(None),
    }
}

/// V13.
fn affinity(spec: &core::ServiceSpec) -> Result<u32, Field> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Ok(0);
    }
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref());
    match client_ip.and_then(|c| c.timeout_seconds).map(u32::try_from) {
        None => Ok(DEFAULT_AFFINITY),
        Some(Ok(seconds @ 1..=86_400)) => Ok(seconds),
        Some(_) => Err(Field::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "must be 1 to 86400",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen;
    use super::*;
    use crate::model::{Algorithm, Annotation, Forwarding, Update};
    use serde_json::{Value, json};

    fn converted(spec: Value) -> Update {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
        seen(&serde_json::from_value::<core::Service>(object).expect("a Service"))
    }

    fn refused(spec: Value) -> String {
        match converted(spec) {
            Update::Invalid(invalid) => invalid.to_string(),
            other @ (Update::Apply(_)
            | Update::Flawed(..)
            | Update::Delete(_)
            | Update::Synced
            | Update::Connection(_)) => panic!("taken: {other:?}"),
        }
    }

    #[test]
    fn a_bad_service_is_named_with_field_and_reason() {
        let ok = json!({"port": 80});
        let cases = [
            (
                json!({"clusterIP": "10.96.0.1"}),
                "Service shop/web: spec.ports: a Service needs at least one port",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [ok, {"port": 0}]}),
                "Service shop/web: spec.ports[1].port: 0 is no port: 1 to 65535",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 70000}]}),
                "Service shop/web: spec.ports[0].nodePort: 70000 is no port: 1 to 65535",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "ICMP"}]}),
                "Service shop/web: spec.ports[0].protocol: `ICMP` is no protocol: TCP, UDP or SCTP",
            ),
            (
                json!({"clusterIP": "10.96.0", "ports": [ok]}),
                "Service shop/web: spec.clusterIP: `10.96.0` is no IP address",
            ),
            (
                json!({"clusterIP": "10.96.0.1", "ports": [ok], "externalIPs": ["0.0.0.0"]}),
                "Service shop/web: spec.externalIPs[0]: `0.0.0.0` cannot be the address of a Service or endpoint",
            ),
        ];
        for (spec, said) in cases {
            assert_eq!(refused(spec), said);
        }
    }

    #[test]
    fn v1_services_that_are_not_ours_need_no_ports() {
        for (spec, kind) in [
            (json!({"clusterIP": "None"}), Proxied::Headless),
            (json!({"type": "ExternalName"}), Proxied::ExternalName),
        ] {
            let Update::Apply(Object::Service(_, service)) = converted(spec) else {
                panic!("refused")
            };
            assert_eq!(service.proxied, kind);
        }
    }

    #[test]
    fn v22_only_a_load_balancer_with_policy_local_is_asked_for_its_health() {
        for (kind, policy, asked) in [
            ("LoadBalancer", "Local", Some(31234)),
            ("LoadBalancer", "Cluster", None),
            ("NodePort", "Local", None),
        ] {
            let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31234,
                "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
            let Update::Apply(Object::Service(_, service)) = converted(spec) else {
                panic!("refused")
            };
            assert_eq!(service.health_check_node_port, asked, "{kind} {policy}");
        }
    }

    #[test]
    fn annotations_say_how_backends_are_chosen_and_clients_answered() {
        let said = |annotations: Value| {
            let object = json!({"metadata": {"namespace": "shop", "name": "web", "annotations": annotations},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
            match seen(&serde_json::from_value::<core::Service>(object).expect("a Service")) {
                Update::Apply(Object::Service(_, service)) => Ok((
                    service.annotations.algorithm,
                    service.annotations.forwarding,
                )),
                Update::Invalid(invalid) => Err(invalid.to_string()),
                other @ (Update::Apply(_)
                | Update::Flawed(..)
                | Update::Delete(_)
                | Update::Synced
                | Update::Connection(_)) => panic!("{other:?}"),
            }
        };
        assert_eq!(said(json!({})), Ok((None, None)));
        assert_eq!(
            said(json!({Annotation::ALGORITHM.key: "maglev"})),
            Ok((Some(Algorithm::Maglev), None))
        );
        assert_eq!(
            said(json!({Annotation::ALGORITHM.key: "random"})),
            Ok((Some(Algorithm::Random), None))
        );
        assert_eq!(
            said(json!({Annotation::FORWARDING.key: "dsr"})),
            Ok((None, Some(Forwarding::Dsr)))
        );
        assert_eq!(
            said(json!({Annotation::FORWARDING.key: "masquerade"})),
            Ok((None, Some(Forwarding::Masquerade)))
        );
        let bad = "Service shop/web: metadata.annotations[portway.dev/algorithm]: `Maglev`: expected `random` or `maglev`";
        assert_eq!(
            said(json!({Annotation::ALGORITHM.key: "Maglev"})),
            Err(bad.into())
        );
        let bad = "Service shop/web: metadata.annotations[portway.dev/forwarding]: `direct`: expected `masquerade` or `dsr`";
        assert_eq!(
            said(json!({Annotation::FORWARDING.key: "direct"})),
            Err(bad.into())
        );
    }

    #[test]
    fn v3_a_bad_source_range_costs_only_itself() {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "loadBalancerSourceRanges": [" 192.0.2.0/24", "x"]});
        let Update::Apply(Object::Service(_, service)) = converted(spec) else {
            panic!("refused")
        };
        assert_eq!(
            service.source_ranges,
            ["192.0.2.0/24".parse().expect("a prefix")].into()
        );
    }
}
