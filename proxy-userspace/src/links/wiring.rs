//! The devices of the pods, and the findings as a whole.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use proxy_common::net::IfIndex;
use rtnetlink::packet_route::AddressFamily;
use tokio::time::Instant;
use tracing::{debug, info};

use super::facts::{Facts, Kind, Link, Mac, Neighbour};
use super::netlink::Netlink;
use super::node_devices::{device, host_addresses, is_port_of, node_devices};
use super::unclaimed::unclaimed;
use super::{Driver, Found, Wanted};
use crate::{gate, model};

/// Pause between two neighbour requests for one address.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// The pods found so far: each keeps its device until the device or the pod is removed.
#[derive(Debug, Default)]
pub struct Wiring {
    pods: BTreeMap<IpAddr, IfIndex>,
    /// The ports of bridges at which an earlier agent found pods; used while the device is still a
    /// port of that bridge.
    earlier: BTreeMap<IpAddr, IfIndex>,
    /// The time of the last neighbour request for an address.
    asked: BTreeMap<IpAddr, Instant>,
}

impl Wiring {
    /// Begins with the pods' devices that an earlier agent found.
    pub fn after(earlier: BTreeMap<IpAddr, IfIndex>) -> Self {
        Self {
            earlier,
            ..Self::default()
        }
    }

    /// Returns true if a pod's device has not been found yet.
    pub fn missing(&self, wanted: &Wanted) -> bool {
        wanted.pods.iter().any(|addr| !self.pods.contains_key(addr))
    }

    /// Looks for the devices of pods that have none yet, and forgets those that are gone.
    pub async fn find_pods(
        &mut self,
        netlink: &Netlink,
        facts: &Facts,
        wanted: &Wanted,
    ) -> Result<()> {
        let is_veth = |device: &IfIndex| {
            facts
                .links
                .get(device)
                .is_some_and(|link| link.kind == Kind::Veth)
        };
        self.asked.retain(|addr, _| wanted.pods.contains(addr));
        self.pods
            .retain(|addr, device| wanted.pods.contains(addr) && is_veth(device));
        let mut bridged = BTreeMap::new();
        for addr in &wanted.pods {
            if self.pods.contains_key(addr) {
                continue;
            }
            let Some(device) = netlink.link_to(*addr).await else {
                continue;
            };
            match facts.links.get(&device).map(|link| link.kind) {
                Some(Kind::Veth) => self.found_pod(*addr, device),
                Some(Kind::Bridge) => match self
                    .earlier
                    .remove(addr)
                    .filter(|port| is_port_of(facts, *port, device))
                {
                    Some(port) => self.found_pod(*addr, port),
                    None => drop(bridged.insert(*addr, device)),
                },
                _ => {
                    debug!(%addr, device = device.0, "the route to the pod leads to neither a veth nor a bridge")
                }
            }
        }
        if !bridged.is_empty() {
            self.find_bridged(netlink, facts, bridged).await?;
        }
        Ok(())
    }

    async fn find_bridged(
        &mut self,
        netlink: &Netlink,
        facts: &Facts,
        pods: BTreeMap<IpAddr, IfIndex>,
    ) -> Result<()> {
        let mut neighbours = netlink.neighbours(AddressFamily::Inet).await?;
        neighbours.extend(netlink.neighbours(AddressFamily::Inet6).await?);
        let ports = netlink.neighbours(AddressFamily::Bridge).await?;
        for (addr, bridge) in pods {
            let mac = mac_of(&neighbours, bridge, addr);
            let port = mac.and_then(|mac| port_of(&ports, bridge, mac));
            match port.filter(|port| is_port_of(facts, *port, bridge)) {
                Some(port) => self.found_pod(addr, port),
                None => self.ask(netlink, bridge, addr, mac).await?,
            }
        }
        Ok(())
    }

    /// Sends a neighbour request, with a pause between two: our requests change neighbours, and
    /// each change leads to another look.
    async fn ask(
        &mut self,
        netlink: &Netlink,
        bridge: IfIndex,
        addr: IpAddr,
        mac: Option<&Mac>,
    ) -> Result<()> {
        let now = Instant::now();
        if self
            .asked
            .get(&addr)
            .is_some_and(|last| now.duration_since(*last) < ASK_AGAIN)
        {
            return Ok(());
        }
        self.asked.insert(addr, now);
        netlink.resolve(bridge, addr, mac).await
    }

    fn found_pod(&mut self, addr: IpAddr, device: IfIndex) {
        info!(%addr, device = device.0, "found the pod's device");
        self.asked.remove(&addr);
        self.pods.insert(addr, device);
    }

    /// Returns the findings of the facts and the pods found so far.
    pub fn found(&self, facts: &Facts, wanted: &Wanted) -> Found {
        let mut ours = node_devices(facts, wanted, &self.pods);
        let gate = facts
            .links
            .iter()
            .find(|(_, link)| is_gate(link))
            .map(|(index, _)| *index);
        ours.extend(gate);
        let devices = ours
            .iter()
            .filter_map(|index| Some((*index, device(facts, wanted, &self.pods, *index)?)))
            .collect();
        let unclaimed = unclaimed(facts, wanted, &self.pods, &ours);
        // V21: processes of this host reach its nodePorts by loopback.
        ours.extend(
            gate.and(
                facts
                    .links
                    .contains_key(&IfIndex::LOOPBACK)
                    .then_some(IfIndex::LOOPBACK),
            ),
        );
        let name = |index: &IfIndex| Some((*index, facts.links.get(index)?.name.clone()));
        Found {
            wanted: wanted.clone(),
            present: facts.links.keys().copied().collect(),
            names: ours
                .iter()
                .chain(self.pods.values())
                .chain(&unclaimed)
                .filter_map(name)
                .collect(),
            drivers: ours
                .iter()
                .filter_map(|index| Some((*index, driver(facts.links.get(index)?))))
                .collect(),
            unclaimed,
            links: model::Links {
                pods: self.pods.clone(),
                devices,
                gate,
                host_addresses: host_addresses(facts),
            },
        }
    }
}

fn is_gate(link: &Link) -> bool {
    link.kind == Kind::Veth && link.name == gate::EXIT
}

/// Returns the driver of a device. The gate counts as a tunnel, without XDP: packets that this host
/// sends by it have partial checksums.
fn driver(link: &Link) -> Driver {
    match link.kind {
        Kind::Loopback => Driver::Loopback,
        _ if is_gate(link) => Driver::Tunnel,
        Kind::Veth | Kind::Bridge | Kind::Other => link.driver,
    }
}

fn mac_of(neighbours: &[Neighbour], bridge: IfIndex, addr: IpAddr) -> Option<&Mac> {
    neighbours
        .iter()
        .find(|n| n.device == bridge && n.addr == Some(addr))?
        .mac
        .as_ref()
}

fn port_of(ports: &[Neighbour], bridge: IfIndex, mac: &Mac) -> Option<IfIndex> {
    Some(
        ports
            .iter()
            .find(|p| p.bridge == Some(bridge) && p.mac.as_ref() == Some(mac))?
            .device,
    )
}

#[cfg(test)]
mod tests;
