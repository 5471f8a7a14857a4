//! The cluster and the host in our words: what `source` reports, `links` finds out and `compile` reads.
//!
//! Kubernetes' own types stop at the agent's `model::k8s`.

mod objects;
pub mod policy;
mod word;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{Device, IfIndex};

pub use objects::*;
pub use policy::NetworkPolicy;
pub use word::Word;

use word::words;

/// Everything that `compile` looks at; equal snapshots give equal contents.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the operator chose.
    pub settings: Settings,
    /// The cluster's objects.
    pub state: State,
    /// What this host's network looks like.
    pub links: Links,
}

/// What the kernel's network configuration says, in our words (filled by `links`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Local pod address -> host-side veth, once found.
    pub pods: BTreeMap<IpAddr, IfIndex>,
    /// Node devices and tunnels, and the gate.
    pub devices: BTreeMap<IfIndex, Device>,
    /// That of [`Self::devices`] by which processes come that no hooks of sockets serve (V21), if there is one.
    pub gate: Option<IfIndex>,
    /// Every address of this host; not loopback's, nor those of kube-ipvs0 and kube-dummy-if (V20).
    pub host_addresses: BTreeMap<IpAddr, IfIndex>,
}

/// The operator's choices that reach the maps, and the facts that only `main` and the kernel know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The Node object that this agent stands for.
    pub node_name: Arc<str>,
    /// Where nodePorts are served (V8).
    pub nodeport_addresses: NodePortAddresses,
    /// Prefixes of the pod network, beside the nodes' podCIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    /// The cluster's Service ranges, beside those of ServiceCIDR objects.
    pub service_cidrs: Vec<IpNet>,
    /// Source ports that masquerade gives (V12).
    pub masquerade_ports: PortRange,
    /// What clients get where a Local policy finds no backend here.
    pub local_refusal: LocalRefusal,
    /// What the operator wants of firewalls for forwarded packets.
    pub host_firewall: HostFirewall,
    /// What a pod gets whose policy is not known yet (P31).
    pub pod_start: PodStart,
    /// What clients get whom a NetworkPolicy denies.
    pub policy_deny: Refusal,
    /// Whether this host had one when the agent started.
    pub forward_firewall: ForwardFirewall,
    /// How long flows live.
    pub timeouts: Timeouts,
    /// Key of the hash that chooses backends (V15); `main` draws it once and keeps it over restarts.
    pub secret: u64,
    /// How backends are chosen where a Service does not say.
    pub algorithm: Algorithm,
    /// How clients outside are answered where a Service does not say.
    pub forwarding: Forwarding,
    /// Jiffies in a second, as the running kernel has it.
    pub hz: u32,
}

/// How a new connection's backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// By a hash with a key of the node's own: every backend is as likely, and another one leaving changes most choices.
    #[default]
    Random,
    /// By consistent hashing: all nodes choose alike, and another one leaving changes few choices.
    Maglev,
}

words!(Algorithm {
    Random = "random", "by a key of each node's own: every backend is as likely";
    Maglev = "maglev", "by consistent hashing: all nodes choose alike";
});

/// How a client outside is answered by a backend of another node than it asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forwarding {
    /// By the node that it asked, as which the backend sees it.
    #[default]
    Masquerade,
    /// By the backend's node (direct server return): the backend sees the client.
    Dsr,
}

words!(Forwarding {
    Masquerade = "masquerade", "by the node that it asked, as which the pod sees it";
    Dsr = "dsr", "straight by the pod's node (direct server return): the pod sees the client";
});

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: "".into(),
            nodeport_addresses: NodePortAddresses::Primary,
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            masquerade_ports: PortRange {
                first: 1024,
                last: 29999,
            },
            local_refusal: LocalRefusal::default(),
            host_firewall: HostFirewall::default(),
            pod_start: PodStart::default(),
            policy_deny: Refusal::Drop,
            forward_firewall: ForwardFirewall::default(),
            timeouts: Timeouts::default(),
            secret: 0,
            algorithm: Algorithm::default(),
            forwarding: Forwarding::default(),
            hz: 0,
        }
    }
}

impl Settings {
    /// The way of flows that could be redirected. The packet path learns of it in `compile::config` and nowhere else.
    pub fn translated_way(&self) -> TranslatedWay {
        match (self.host_firewall, self.forward_firewall) {
            (HostFirewall::Respect, ForwardFirewall::Present) => TranslatedWay::Stack,
            _ => TranslatedWay::Redirect,
        }
    }
}

/// What the operator wants of this host's firewalls for forwarded packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostFirewall {
    /// Translated packets pass them by, for speed.
    #[default]
    Bypass,
    /// Where there is one, translated packets take the stack's way through it.
    Respect,
}

