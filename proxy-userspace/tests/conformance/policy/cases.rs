//! The form of NetworkPolicy cases: states of a cluster, each with a table of verdicts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::oracle::End;

/// A file.
#[derive(Deserialize)]
pub struct Case {
    pub steps: Vec<Step>,
}

/// A state and its expected verdicts.
#[derive(Deserialize)]
pub struct Step {
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    #[serde(default)]
    pub externals: Option<Vec<External>>,
    pub policies: Option<Vec<Value>>,
    pub expected: Vec<Row>,
}

#[derive(Deserialize)]
pub struct Namespace {
    pub name: String,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub ips: Vec<IpAddr>,
    pub phase: String,
    pub node: Option<String>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub container_ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: i32,
    pub protocol: Option<String>,
}

#[derive(Deserialize)]
pub struct External {
    pub name: String,
    pub ip: IpAddr,
    pub node: Option<String>,
}

/// `[from, to, protocol, port, ingress, egress, combined, family?]`.
#[derive(Deserialize)]
#[serde(from = "Fields")]
pub struct Row {
    pub from: String,
    pub to: String,
    pub protocol: String,
    pub port: u16,
    pub ingress: Option<bool>,
    pub egress: Option<bool>,
    pub combined: Option<bool>,
    /// The family of the connection, if an end has both.
    pub v6: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Fields {
    V4(
        String,
        String,
        String,
        u16,
        Option<u8>,
        Option<u8>,
        Option<u8>,
    ),
    Of(
        String,
        String,
        String,
        u16,
        Option<u8>,
        Option<u8>,
        Option<u8>,
        u8,
    ),
}

impl From<Fields> for Row {
    fn from(fields: Fields) -> Self {
        let (from, to, protocol, port, ingress, egress, combined, family) = match fields {
            Fields::V4(from, to, protocol, port, i, e, c) => {
                (from, to, protocol, port, i, e, c, None)
            }
            Fields::Of(from, to, protocol, port, i, e, c, family) => {
                (from, to, protocol, port, i, e, c, Some(family == 6))
            }
        };
        let yes = |number: Option<u8>| number.map(|number| number == 1);
        Self {
            from,
            to,
            protocol,
            port,
            ingress: yes(ingress),
            egress: yes(egress),
            combined: yes(combined),
            v6: family,
        }
    }
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Step {
    /// P10: returns the labels of a namespace.
    pub fn labels_of_namespace(&self, name: &str) -> BTreeMap<String, String> {
        let found = self
            .namespaces
            .iter()
            .find(|namespace| namespace.name == name);
        let mut labels = found
            .and_then(|namespace| namespace.labels.clone())
            .unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        labels
    }

    /// Returns both ends of a row, with addresses of its family, or of the family that both have.
    pub fn ends(&self, row: &Row) -> Result<(End<'_>, End<'_>)> {
        let ends = |v6| Ok((self.end(&row.from, v6)?, self.end(&row.to, v6)?));
        match row.v6 {
            Some(v6) => ends(v6),
            None => ends(false).or_else(|_: anyhow::Error| ends(true)),
        }
    }

    /// An end of a row by its name, with its address of a family.
    fn end(&self, name: &str, v6: bool) -> Result<End<'_>> {
        let unknown = || format!("{name} is not there, or has no address of the family");
        if let Some(name) = name.strip_prefix("ext:") {
            let externals = self.externals.iter().flatten();
            let mut found =
                externals.filter(|external| external.name == name && external.ip.is_ipv6() == v6);
            let external = found.next().with_context(unknown)?;
            return Ok(End {
                pod: None,
                node: external.node.as_deref(),
                ip: external.ip,
            });
        }
        let pod = self
            .pods
            .iter()
            .find(|pod| format!("{}/{}", pod.namespace, pod.name) == name)
            .with_context(unknown)?;
        let ip = *pod
            .ips
            .iter()
            .find(|ip| ip.is_ipv6() == v6)
            .with_context(unknown)?;
        let lives = !matches!(pod.phase.as_str(), "Succeeded" | "Failed");
        let node = if pod.host_network {
            pod.node.as_deref()
        } else {
            None
        };
        Ok(End {
            pod: Some(pod).filter(|pod| lives && !pod.host_network),
            node,
            ip,
        })
    }
}
