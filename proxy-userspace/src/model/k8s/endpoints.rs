//! EndpointSlices (V2).

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Convert, Field, label, port, protocol, unicast};
use crate::model::{EndpointSlice, Family, Kind, Object, ObjectName, SliceEndpoint, SlicePort};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const HEADLESS: &str = "service.kubernetes.io/headless";

impl Convert for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let Some(service) = label(&self.metadata, SERVICE_NAME).filter(|s| !s.is_empty()) else {
            return Ok(None);
        };
        if label(&self.metadata, HEADLESS).is_some() || self.address_type == "FQDN" {
            return Ok(None);
        }
        let slice = EndpointSlice {
            service: ObjectName::new(&name.namespace, service),
            ports: ports(self)?,
            family: family(self)?,
            endpoints: endpoints(self)?,
            triggered: triggered(&self.metadata),
        };
        Ok(Some(Object::EndpointSlice(name, slice)))
    }
}

/// V2: ports without a name or number are left out.
fn ports(slice: &discovery::EndpointSlice) -> Result<Vec<SlicePort>, Field> {
    let all = slice.ports.iter().flatten().enumerate();
    let usable = all.filter_map(|(i, p)| {
        Some((
            i,
            p,
            p.name.as_deref()?,
            p.port.filter(|&number| number != 0)?,
        ))
    });
    let read = usable.map(|(i, p, name, number)| {
        let protocol = protocol(p.protocol.as_deref(), format!("ports[{i}].protocol"))?;
        Ok(SlicePort {
            name: name.into(),
            protocol,
            port: port(number, format!("ports[{i}].port"))?,
        })
    });
    read.collect()
}

fn family(slice: &discovery::EndpointSlice) -> Result<Family, Field> {
    match slice.address_type.as_str() {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        other => Err(Field::new(
            "addressType",
            format!("`{other}` is none: IPv4, IPv6 or FQDN"),
        )),
    }
}

/// Only a metric depends on it (V24), so a bad one costs nothing.
fn triggered(metadata: &ObjectMeta) -> Option<Timestamp> {
    metadata.annotations.as_ref()?.get(TRIGGERED)?.parse().ok()
}

fn endpoints(slice: &discovery::EndpointSlice) -> Result<Vec<SliceEndpoint>, Field> {
    let family = family(slice)?;
    let mut found = Vec::new();
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        let path = format!("endpoints[{i}].addresses[0]");
        let Some(text) = endpoint.addresses.first() else {
            return Err(Field::new(
                format!("endpoints[{i}].addresses"),
                "an endpoint needs an address",
            ));
        };
        let addr = unicast(text, &path)?;
        if Family::of(addr) != family {
            return Err(Field::new(
                path,
                format!("`{text}` in a slice of addressType {}", slice.address_type),
            ));
        }
        found.push(slice_endpoint(endpoint, addr));
    }
    Ok(found)
}

/// V2: nil `ready` and `serving` are true, nil `terminating` is false.
fn slice_endpoint(endpoint: &discovery::Endpoint, addr: std::net::IpAddr) -> SliceEndpoint {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    SliceEndpoint {
        addr,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.as_deref().map(Arc::from),
        zone_hints: hints
            .for_zones
            .into_iter()
            .flatten()
            .map(|z| z.name.into())
            .collect::<BTreeSet<_>>(),
        node_hints: hints
            .for_nodes
            .into_iter()
            .flatten()
            .map(|n| n.name.into())
            .collect::<BTreeSet<_>>(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen;
    use super::*;
    use crate::model::Update;
    use serde_json::{Value, json};

    fn converted(patch: Value) -> Update {
        let mut object = json!({
            "metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.2"]}], "ports": [{"name": "", "port": 80}],
        });
        for (key, value) in patch.as_object().expect("an object") {
            object[key] = value.clone();
        }
        seen(&serde_json::from_value::<discovery::EndpointSlice>(object).expect("a slice"))
    }

    #[test]
    fn v2_nil_conditions_and_useless_ports() {
        let ports = json!([{"name": "a"}, {"port": 1}, {"name": "b", "port": 0}, {"name": "c", "port": 3, "protocol": "UDP"}]);
        let Update::Apply(Object::EndpointSlice(_, slice)) = converted(json!({"ports": ports}))
        else {
            panic!("refused")
        };
        assert_eq!(
            slice
                .ports
                .iter()
                .map(|p| (&*p.name, p.port))
                .collect::<Vec<_>>(),
            [("c", 3)]
        );
        let e = &slice.endpoints[0];
        assert_eq!((e.ready, e.serving, e.terminating), (true, true, false));
    }

    #[test]
    fn v24_when_its_change_happened_and_nothing_where_that_is_no_time() {
        for (time, read) in [
            ("2026-01-02T03:04:05.123456789Z", Some(1_767_323_045)),
            ("yesterday", None),
        ] {
            let metadata = json!({"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}});
            let Update::Apply(Object::EndpointSlice(_, slice)) =
                converted(json!({"metadata": metadata}))
            else {
                panic!("refused")
            };
            assert_eq!(slice.triggered.map(|t| t.as_second()), read);
        }
    }

    #[test]
    fn v1_v2_slices_that_do_not_concern_us() {
        for patch in [
            json!({"addressType": "FQDN", "endpoints": [{"addresses": ["web.example"]}]}),
            json!({"metadata": {"namespace": "shop", "name": "web-x"}}),
            json!({"metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}}}),
        ] {
            assert!(matches!(converted(patch), Update::Delete(_)));
        }
    }

    #[test]
    fn a_bad_slice_is_named_with_field_and_reason() {
        let cases = [
            (
                json!({"endpoints": [{"addresses": ["web"]}]}),
                "EndpointSlice shop/web-x: endpoints[0].addresses[0]: `web` is no IP address",
            ),
            (
                json!({"endpoints": [{"addresses": ["fd00::1"]}]}),
                "EndpointSlice shop/web-x: endpoints[0].addresses[0]: `fd00::1` in a slice of addressType IPv4",
            ),
            (
                json!({"endpoints": [{"addresses": []}]}),
                "EndpointSlice shop/web-x: endpoints[0].addresses: an endpoint needs an address",
            ),
            (
                json!({"addressType": "IPX"}),
                "EndpointSlice shop/web-x: addressType: `IPX` is none: IPv4, IPv6 or FQDN",
            ),
        ];
        for (patch, said) in cases {
            match converted(patch) {
                Update::Invalid(invalid) => assert_eq!(invalid.to_string(), said),
                other @ (Update::Apply(_)
                | Update::Flawed(..)
                | Update::Delete(_)
                | Update::Synced
                | Update::Connection(_)) => panic!("taken: {other:?}"),
            }
        }
    }
}