words!(HostFirewall {
    Bypass = "bypass", "translated packets pass it by; the log says so";
    Respect = "respect", "where there is one, they take the stack's way through it";
});

/// What becomes of packets at a pod's device whose pod is not known yet, once there is any NetworkPolicy (P31).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodStart {
    /// They are dropped, but for what its own node sends it.
    #[default]
    Deny,
    /// They pass.
    Allow,
}

words!(PodStart {
    Deny = "deny", "nothing passes, but what its own node sends it";
    Allow = "allow", "everything passes until the policy is known";
});

/// Whether this host has rules that refuse forwarded packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardFirewall {
    /// None was found.
    #[default]
    Absent,
    /// There is at least one.
    Present,
}

/// How translated packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslatedWay {
    /// Straight to their device.
    Redirect,
    /// Through the stack and its forward hooks.
    Stack,
}

/// The addresses of this host that nodePorts are served on (V8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's own InternalIPs, one per family, else its ExternalIPs.
    Primary,
    /// Every address within; a family that the list does not mention is served on all its addresses.
    Within(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        let prefix = |part: &str| match part.trim().parse::<IpNet>() {
            Ok(prefix) => Ok(prefix.trunc()),
            Err(_) => Err(format!(
                "`{part}` is neither a CIDR nor the word primary alone"
            )),
        };
        text.split(',')
            .map(prefix)
            .collect::<Result<_, _>>()
            .map(Self::Within)
    }
}

impl NodePortAddresses {
    /// Whether nodePorts are served on `addr`, an address of this host, as far as prefixes tell; a family that they do not mention
    /// is served on all its addresses.
    pub fn have_within(prefixes: &[IpNet], addr: IpAddr) -> bool {
        let mut same_family = prefixes
            .iter()
            .filter(|p| p.addr().is_ipv4() == addr.is_ipv4())
            .peekable();
        same_family.peek().is_none() || same_family.any(|prefix| prefix.contains(&addr))
    }
}

/// An inclusive range of port numbers, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// How many ports it has.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is no range of ports such as 30000-32767");
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let [first, last] = [first, last].map(|n| n.trim().parse::<u16>().ok().filter(|&n| n > 0));
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What a client from outside gets where the policy is Local, no backend is here, and others are elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRefusal {
    /// At nodePorts.
    pub node_port: Refusal,
    /// At load balancer IPs.
    pub load_balancer: Refusal,
    /// At external IPs.
    pub external_ip: Refusal,
}

impl Default for LocalRefusal {
    fn default() -> Self {
        Self {
            node_port: Refusal::Reject,
            load_balancer: Refusal::Drop,
            external_ip: Refusal::Drop,
        }
    }
}

/// How a new connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Port unreachable: "connection refused" at once.
    Reject,
    /// Silence: the client retries.
    Drop,
}

words!(Refusal {
    Reject = "reject", "the client is refused at once";
    Drop = "drop", "the client hears nothing and tries again";
});

/// How long flows live after their last packet, in seconds (V18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Half-open: no answer yet (TCP and UDP).
    pub opening: u32,
    /// TCP, established.
    pub tcp: u32,
    /// TCP, one end has sent FIN.
    pub tcp_close_wait: u32,
    /// TCP, closed by both or reset: as long as TIME_WAIT, if the table has room.
    pub tcp_closed: u32,
    /// UDP that was answered.
    pub udp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            opening: 30,
            tcp: 86_400,
            tcp_close_wait: 3_600,
            tcp_closed: 60,
            udp: 120,
        }
    }
}

/// The cluster's objects as last heard of.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Services, the skipped ones too (V1).
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices that belong to a Service.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Pods of every node.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<ObjectName, Node>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<ObjectName, Namespace>,
    /// NetworkPolicies.
    pub policies: BTreeMap<ObjectName, NetworkPolicy>,
    /// The ranges of cluster IPs, where the API server has such objects (1.33).
    pub service_cidrs: BTreeMap<ObjectName, ServiceCidr>,
    /// What makes pods, where the source tells (a directory of manifests does); for `doctor`.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Objects that cannot be used, and why.
    pub invalid: BTreeMap<ObjectRef, Invalid>,
    /// What is wrong with parts of objects that are otherwise in force.
    pub flaws: BTreeMap<ObjectRef, Vec<Invalid>>,
    /// Everything was listed once: before that nothing is compiled (V1).
    pub synced: bool,
    /// Whether the source answers; what is known stays in force meanwhile.
    pub connection: Connection,
}

