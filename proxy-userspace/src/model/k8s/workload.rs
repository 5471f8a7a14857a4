//! Workloads, which make pods: Deployments, ReplicaSets, StatefulSets, DaemonSets.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod::container_ports;
use super::{Convert, Field};
use crate::model::{Kind, Object, ObjectName, Workload, WorkloadName};

fn workload(
    kind: Kind,
    name: ObjectName,
    template: Option<&PodTemplateSpec>,
    replicas: Option<i32>,
) -> Result<Option<Object>, Field> {
    let metadata = template
        .and_then(|t| t.metadata.clone())
        .unwrap_or_default();
    let ports = template
        .and_then(|t| t.spec.as_ref())
        .map(|s| container_ports(s, "spec.template.spec"))
        .transpose()?;
    let replicas = replicas
        .map(|n| {
            u32::try_from(n).map_err(|_| Field::new("spec.replicas", format!("{n} is negative")))
        })
        .transpose()?;
    let workload = Workload {
        labels: metadata.labels.unwrap_or_default(),
        ports: ports.unwrap_or_default(),
        replicas,
    };
    Ok(Some(Object::Workload(
        WorkloadName { kind, name },
        workload,
    )))
}

impl Convert for apps::Deployment {
    const KIND: Kind = Kind::Deployment;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let spec = self.spec.as_ref();
        workload(
            Self::KIND,
            name,
            spec.map(|s| &s.template),
            Some(spec.and_then(|s| s.replicas).unwrap_or(1)),
        )
    }
}

impl Convert for apps::ReplicaSet {
    const KIND: Kind = Kind::ReplicaSet;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let spec = self.spec.as_ref();
        workload(
            Self::KIND,
            name,
            spec.and_then(|s| s.template.as_ref()),
            Some(spec.and_then(|s| s.replicas).unwrap_or(1)),
        )
    }
}

impl Convert for apps::StatefulSet {
    const KIND: Kind = Kind::StatefulSet;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        let spec = self.spec.as_ref();
        workload(
            Self::KIND,
            name,
            spec.map(|s| &s.template),
            Some(spec.and_then(|s| s.replicas).unwrap_or(1)),
        )
    }
}

impl Convert for apps::DaemonSet {
    const KIND: Kind = Kind::DaemonSet;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        workload(
            Self::KIND,
            name,
            self.spec.as_ref().map(|s| &s.template),
            None,
        )
    }
}
