//! The operator's settings, and the facts about this host that reach the maps with them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ServiceOptions;
use super::word::words;

/// The operator's settings, and facts that only `main` and the running kernel have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name of this node's Node object.
    pub node_name: Arc<str>,
    /// The addresses that serve nodePorts (V8).
    pub nodeport_addresses: NodePortAddresses,
    /// Prefixes of the pod network, in addition to the nodes' podCIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges of the cluster, in addition to those of ServiceCIDR objects.
    pub service_cidrs: Vec<IpNet>,
    /// Source ports for masquerade (V12).
    pub masquerade_ports: PortRange,
    /// How new connections are refused where a Local policy finds no backend on this node.
    pub local_refusal: LocalRefusal,
    /// How translated packets treat the host's firewall rules for forwarded packets.
    pub host_firewall: HostFirewall,
    /// How packets of a pod are treated before its policy is known (P31).
    pub pod_start: PodStart,
    /// How connections are refused that a NetworkPolicy denies.
    pub policy_deny: Refusal,
    /// Firewall rules for forwarded packets, as found when the agent started.
    pub forward_firewall: ForwardFirewall,
    /// Lifetimes of flows (V18).
    pub timeouts: Timeouts,
    /// Key of the hash that chooses backends (V15). `main` draws it once; restarts keep it.
    pub secret: u64,
    /// Options of Services whose annotations do not set them.
    pub service_options: ServiceOptions,
    /// Jiffies per second of the running kernel.
    pub hz: u32,
}

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
            service_options: ServiceOptions::default(),
            hz: 0,
        }
    }
}

impl Settings {
    /// Returns how translated packets leave. The packet path gets it by `compile::config` only.
    pub fn translated_way(&self) -> TranslatedWay {
        match (self.host_firewall, self.forward_firewall) {
            (HostFirewall::Respect, ForwardFirewall::Present) => TranslatedWay::Stack,
            (HostFirewall::Bypass, _) | (HostFirewall::Respect, ForwardFirewall::Absent) => {
                TranslatedWay::Redirect
            }
        }
    }
}

words! {
    /// How translated packets treat this host's firewall rules for forwarded packets.
    #[derive(Default)]
    pub enum HostFirewall {
        #[default]
        Bypass = "bypass": "redirected packets skip such rules; the log names the rules",
        Respect = "respect": "where such rules exist, translated packets go through the stack and its forward hooks",
    }
}

words! {
    /// How packets of a pod are treated before its policy is known, once any NetworkPolicy exists
    /// (P31).
    #[derive(Default)]
    pub enum PodStart {
        #[default]
        Deny = "deny": "dropped, except packets that the pod's own node sends it",
        Allow = "allow": "passed until the policy is known",
    }
}

/// Rules of this host that refuse forwarded packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardFirewall {
    /// None was found.
    #[default]
    Absent,
    /// At least one was found.
    Present,
}

/// How translated packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslatedWay {
    /// Redirected to their device.
    Redirect,
    /// Through the stack and its forward hooks.
    Stack,
}

/// The addresses of this host that serve nodePorts (V8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's own InternalIPs, one per family, else its ExternalIPs.
    Primary,
    /// Every address within these prefixes. A family that the list does not mention is served on
    /// all its addresses.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Returns true if `addr`, an address of this host, serves nodePorts under these prefixes: it
    /// lies in one of them, or none of them is of its family.
    pub fn have_within(prefixes: &[IpNet], addr: IpAddr) -> bool {
        let mut same_family = prefixes
            .iter()
            .filter(|p| p.addr().is_ipv4() == addr.is_ipv4())
            .peekable();
        same_family.peek().is_none() || same_family.any(|prefix| prefix.contains(&addr))
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        text.split(',')
            .map(|part| match part.trim().parse::<IpNet>() {
                Ok(prefix) => Ok(prefix.trunc()),
                Err(_) => Err(format!(
                    "`{part}` is neither a CIDR nor the word primary alone"
                )),
            })
            .collect::<Result<_, _>>()
            .map(Self::Within)
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
    /// Returns the number of ports.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Returns true if `port` lies in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("invalid range of ports `{text}`: expected for example 30000-32767");
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let [first, last] = [first, last].map(|n| n.trim().parse::<u16>().ok().filter(|&n| n > 0));
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(error()),
        }
    }
}

/// How new connections from outside are refused where the policy is Local and only other nodes
/// have backends.
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

words! {
    /// How a new connection is refused.
    pub enum Refusal {
        Reject = "reject": "answered with an ICMP error; the client fails at once",
        Drop = "drop": "dropped in silence; the client tries again until its timeout",
    }
}

/// Lifetimes of flows after their last packet, in seconds (V18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Half-open: no answer yet (TCP and UDP).
    pub opening: u32,
    /// TCP, established.
    pub tcp: u32,
    /// TCP, one end has sent FIN.
    pub tcp_close_wait: u32,
    /// TCP, closed by both or reset. As long as TIME_WAIT while the table has room.
    pub tcp_closed: u32,
    /// UDP, answered.
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
