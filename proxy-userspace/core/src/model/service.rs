//! Services: the fields that are read, and no others.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::Protocol;

use super::{Labels, Pod, ServiceAnnotations, UnixTime};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// [`Proxied::Yes`] if this proxy serves it (V1).
    pub proxied: Proxied,
    /// Its cluster IPs, at most one of each family; a family without one is not served. A Service
    /// of another proxy has them, too.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// Load balancer IPs that nodes serve: those with ipMode nil or VIP (V3).
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Clients that may use the load balancer IPs (V3); empty means all.
    pub source_ranges: BTreeSet<IpNet>,
    /// Ports in the order of the object. A proxied Service has at least one.
    pub ports: Vec<ServicePort>,
    /// The labels of its pods; empty if its slices are not made from a selector.
    pub selector: Labels,
    /// Backends for clients from outside.
    pub external_policy: TrafficPolicy,
    /// Backends for clients of the cluster IP.
    pub internal_policy: TrafficPolicy,
    /// Seconds of ClientIP affinity, 0 for none (V13).
    pub affinity: u32,
    /// The options that its annotations set.
    pub annotations: ServiceAnnotations,
    /// The port where load balancers ask for backends on this node. Only with type LoadBalancer
    /// and policy Local (V22).
    pub health_check_node_port: Option<u16>,
    /// True if pods count as endpoints before they are ready.
    pub publish_not_ready: bool,
    /// Creation time; the older Service wins a conflict.
    pub created: Option<UnixTime>,
}

/// The reason why this proxy serves a Service or does not (V1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// Served: it has a cluster IP.
    Yes,
    /// `clusterIP: None`: clients use the pods' addresses.
    Headless,
    /// The API server has not allocated a cluster IP yet.
    NoClusterIp,
    /// A DNS alias.
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name` assigns it to another proxy.
    OtherProxy,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it is the only port and has none.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port of the cluster, external and load balancer IPs.
    pub port: u16,
    /// The port of every node.
    pub node_port: Option<u16>,
    /// The port of the pods.
    pub target: TargetPort,
}

impl ServicePort {
    /// Returns the port's number on a pod; `None` if the pod has no port of that name and
    /// protocol.
    pub fn on(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.port_named(name, self.protocol),
        }
    }
}

/// A port of a pod, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The container port of this name and the Service port's protocol.
    Name(Arc<str>),
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The backends that clients are sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of every node.
    #[default]
    Cluster,
    /// Those of the node that the client reached.
    Local,
}
