//! Converts Kubernetes' types to the model. A bad object becomes an [`Invalid`] with object, field
//! and reason.

mod endpoints;
mod node;
mod pod;
mod policy;
mod service;
mod workload;

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::bail;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use proxy_common::net::Protocol;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Invalid, Kind, Object, ObjectName, ObjectRef, UnixTime, Update};

/// A Kubernetes type that the model has.
pub trait Convert {
    /// Kind of the object.
    const KIND: Kind;
    /// Returns the metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// Converts the object; `None` if it is valid but of no concern here.
    ///
    /// # Errors
    /// The first invalid field.
    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field>;
    /// Returns the flaws of parts that can be left out alone: the rest is converted.
    fn flaws(&self) -> Vec<Field> {
        Vec::new()
    }
}

/// An invalid field of an object, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    path: String,
    why: String,
}

impl Field {
    fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            why: why.into(),
        }
    }

    /// Adds the object of the field.
    pub fn of(self, object: ObjectRef) -> Invalid {
        Invalid {
            object,
            field: self.path,
            why: self.why,
        }
    }
}

/// Returns the kind and name of an object; empty strings where it has none.
pub fn reference<K: Convert>(object: &K) -> ObjectRef {
    let metadata = object.metadata();
    let [namespace, name] =
        [&metadata.namespace, &metadata.name].map(|s| s.as_deref().unwrap_or_default());
    ObjectRef {
        kind: K::KIND,
        name: ObjectName::new(namespace, name),
    }
}

/// Converts an object: it applies, does not concern us, or is invalid.
pub fn seen<K: Convert>(object: &K) -> Update {
    let reference = reference(object);
    match object.convert(reference.name.clone()) {
        Ok(Some(converted)) => applied(converted, object.flaws()),
        Ok(None) => Update::Delete(reference),
        Err(field) => Update::Invalid(field.of(reference)),
    }
}

fn applied(object: Object, flaws: Vec<Field>) -> Update {
    let reference = object.reference();
    match flaws.is_empty() {
        true => Update::Apply(object),
        false => Update::Flawed(
            object,
            flaws
                .into_iter()
                .map(|flaw| flaw.of(reference.clone()))
                .collect(),
        ),
    }
}

/// Converts a NetworkPolicy that may be malformed. Malformed parts allow nothing (P34).
pub fn seen_policy(document: &Value) -> Update {
    let (policy, flaws) = policy::read(&document["spec"]);
    let [namespace, name] =
        ["namespace", "name"].map(|key| document["metadata"][key].as_str().unwrap_or_default());
    applied(
        Object::NetworkPolicy(ObjectName::new(namespace, name), policy),
        flaws,
    )
}

/// Converts an object that could not be read at all. A policy isolates the pods that it may have
/// selected.
pub fn seen_unreadable(object: ObjectRef, field: String, why: String) -> Update {
    let invalid = Invalid { object, field, why };
    if invalid.object.kind != Kind::NetworkPolicy {
        return Update::Invalid(invalid);
    }
    let closed = policy::read(&Value::Bool(false)).0;
    Update::Flawed(
        Object::NetworkPolicy(invalid.object.name.clone(), closed),
        vec![invalid],
    )
}

/// Converts an object that the API server returned as JSON; a malformed one is invalid.
///
/// # Errors
/// If the kind is not one that agents watch.
pub fn seen_json(object: Value) -> anyhow::Result<Update> {
    Ok(match object["kind"].as_str() {
        Some("Service") => seen_as::<core::Service>(object),
        Some("EndpointSlice") => seen_as::<discovery::EndpointSlice>(object),
        Some("Pod") => seen_as::<core::Pod>(object),
        Some("Node") => seen_as::<core::Node>(object),
        Some("Namespace") => seen_as::<core::Namespace>(object),
        Some("NetworkPolicy") => seen_policy(&object),
        other => bail!("an object of kind {other:?}"),
    })
}

