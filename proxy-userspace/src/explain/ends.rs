//! The ends of a connection as they are typed, and what the objects make of them: a pod, a node, or
//! an address outside.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use proxy_common::net::Protocol;

use crate::model::{ObjectName, Phase, Pod, Proxied, Service, ServicePort, State};

/// An end as it is typed: `NAMESPACE/POD`, `POD`, an address, or `svc/NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod by name.
    Pod(ObjectName),
    /// An address, whoever has it.
    Address(IpAddr),
    /// The backends of a Service.
    Service(ObjectName),
}

/// A destination as it is typed: an end, then `:PORT` and, if it is not TCP, `/PROTOCOL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The end.
    pub end: End,
    /// A number, or the name of a container's port; of a Service, its own port's.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
        {
            return Ok(Self::Address(addr.to_canonical()));
        }
        let error = || {
            format!("`{text}` is neither NAMESPACE/POD nor an address nor svc/NAMESPACE/SERVICE")
        };
        let parts: Vec<_> = text.split('/').collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || part.contains([':', ' ']))
        {
            return Err(error());
        }
        match *parts.as_slice() {
            ["svc" | "service", namespace, name] => {
                Ok(Self::Service(ObjectName::new(namespace, name)))
            }
            ["pod", namespace, name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            ["svc" | "service", name] => Ok(Self::Service(ObjectName::new("default", name))),
            ["pod", name] | [name] => Ok(Self::Pod(ObjectName::new("default", name))),
            [namespace, name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            _ => Err(error()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "`{text}` is no end with a port such as shop/db:5432, svc/shop/db:5432 or 10.0.0.1:53/udp"
            )
        };
        let (end, port) = text.rsplit_once(':').ok_or_else(error)?;
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => return Err(format!("`{protocol}` is no protocol: TCP, UDP or SCTP")),
        };
        // `fd00::1` without brackets would lose its last group to the port.
        if port.is_empty()
            || port.parse::<u16>() == Ok(0)
            || end.contains(':') && !end.ends_with(']')
        {
            return Err(error());
        }
        Ok(Self {
            end: end.parse()?,
            port: port.to_owned(),
            protocol,
        })
    }
}

/// A destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number at the pod (P14).
    pub number: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.name())
    }
}

/// An end as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Its address; none while it has none, so that no ipBlock matches it.
    pub addr: Option<IpAddr>,
    /// The owner of the address.
    pub who: Who<'a>,
}

