//! The connections between two ends: one for each pair of addresses.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::backends::{backends, service_at, service_named};
use super::party::{Party, Port, Who};
use super::typed::{End, Target};
use crate::model::{ObjectName, Pod, Proxied, Service, State};

/// One connection to judge.
pub(super) struct Pair<'a> {
    pub from: Party<'a>,
    pub to: Party<'a>,
    pub port: Port,
}

/// Returns every connection to judge, by families (P23) and by a Service's backends (P28).
///
/// # Errors
/// If an end does not exist, or no address pair is of one family.
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

/// Returns a note if the destination is a nodePort, since the policies that judge depend on the
/// node that translates (P28).
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

/// Returns the port numbers at an end: the number itself, or those of the pod's ports of that name.
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
