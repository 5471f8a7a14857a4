//! Pods and the workloads that make them: the fields that are read, and no others.

use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::net::Protocol;

use super::{Kind, Labels, ObjectName, UnixTime};

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `status.podIPs`, all families (P21).
    pub addresses: Vec<IpAddr>,
    /// The node that it is scheduled on.
    pub node: Option<Arc<str>>,
    /// True if it uses the node's network, and so the node's addresses.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: Phase,
    /// True if it is being deleted.
    pub terminating: bool,
    /// Its condition Ready.
    pub ready: bool,
    /// The reason why it is not ready, in words.
    pub unready_because: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// The ports that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// True if it may send with addresses that are not its own (P33), by
    /// [`super::Annotation::ANY_SOURCE`].
    pub any_source: bool,
    /// Creation time; the newest pod owns an address (P22).
    pub created: Option<UnixTime>,
}

impl Pod {
    /// Returns the first container port of this name and protocol.
    pub fn port_named(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|p| p.name.as_deref() == Some(name) && p.protocol == protocol)
            .map(|p| p.port)
    }

    /// Returns true if it no longer owns its addresses (P20).
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Returns true if it has, or will have, a network of its own (P17, P20).
    pub fn on_pod_network(&self) -> bool {
        !self.finished() && !self.host_network
    }
}

/// The phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// The container.
    pub container: Arc<str>,
    /// The port's name, if it has one.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub port: u16,
    /// The port of the node that leads to it, if it declares one.
    pub host_port: Option<HostPort>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// A port of the node that leads to a container, served by the CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the node; `None` means all of them.
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// The name of a Deployment, ReplicaSet, StatefulSet or DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadName {
    /// One of these kinds.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

/// A Deployment, ReplicaSet, StatefulSet or DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The labels of its pods.
    pub labels: Labels,
    /// The ports that its pods' containers declare.
    pub ports: Vec<ContainerPort>,
    /// The number of pods it should have; `None` for a DaemonSet.
    pub replicas: Option<u32>,
}