/// The owner of an address.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// A pod on the pod network.
    Pod(&'a ObjectName, &'a Pod),
    /// A pod in its node's network: the node itself (P17).
    HostPod(&'a ObjectName, &'a Pod),
    /// A node.
    Node(&'a str),
    /// A pod that has ended (P20): nobody.
    Ended(&'a ObjectName),
    /// Anything else, in or out of the cluster.
    Outside,
}

impl<'a> Party<'a> {
    /// Returns the owner of an address (P17, P20, P22).
    pub fn at(state: &'a State, addr: IpAddr) -> Self {
        let of_node = |node: &crate::model::Node| {
            node.internal_ips.contains(&addr) || node.external_ips.contains(&addr)
        };
        let pods = || {
            state
                .pods
                .iter()
                .filter(|(_, pod)| pod.addresses.contains(&addr) && !pod.finished())
        };
        let owner = pods().filter(|(_, pod)| !pod.host_network);
        let who = if let Some((name, _)) = state.nodes.iter().find(|(_, node)| of_node(node)) {
            Who::Node(&name.name)
        } else if let Some((name, pod)) = owner
            .max_by_key(|(name, pod)| (pod.phase == Phase::Running, pod.created, Reverse(*name)))
        {
            Who::Pod(name, pod)
        } else if let Some((name, pod)) = pods().next() {
            Who::HostPod(name, pod)
        } else {
            Who::Outside
        };
        Self {
            addr: Some(addr),
            who,
        }
    }

    /// The pod, if policies take it for one.
    pub fn pod(&self) -> Option<(&'a ObjectName, &'a Pod)> {
        match self.who {
            Who::Pod(name, pod) => Some((name, pod)),
            Who::HostPod(..) | Who::Node(_) | Who::Ended(_) | Who::Outside => None,
        }
    }

    /// The node that it is.
    pub fn node(&self) -> Option<&'a str> {
        match self.who {
            Who::Node(node) => Some(node),
            Who::HostPod(_, pod) => pod.node.as_deref(),
            Who::Pod(..) | Who::Ended(_) | Who::Outside => None,
        }
    }

    /// Describes the end if it is not a pod of the pod network.
    pub(super) fn kind(&self) -> String {
        match self.who {
            Who::Pod(name, _) => format!("{name} is a pod"),
            Who::HostPod(name, _) => format!("{name} is in the network of its node"),
            Who::Node(node) => format!("{node} is a node"),
            Who::Ended(name) => format!("{name} has ended"),
            Who::Outside => format!("{self} is no pod"),
        }
    }
}

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.who, self.addr) {
            (Who::Pod(name, _) | Who::HostPod(name, _) | Who::Ended(name), _) => {
                write!(f, "{name}")
            }
            (Who::Node(node), _) => write!(f, "node {node}"),
            (Who::Outside, Some(IpAddr::V6(addr))) => write!(f, "[{addr}]"),
            (Who::Outside, Some(addr)) => write!(f, "{addr}"),
            (Who::Outside, None) => write!(f, "nobody"),
        }
    }
}

/// One connection that is asked about.
pub(super) struct Pair<'a> {
    pub from: Party<'a>,
    pub to: Party<'a>,
    pub port: Port,
}

/// Every connection that is asked about, by families (P23) and by a Service's backends (P28).
pub(super) fn pairs<'a>(
    state: &'a State,
    from: &End,
    to: &Target,
    notes: &mut Vec<String>,
) -> Result<Vec<Pair<'a>>> {
    let sources = parties(state, from, notes)?;
    let service = match &to.end {
        End::Service(name) => Some((service_named(state, name)?, None)),
        End::Address(addr) => service_at(state, *addr).map(|service| (service, Some(*addr))),
        End::Pod(_) => None,
    };
    let targets: Vec<(Party<'_>, Port)> = match service {
        Some(((name, service), addr)) => {
            notes.extend(addr.map(|addr| {
                format!("{addr} is the cluster IP of Service {name}; judged are its backends")
            }));
            backends(state, name, service, to)?
        }
        None => {
            let parties = parties(state, &to.end, notes)?;
            notes.extend(parties.iter().find_map(|party| node_port(state, party, to)));
            let ports = parties
                .first()
                .map(|party| numbers(party, to))
                .transpose()?
                .unwrap_or_default();
            let with_ports = |party| {
                ports.iter().map(move |&number| {
                    (
                        party,
                        Port {
                            number,
                            protocol: to.protocol,
                        },
                    )
                })
            };
            parties.into_iter().flat_map(with_ports).collect()
        }
    };
    let family = |a: &Party<'_>, b: &Party<'_>| {
        a.addr
            .zip(b.addr)
            .is_none_or(|(a, b)| a.is_ipv4() == b.is_ipv4())
    };
    let matching = |from: &Party<'a>| {
        let from = *from;
        targets
            .iter()
            .filter(move |(to, _)| family(&from, to))
            .map(move |(to, port)| Pair {
                from,
                to: *to,
                port: *port,
            })
    };
    let pairs: Vec<_> = sources.iter().flat_map(matching).collect();
    ensure!(
        !pairs.is_empty(),
        "the two ends have no address of one family: IPv4 reaches IPv4 only, IPv6 IPv6"
    );
    Ok(pairs)
}

