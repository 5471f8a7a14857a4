//! Services, slices, pods, nodes: the fields that somebody here reads, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use proxy_common::net::Protocol;

use super::{Algorithm, Forwarding, NetworkPolicy};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its name as Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Labels, or a selector of equal form.
pub type Labels = BTreeMap<String, String>;

/// Seconds since 1970, as the API server stamped it.
pub type UnixTime = i64;

/// A namespace and a name; the namespace is empty for Nodes and Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name within a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The name of an object that is in no namespace.
    pub fn cluster(name: &str) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The kinds of objects that sources report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Node,
    Namespace,
    NetworkPolicy,
    ServiceCIDR,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    /// No object: a file that should hold some.
    Manifest,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An object, named for people: `Service default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// An object of any kind, with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the types say it")]
pub enum Object {
    Service(ObjectName, Service),
    EndpointSlice(ObjectName, EndpointSlice),
    Pod(ObjectName, Pod),
    Node(ObjectName, Node),
    Namespace(ObjectName, Namespace),
    NetworkPolicy(ObjectName, NetworkPolicy),
    ServiceCidr(ObjectName, ServiceCidr),
    Workload(WorkloadName, Workload),
}

impl Object {
    /// Its kind and name.
    pub fn reference(&self) -> ObjectRef {
        let (kind, name) = match self {
            Self::Service(name, _) => (Kind::Service, name),
            Self::EndpointSlice(name, _) => (Kind::EndpointSlice, name),
            Self::Pod(name, _) => (Kind::Pod, name),
            Self::Node(name, _) => (Kind::Node, name),
            Self::Namespace(name, _) => (Kind::Namespace, name),
            Self::NetworkPolicy(name, _) => (Kind::NetworkPolicy, name),
            Self::ServiceCidr(name, _) => (Kind::ServiceCIDR, name),
            Self::Workload(WorkloadName { kind, name }, _) => (*kind, name),
        };
        ObjectRef {
            kind,
            name: name.clone(),
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Whether it is ours to serve (V1).
    pub proxied: Proxied,
    /// Its cluster IPs, at most one of each family; a family without one is not served. Also those of another proxy's Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// Load balancer IPs that nodes are to serve: those with ipMode nil or VIP (V3).
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Who may use the load balancer IPs (V3); empty is everybody.
    pub source_ranges: BTreeSet<IpNet>,
    /// Ports in the order of the object, at least one where it is proxied.
    pub ports: Vec<ServicePort>,
    /// The labels of its pods; empty if somebody else writes the slices.
    pub selector: Labels,
    /// Which backends clients from outside reach.
    pub external_policy: TrafficPolicy,
    /// Which backends clients of the cluster IP reach.
    pub internal_policy: TrafficPolicy,
    /// Seconds of ClientIP affinity, 0 for none (V13).
    pub affinity: u32,
    /// How backends are chosen, where an annotation says so.
    pub algorithm: Option<Algorithm>,
    /// How clients outside are answered, where an annotation says.
    pub forwarding: Option<Forwarding>,
    /// Where load balancers ask whether this node has a backend; only with type LoadBalancer and policy Local (V22).
    pub health_check_node_port: Option<u16>,
    /// Pods count as endpoints before they are ready.
    pub publish_not_ready: bool,
    /// When it was made; the older one wins a conflict.
    pub created: Option<UnixTime>,
}

/// Whether a Service is ours to serve (V1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// It has a cluster IP.
    Yes,
    /// `clusterIP: None`: clients use the pods' addresses.
    Headless,
    /// The API server has not given it a cluster IP yet.
    NoClusterIp,
    /// A DNS alias.
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it is the only one and has none.
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
    /// The number that it means on a pod; `None` if the pod has no port of that name and protocol.
    pub fn on(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.port_named(name, self.protocol),
        }
    }
}

/// Which port of a pod is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
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

/// Which backends a client is sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of every node.
    #[default]
    Cluster,
    /// Those of the node that the client reached.
    Local,
}

/// An EndpointSlice of a Service; slices of none and of type FQDN do not get here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service.
    pub service: ObjectName,
    /// Ports that have a name (it may be empty) and a number (V2).
    pub ports: Vec<SlicePort>,
    /// The address family of all its endpoints.
    pub family: Family,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// When that happened which this slice tells of, as its controller dates it (V24).
    pub triggered: Option<Timestamp>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port of the endpoints.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its first address (V2).
    pub addr: IpAddr,
    /// May be given new connections.
    pub ready: bool,
    /// Answers, whether or not it is terminating.
    pub serving: bool,
    /// Is being shut down.
    pub terminating: bool,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// Zones that should use it (V6).
    pub zone_hints: BTreeSet<Arc<str>>,
    /// Nodes that should use it (V6).
    pub node_hints: BTreeSet<Arc<str>>,
}

impl SliceEndpoint {
    /// Whether it runs on this node (V2).
    pub fn is_on(&self, node: &str) -> bool {
        self.node.as_deref() == Some(node)
    }
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `status.podIPs`, all families (P21).
    pub addresses: Vec<IpAddr>,
    /// The node that it was given to.
    pub node: Option<Arc<str>>,
    /// It has the node's network: the node's addresses are its own.
    pub host_network: bool,
    /// How far its life is.
    pub phase: Phase,
    /// It was told to end.
    pub terminating: bool,
    /// Its condition Ready.
    pub ready: bool,
    /// What keeps it from being ready, in words.
    pub unready_because: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// The ports that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// It may send with addresses that are not its own (P33): [`ANY_SOURCE`] says so.
    pub any_source: bool,
    /// When it was made; the newest owns an address (P22).
    pub created: Option<UnixTime>,
}

/// The annotation of pods that may send with addresses that are not their own (P33): routers, VPN gateways, virtual IPs. Its value is `true`.
pub const ANY_SOURCE: &str = "portway.dev/any-source";

impl Pod {
    /// The first container port of this name and protocol.
    pub fn port_named(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let named = |p: &&ContainerPort| p.name.as_deref() == Some(name) && p.protocol == protocol;
        self.ports.iter().find(named).map(|p| p.port)
    }

    /// It holds its addresses no more (P20).
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// It has, or is getting, a network of its own (P17, P20).
    pub fn on_pod_network(&self) -> bool {
        !self.finished() && !self.host_network
    }
}

/// How far a pod's life is.
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
    /// The port of the node that leads to it, if it asks for one.
    pub host_port: Option<HostPort>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// A port of the node that leads to a container, served by the CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the node; `None` is all of them.
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// It is being deleted, or the autoscaler has marked it so: load balancers should look elsewhere (V23).
    pub leaving: bool,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: Labels,
}

impl Namespace {
    /// One of this name: whatever its labels are, `kubernetes.io/metadata.name` is among them (P10).
    pub fn new(name: &str, mut labels: Labels) -> Self {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Self { labels }
    }
}

/// A ServiceCIDR: ranges that cluster IPs are given out from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `spec.cidrs`.
    pub prefixes: BTreeSet<IpNet>,
}

/// A Deployment, ReplicaSet, StatefulSet or DaemonSet by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Which of them.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

/// What makes pods: a Deployment, ReplicaSet, StatefulSet or DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The labels that its pods get.
    pub labels: Labels,
    /// The ports that its pods' containers declare.
    pub ports: Vec<ContainerPort>,
    /// How many pods it should have; none for a DaemonSet.
    pub replicas: Option<u32>,
}