fn seen_as<K: Convert + DeserializeOwned>(object: Value) -> Update {
    let [namespace, name] = ["namespace", "name"].map(|key| {
        object["metadata"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    match serde_path_to_error::deserialize::<_, K>(object) {
        Ok(object) => seen(&object),
        Err(error) => {
            let object = ObjectRef {
                kind: K::KIND,
                name: ObjectName::new(&namespace, &name),
            };
            Update::Invalid(
                Field::new(error.path().to_string(), error.inner().to_string()).of(object),
            )
        }
    }
}

fn created(metadata: &ObjectMeta) -> Option<UnixTime> {
    metadata
        .creation_timestamp
        .as_ref()
        .map(|Time(t)| t.as_second())
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Reads a port number, 1 to 65535.
fn port(number: i32, path: impl Into<String>) -> Result<u16, Field> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Field::new(path, format!("{number} is no port: 1 to 65535"))),
    }
}

/// Reads a protocol; `None` is TCP (P13).
fn protocol(name: Option<&str>, path: impl Into<String>) -> Result<Protocol, Field> {
    match name {
        None | Some("TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(other) => Err(Field::new(
            path,
            format!("`{other}` is no protocol: TCP, UDP or SCTP"),
        )),
    }
}

/// Reads an address as loosely as Kubernetes does: `010.0.0.1` is decimal, `::ffff:10.0.0.1` is
/// IPv4.
fn address(text: &str, path: impl Into<String>) -> Result<IpAddr, Field> {
    let parsed = IpAddr::from_str(text).or_else(|_| IpAddr::from_str(&without_leading_zeros(text)));
    parsed
        .map(|ip| ip.to_canonical())
        .map_err(|_| Field::new(path, format!("`{text}` is no IP address")))
}

/// Reads an address that packets can be sent to: not unspecified, loopback or multicast.
fn unicast(text: &str, path: &str) -> Result<IpAddr, Field> {
    let ip = address(text, path)?;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(Field::new(
            path,
            format!("`{text}` cannot be the address of a Service or endpoint"),
        ));
    }
    Ok(ip)
}

/// Reads a prefix, and clears its host bits (P12).
fn prefix(text: &str, path: &str) -> Result<IpNet, Field> {
    let error = || Field::new(path, format!("`{text}` is no CIDR"));
    let (ip, length) = text.trim().split_once('/').ok_or_else(error)?;
    let length: u8 = length.parse().map_err(|_| error())?;
    let (ip, length) = match IpAddr::from_str(ip) {
        // The length is one of IPv6: below 96 the prefix is not of IPv4 addresses only.
        Ok(v6 @ IpAddr::V6(_)) if length >= 96 && v6.to_canonical().is_ipv4() => {
            (v6.to_canonical(), length - 96)
        }
        Ok(ip) => (ip, length),
        Err(_) => (address(ip, path).map_err(|_| error())?, length),
    };
    IpNet::new(ip, length)
        .map(|net| net.trunc())
        .map_err(|_| error())
}

fn without_leading_zeros(text: &str) -> String {
    let octets = text
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            trimmed => trimmed,
        });
    octets.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_loosely_as_kubernetes_does() {
        for (text, ip) in [
            ("010.0.0.01", "10.0.0.1"),
            ("10.0.000.0", "10.0.0.0"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(
                address(text, "f"),
                Ok(ip.parse().expect("an address")),
                "{text}"
            );
        }
        for text in [
            "",
            "10.0.0",
            "10..0.1",
            "10.0.0.256",
            "web.example",
            "10.0.0.1/32",
        ] {
            assert!(address(text, "f").is_err(), "{text}");
        }
    }

    #[test]
    fn an_object_of_the_wrong_form_is_bad_and_of_an_unknown_kind_an_error() {
        let object = serde_json::json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "web"}, "spec": {"ports": 80}});
        let Ok(Update::Invalid(invalid)) = seen_json(object) else {
            panic!("taken")
        };
        assert_eq!(
            (invalid.object.to_string(), invalid.field),
            ("Service shop/web".into(), "spec.ports".into())
        );
        assert!(seen_json(serde_json::json!({"kind": "Ingress"})).is_err());
    }

    #[test]
    fn p12_prefixes_lose_their_host_bits() {
        assert_eq!(
            prefix(" 010.1.2.3/8", "f"),
            Ok("10.0.0.0/8".parse().expect("a prefix"))
        );
        assert!(prefix("10.0.0.0/33", "f").is_err() && prefix("10.0.0.0", "f").is_err());
    }

    #[test]
    fn p12_a_prefix_of_mapped_addresses_is_ipv4s_where_it_has_only_those() {
        for (text, meant) in [
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/8", "::/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(
                prefix(text, "f"),
                Ok(meant.parse().expect("a prefix")),
                "{text}"
            );
        }
    }
}