fn parties<'a>(state: &'a State, end: &End, notes: &mut Vec<String>) -> Result<Vec<Party<'a>>> {
    match end {
        End::Service(name) => bail!("Service {name} connects to nobody: name a pod or an address"),
        End::Address(addr) => {
            let party = Party::at(state, *addr);
            notes.extend(
                (!matches!(party.who, Who::Outside))
                    .then(|| format!("{addr} is {}", owner(&party))),
            );
            Ok(vec![party])
        }
        End::Pod(name) => {
            let (name, pod) = pod_named(state, name)?;
            let who = match (pod.finished(), pod.host_network) {
                (true, _) => Who::Ended(name),
                (false, true) => Who::HostPod(name, pod),
                (false, false) => Who::Pod(name, pod),
            };
            let remark = match who {
                Who::Ended(_) => {
                    Some("has ended: no policy selects it, it is nobody's peer, and its address may be another's".to_owned())
                }
                Who::HostPod(..) => Some("has its node's network: to policies it is the node".to_owned()),
                _ if pod.addresses.is_empty() => Some("has no address yet: no ipBlock matches it".to_owned()),
                Who::Pod(..) | Who::Node(_) | Who::Outside => None,
            };
            notes.extend(remark.map(|remark| format!("pod {name} {remark}")));
            Ok(match pod.addresses.as_slice() {
                [] => vec![Party { addr: None, who }],
                all => all
                    .iter()
                    .map(|addr| Party {
                        addr: Some(*addr),
                        who,
                    })
                    .collect(),
            })
        }
    }
}

/// P28: which of the two is judged depends on the node that translates.
fn node_port(state: &State, to: &Party<'_>, asked: &Target) -> Option<String> {
    let (node, number) = (to.node()?, asked.port.parse::<u16>().ok()?);
    let has = |service: &Service| {
        service
            .ports
            .iter()
            .any(|p| p.node_port == Some(number) && p.protocol == asked.protocol)
    };
    let (service, _) = state
        .services
        .iter()
        .find(|(_, service)| service.proxied == Proxied::Yes && has(service))?;
    Some(format!(
        "{number} is a nodePort of Service {service}: judged here is the way to node {node}; what its backends say, and what pods of \
         that node may, is asked by svc/{service}"
    ))
}

fn owner(party: &Party<'_>) -> String {
    match party.who {
        Who::Pod(name, _) => format!("pod {name}"),
        Who::HostPod(name, _) => format!("pod {name}, which has its node's network"),
        Who::Node(_) | Who::Ended(_) | Who::Outside => party.to_string(),
    }
}

fn pod_named<'a>(state: &'a State, name: &ObjectName) -> Result<(&'a ObjectName, &'a Pod)> {
    if let Some(found) = state.pods.get_key_value(name) {
        return Ok(found);
    }
    let there: Vec<_> = state
        .pods
        .keys()
        .filter(|pod| pod.namespace == name.namespace)
        .map(|pod| &*pod.name)
        .collect();
    if there.is_empty() {
        bail!("no pod {name}: namespace {} has no pods", name.namespace);
    }
    let mut nearest = there;
    nearest.sort_by_key(|other| {
        (
            !other.starts_with(&*name.name),
            strsim::levenshtein(other, &name.name),
        )
    });
    nearest.truncate(3);
    bail!("no pod {name}; nearest are {}", nearest.join(", "))
}

/// The numbers that a port means at an end: its own, or those that the pod's containers call so.
fn numbers(party: &Party<'_>, to: &Target) -> Result<Vec<u16>> {
    if let Ok(number) = to.port.parse() {
        return Ok(vec![number]);
    }
    let (Who::Pod(name, pod) | Who::HostPod(name, pod)) = party.who else {
        bail!(
            "only pods' ports have names: give the number of port `{}`",
            to.port
        )
    };
    let named = pod
        .ports
        .iter()
        .filter(|p| p.name.as_deref() == Some(&to.port) && p.protocol == to.protocol);
    let found: BTreeSet<_> = named.map(|p| p.port).collect();
    ensure!(
        !found.is_empty(),
        "no container of pod {name} has a port named `{}` with protocol {}",
        to.port,
        to.protocol.name()
    );
    Ok(found.into_iter().collect())
}