/// Whether the source of objects can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not reached yet.
    #[default]
    Never,
    /// It answers.
    Up,
    /// It stopped answering, with the error seen.
    Down(Arc<str>),
}

/// One piece of news from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The object is new or has changed.
    Apply(Object),
    /// The same, but parts of it cannot be used: they count as absent, or match nothing. At least one is named.
    Flawed(Object, Vec<Invalid>),
    /// The object is gone, or is none of ours any more.
    Delete(ObjectRef),
    /// The object is there but cannot be used: it counts as gone.
    Invalid(Invalid),
    /// Everything that there is has been listed.
    Synced,
    /// The source was reached, or was lost.
    Connection(Connection),
}

impl Update {
    /// The object that it is about.
    pub fn object(&self) -> Option<ObjectRef> {
        match self {
            Self::Apply(object) | Self::Flawed(object, _) => Some(object.reference()),
            Self::Delete(object) => Some(object.clone()),
            Self::Invalid(invalid) => Some(invalid.object.clone()),
            Self::Synced | Self::Connection(_) => None,
        }
    }
}

impl State {
    /// Takes one piece of news into account; says whether what `compile` sees may have changed.
    pub fn apply(&mut self, update: Update) -> Changed {
        if let Some(object) = update.object() {
            self.invalid.remove(&object);
            self.flaws.remove(&object);
        }
        match update {
            Update::Apply(object) => self.put(object),
            Update::Flawed(object, flaws) => {
                self.flaws.insert(object.reference(), flaws);
                self.put(object)
            }
            Update::Delete(name) => self.remove(&name),
            Update::Invalid(invalid) => {
                let changed = self.remove(&invalid.object);
                self.invalid.insert(invalid.object.clone(), invalid);
                changed
            }
            Update::Synced => Changed::from(!std::mem::replace(&mut self.synced, true)),
            Update::Connection(connection) => {
                self.connection = connection;
                Changed::No
            }
        }
    }

    fn put(&mut self, object: Object) -> Changed {
        match object {
            Object::Service(name, o) => put(&mut self.services, name, o),
            Object::EndpointSlice(name, o) => put(&mut self.slices, name, o),
            Object::Pod(name, o) => put(&mut self.pods, name, o),
            Object::Node(name, o) => put(&mut self.nodes, name, o),
            Object::Namespace(name, o) => put(&mut self.namespaces, name, o),
            Object::NetworkPolicy(name, o) => put(&mut self.policies, name, o),
            Object::ServiceCidr(name, o) => put(&mut self.service_cidrs, name, o),
            Object::Workload(name, o) => put(&mut self.workloads, name, o),
        }
    }

    fn remove(&mut self, object: &ObjectRef) -> Changed {
        let ObjectRef { kind, name } = object;
        Changed::from(match kind {
            Kind::Service => self.services.remove(name).is_some(),
            Kind::EndpointSlice => self.slices.remove(name).is_some(),
            Kind::Pod => self.pods.remove(name).is_some(),
            Kind::Node => self.nodes.remove(name).is_some(),
            Kind::Namespace => self.namespaces.remove(name).is_some(),
            Kind::NetworkPolicy => self.policies.remove(name).is_some(),
            Kind::ServiceCIDR => self.service_cidrs.remove(name).is_some(),
            _ => self
                .workloads
                .remove(&WorkloadName {
                    kind: *kind,
                    name: name.clone(),
                })
                .is_some(),
        })
    }

    /// The pods that a Service's selector picks: of its namespace, and with every label that it asks for.
    pub fn pods_of<'a>(
        &'a self,
        name: &'a ObjectName,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
        let here = self
            .pods
            .iter()
            .filter(|(pod, _)| pod.namespace == name.namespace && !service.selector.is_empty());
        here.filter(|(_, pod)| {
            service
                .selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    }

    /// The slices of each Service.
    pub fn slices_by_service(&self) -> BTreeMap<&ObjectName, Vec<&EndpointSlice>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in self.slices.values() {
            found.entry(&slice.service).or_default().push(slice);
        }
        found
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, name: K, object: V) -> Changed {
    let changed = map.get(&name) != Some(&object);
    map.insert(name, object);
    Changed::from(changed)
}

/// Whether an update changed something that `compile` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// Compile again.
    Yes,
    /// All as before.
    No,
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Self {
        if changed { Self::Yes } else { Self::No }
    }
}

/// Why an object cannot be used. It costs that object, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Which object.
    pub object: ObjectRef,
    /// The path of the field, as `kubectl explain` writes it.
    pub field: String,
    /// What is wrong with it, in words.
    pub why: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.why)
    }
}

impl std::error::Error for Invalid {}
