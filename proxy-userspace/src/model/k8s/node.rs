//! Nodes, Namespaces and ServiceCIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Convert, Field, address, label, prefix};
use crate::model::{Kind, Namespace, Node, Object, ObjectName, ServiceCidr};

const ZONE: &str = "topology.kubernetes.io/zone";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl Convert for core::Node {
    const KIND: Kind = Kind::Node;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let spec = self.spec.clone().unwrap_or_default();
        let tainted = spec
            .taints
            .iter()
            .flatten()
            .any(|taint| taint.key == TO_BE_DELETED);
        let cidrs = match spec.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => cidrs,
            _ => spec
                .pod_cidr
                .into_iter()
                .filter(|cidr| !cidr.is_empty())
                .collect(),
        };
        let node = Node {
            internal_ips: addresses(self, "InternalIP")?,
            external_ips: addresses(self, "ExternalIP")?,
            pod_cidrs: cidrs
                .iter()
                .enumerate()
                .map(|(i, c)| prefix(c, &format!("spec.podCIDRs[{i}]")))
                .collect::<Result<_, _>>()?,
            zone: label(&self.metadata, ZONE).map(Arc::from),
            leaving: tainted || self.metadata.deletion_timestamp.is_some(),
        };
        Ok(Some(Object::Node(name, node)))
    }
}

fn addresses(node: &core::Node, of_type: &str) -> Result<Vec<IpAddr>, Field> {
    let all = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten())
        .enumerate();
    all.filter(|(_, a)| a.type_ == of_type)
        .map(|(i, a)| address(&a.address, format!("status.addresses[{i}].address")))
        .collect()
}

impl Convert for networking::ServiceCIDR {
    const KIND: Kind = Kind::ServiceCIDR;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let cidrs = self
            .spec
            .iter()
            .flat_map(|spec| spec.cidrs.iter().flatten())
            .enumerate();
        let prefixes = cidrs
            .map(|(i, cidr)| prefix(cidr, &format!("spec.cidrs[{i}]")))
            .collect::<Result<_, _>>()?;
        Ok(Some(Object::ServiceCidr(name, ServiceCidr { prefixes })))
    }
}

impl Convert for core::Namespace {
    const KIND: Kind = Kind::Namespace;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let labels = self.metadata.labels.clone().unwrap_or_default();
        let namespace = Namespace::new(&name.name, labels);
        Ok(Some(Object::Namespace(name, namespace)))
    }
}
