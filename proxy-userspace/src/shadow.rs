//! nodePorts that take traffic away from a listener or a hostPort of this host: found, and reported
//! to the Service's owner (V8).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proxy_common::net::Protocol;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::compile::{node_port_addresses, service_port_name};
use crate::contents::{Contents, Frontend};
use crate::events::{Events, Warning, Warnings};
use crate::listeners::{Listener, listeners_on};
use crate::model::{Family, HostPort, Kind, ObjectName, ObjectRef, Snapshot};

/// Interval of looks: listeners come and go without notice.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The addresses that serve nodePorts, and the hostPorts on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// The Service of each nodePort.
    pub owners: BTreeMap<(Family, u16, Protocol), ObjectName>,
    /// The addresses that they are served on (V8).
    pub addresses: BTreeSet<IpAddr>,
    /// hostPorts of pods of this node.
    pub host_ports: Vec<(ObjectName, Protocol, HostPort)>,
}

/// Returns the nodePorts that `contents` gives to a Service.
pub fn node_ports(snapshot: &Snapshot, contents: &Contents) -> NodePorts {
    let mut owners = BTreeMap::new();
    for (name, service) in &snapshot.state.services {
        for port in &service.ports {
            let Some(number) = port.node_port else {
                continue;
            };
            let id = service_port_name(name, port);
            for (family, addr) in [
                (Family::V4, IpAddr::from([0; 4])),
                (Family::V6, IpAddr::from([0; 16])),
            ] {
                let frontend = Frontend {
                    addr,
                    port: number,
                    protocol: port.protocol,
                };
                if contents
                    .frontends
                    .get(&frontend)
                    .is_some_and(|target| target.service == id)
                {
                    owners.insert((family, number, port.protocol), name.clone());
                }
            }
        }
    }
    NodePorts {
        owners,
        addresses: node_port_addresses(snapshot),
        host_ports: host_ports(snapshot),
    }
}

/// Returns the hostPorts of a pod; none for a pod in the host's network, which has listeners.
fn host_ports(snapshot: &Snapshot) -> Vec<(ObjectName, Protocol, HostPort)> {
    let node = Some(&snapshot.settings.node_name);
    let here = snapshot
        .state
        .pods
        .iter()
        .filter(|(_, pod)| pod.node.as_ref() == node && !pod.host_network && !pod.finished());
    here.flat_map(|(name, pod)| {
        pod.ports
            .iter()
            .filter_map(|p| Some((name.clone(), p.protocol, p.host_port?)))
    })
    .collect()
}

impl NodePorts {
    /// The Service that takes this address and port; an unspecified address is every one, `::` of
    /// both families.
    fn owner_at(&self, addr: Option<IpAddr>, port: u16, protocol: Protocol) -> Option<&ObjectName> {
        let served = |family: Family| match addr.map(|addr| addr.to_canonical()) {
            None => true,
            Some(IpAddr::V6(v6)) if v6.is_unspecified() => true,
            Some(addr) if addr.is_unspecified() => family == Family::of(addr),
            Some(addr) => family == Family::of(addr) && self.addresses.contains(&addr),
        };
        let mut served = Family::ALL.into_iter().filter(|family| served(*family));
        served.find_map(|family| self.owners.get(&(family, port, protocol)))
    }

    fn has(&self, port: u16) -> bool {
        self.owners.keys().any(|(_, number, _)| *number == port)
    }
}

/// Returns the warnings for the owners.
pub fn shadowed(ports: &NodePorts, listeners: &[Listener]) -> BTreeSet<Warning> {
    let warning = |service: &ObjectName, note: String| Warning {
        object: ObjectRef {
            kind: Kind::Service,
            name: service.clone(),
        },
        reason: "NodePortTakesOver",
        action: "Serve",
        note,
    };
    let by_listener = listeners.iter().filter_map(|listener| {
        let Listener {
            addr,
            protocol,
            process,
        } = listener;
        let service = ports.owner_at(Some(addr.ip()), addr.port(), *protocol)?;
        let who = process
            .as_ref()
            .map_or("a process".to_owned(), |(name, _)| {
                format!("process {name}")
            });
        let port = format!("nodePort {}/{}", addr.port(), protocol.name());
        Some(warning(
            service,
            format!(
                "{who} of this host listens on {addr}, but {port} leads clients to the Service"
            ),
        ))
    });
    let by_host_port = ports.host_ports.iter().filter_map(|(pod, protocol, HostPort { addr, port })| {
        let service = ports.owner_at(*addr, *port, *protocol)?;
        let port = format!("{port}/{}", protocol.name());
        Some(warning(service, format!("pod {pod} has hostPort {port}, but nodePort {port} leads clients to the Service")))
    });
    by_listener.chain(by_host_port).collect()
}