fn service_named<'a>(state: &'a State, name: &ObjectName) -> Result<(&'a ObjectName, &'a Service)> {
    state
        .services
        .get_key_value(name)
        .ok_or_else(|| anyhow::anyhow!("no Service {name}"))
}

/// The backends that answer the cluster's pods' questions for names, where the usual Service is
/// there.
pub(crate) fn dns(state: &State) -> Vec<(Party<'_>, Port)> {
    let name = ObjectName::new("kube-system", "kube-dns");
    let to = Target {
        end: End::Service(name.clone()),
        port: "53".to_owned(),
        protocol: Protocol::UDP,
    };
    state
        .services
        .get(&name)
        .and_then(|service| backends(state, &name, service, &to).ok())
        .unwrap_or_default()
}

fn service_at(state: &State, addr: IpAddr) -> Option<(&ObjectName, &Service)> {
    state
        .services
        .iter()
        .find(|(_, service)| service.cluster_ips.contains(&addr))
}

/// P28: the ready endpoints behind a Service's port, or those that still serve; of one family if a
/// cluster IP was asked for.
fn backends<'a>(
    state: &'a State,
    name: &ObjectName,
    service: &Service,
    to: &Target,
) -> Result<Vec<(Party<'a>, Port)>> {
    let port = service_port(name, service, to)?;
    let slices = state.slices.values().filter(|slice| slice.service == *name);
    let mut found: BTreeSet<(Readiness, SocketAddr)> = BTreeSet::new();
    for slice in slices {
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
            .map(|p| p.port);
        for number in numbers {
            let endpoints = slice.endpoints.iter().filter(|e| e.ready || e.serving);
            let readiness = |ready: bool| {
                if ready {
                    Readiness::Ready
                } else {
                    Readiness::Serving
                }
            };
            found.extend(endpoints.map(|e| (readiness(e.ready), SocketAddr::new(e.addr, number))));
        }
    }
    let best = found.first().map(|(readiness, _)| *readiness);
    let of_family = |addr: &SocketAddr| !matches!(to.end, End::Address(asked) if asked.is_ipv4() != addr.is_ipv4());
    let chosen = found
        .into_iter()
        .filter(|(readiness, addr)| Some(*readiness) == best && of_family(addr));
    let backends: Vec<_> = chosen
        .map(|(_, addr)| {
            (
                Party::at(state, addr.ip()),
                Port {
                    number: addr.port(),
                    protocol: port.protocol,
                },
            )
        })
        .collect();
    ensure!(
        !backends.is_empty(),
        "Service {name} has no endpoint that is ready: everybody is refused there, whatever policies say"
    );
    Ok(backends)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    Ready,
    Serving,
}

fn service_port<'a>(
    name: &ObjectName,
    service: &'a Service,
    to: &Target,
) -> Result<&'a ServicePort> {
    let is = |p: &&ServicePort| {
        p.protocol == to.protocol && (*p.name == *to.port || to.port.parse() == Ok(p.port))
    };
    if let Some(port) = service.ports.iter().find(is) {
        return Ok(port);
    }
    let port = |p: &ServicePort| match &*p.name {
        "" => format!("{}/{}", p.port, p.protocol.name()),
        name => format!("{}/{} ({name})", p.port, p.protocol.name()),
    };
    let there: Vec<_> = service.ports.iter().map(port).collect();
    let asked: Arc<str> = format!("{}/{}", to.port, to.protocol.name()).into();
    bail!(
        "Service {name} has no port {asked}; it has {}",
        there.join(", ")
    )
}