/// Looks whenever the nodePorts change, and at an interval.
///
/// # Errors
/// If the channel of nodePorts is closed.
pub async fn run(mut ports: watch::Receiver<NodePorts>, events: Events) -> Result<()> {
    let mut warnings = Warnings::new(events);
    loop {
        let now = ports.borrow_and_update().clone();
        let look = tokio::task::spawn_blocking(move || look(&now))
            .await
            .context("look for listeners")?;
        match look {
            Ok(found) => warnings.are(found),
            Err(error) => debug!(
                error = format!("{error:#}"),
                "cannot list listeners on nodePorts"
            ),
        }
        tokio::select! {
            changed = ports.changed() => if changed.is_err() {
                bail!("the channel of nodePorts is closed");
            },
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

fn look(ports: &NodePorts) -> Result<BTreeSet<Warning>> {
    let listeners = if ports.owners.is_empty() {
        Vec::new()
    } else {
        listeners_on(|port| ports.has(port))?
    };
    Ok(shadowed(ports, &listeners))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> NodePorts {
        let web = ObjectName::new("shop", "web");
        let pod = ObjectName::new("shop", "dns-1");
        let host_port = |addr: Option<&str>, port| HostPort {
            addr: addr.map(|a| a.parse().expect("an address")),
            port,
        };
        NodePorts {
            owners: [
                ((Family::V4, 30080, Protocol::TCP), web.clone()),
                ((Family::V4, 30053, Protocol::UDP), web),
            ]
            .into(),
            addresses: ["192.0.2.1".parse().expect("an address")].into(),
            host_ports: vec![
                (pod.clone(), Protocol::UDP, host_port(None, 30053)),
                (pod.clone(), Protocol::TCP, host_port(None, 30053)),
                (pod, Protocol::UDP, host_port(Some("198.51.100.9"), 30053)),
            ],
        }
    }

    fn notes(listeners: &[(&str, Protocol)]) -> Vec<String> {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(addr, protocol): &(&str, Protocol)| Listener {
                addr: addr.parse().expect("an address"),
                protocol: *protocol,
                process: Some(("nginx".to_owned(), 42)),
            })
            .collect();
        let ports = NodePorts {
            host_ports: Vec::new(),
            ..ports()
        };
        shadowed(&ports, &listeners)
            .into_iter()
            .map(|warning| warning.note)
            .collect()
    }

    #[test]
    fn v8_a_listener_on_a_node_port_is_told_with_its_process() {
        let expected = "process nginx of this host listens on 0.0.0.0:30080, but nodePort 30080/TCP leads clients to the Service";
        assert_eq!(notes(&[("0.0.0.0:30080", Protocol::TCP)]), [expected]);
        for addr in ["[::]:30080", "192.0.2.1:30080", "[::ffff:192.0.2.1]:30080"] {
            assert_eq!(notes(&[(addr, Protocol::TCP)]).len(), 1, "{addr}");
        }
    }

    #[test]
    fn v8_a_listener_that_loses_nothing_is_not_told() {
        for (addr, protocol) in [
            ("127.0.0.1:30080", Protocol::TCP),
            ("198.51.100.9:30080", Protocol::TCP),
            ("[2001:db8::1]:30080", Protocol::TCP),
            ("0.0.0.0:30080", Protocol::UDP),
            ("0.0.0.0:30081", Protocol::TCP),
        ] {
            assert_eq!(notes(&[(addr, protocol)]), [""; 0], "{addr}");
        }
    }

    #[test]
    fn v8_a_host_port_on_a_node_port_is_told_with_its_pod() {
        let found = shadowed(&ports(), &[]);
        assert_eq!(
            found
                .iter()
                .map(|warning| warning.note.as_str())
                .collect::<Vec<_>>(),
            [
                "pod shop/dns-1 has hostPort 30053/UDP, but nodePort 30053/UDP leads clients to the Service"
            ]
        );
    }
}
