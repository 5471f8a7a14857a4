//! Which devices are ours, what they masquerade with, and where the pods are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use proxy_common::net::{Addr4, Addr6, Device, IfIndex};
use rtnetlink::packet_route::AddressFamily;
use tokio::time::Instant;
use tracing::{debug, info};

use super::facts::{Facts, Kind, Link, Mac, Neighbour, Preferred, Route, Via};
use super::netlink::Netlink;
use super::unclaimed::unclaimed;
use super::{Driver, Found, Wanted};
use crate::{gate, model};

/// Devices with addresses that are not the host's in the sense of V20.
const NOT_OURS: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// Pause between two questions for one address.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// The pods found so far: they stay where they are until their link or they themselves go.
#[derive(Debug, Default)]
pub struct Wiring {
    pods: BTreeMap<IpAddr, IfIndex>,
    /// The ports of bridges at which an earlier agent found pods; used while the device is still a
    /// port of that bridge.
    earlier: BTreeMap<IpAddr, IfIndex>,
    /// When the kernel was last made to ask who has an address.
    asked: BTreeMap<IpAddr, Instant>,
}

impl Wiring {
    /// Begins with what an earlier agent found.
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

    /// Asks for the devices of pods. Our own questions cause changes of neighbours: without a pause
    /// this would go round and round.
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
        // V21: processes ask nodePorts of this host by it.
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

/// Returns the driver of a device. Packets that this host sends by the gate have checksums that XDP
/// cannot tell from whole ones.
fn driver(link: &Link) -> Driver {
    match link.kind {
        Kind::Loopback => Driver::Loopback,
        _ if is_gate(link) => Driver::Tunnel,
        Kind::Veth | Kind::Bridge | Kind::Other => link.driver,
    }
}

fn is_port_of(facts: &Facts, port: IfIndex, bridge: IfIndex) -> bool {
    facts
        .links
        .get(&port)
        .is_some_and(|link| link.kind == Kind::Veth && link.bridge == Some(bridge))
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

/// The devices with the node's addresses, the default routes, and the routes to other nodes' pods;
/// or those that were named.
fn node_devices(
    facts: &Facts,
    wanted: &Wanted,
    pods: &BTreeMap<IpAddr, IfIndex>,
) -> BTreeSet<IfIndex> {
    if !wanted.devices.is_empty() {
        let named = facts
            .links
            .iter()
            .filter(|(_, link)| wanted.devices.contains(&link.name));
        return named.map(|(index, _)| *index).collect();
    }
    let addressed = facts
        .addresses
        .iter()
        .filter(|a| wanted.node_addresses.contains(&a.addr))
        .map(|a| a.device);
    let routed = facts
        .routes
        .iter()
        .filter(|route| leads_away(facts, wanted, route))
        .map(|route| route.device);
    let mut ours: BTreeSet<_> = addressed.chain(routed).collect();
    ours.retain(|index| {
        facts
            .links
            .get(index)
            .is_some_and(|link| link.kind != Kind::Loopback)
    });
    ours.retain(|index| !pods.values().any(|pod| pod == index));
    ours
}

/// Returns true for a default route or one to pods of other nodes. Pods of this node are on a link,
/// at a veth or a bridge.
fn leads_away(facts: &Facts, wanted: &Wanted, route: &Route) -> bool {
    if route.to.prefix_len() == 0 {
        return true;
    }
    let local = |kind| matches!(kind, Kind::Veth | Kind::Bridge);
    let on_link = route.via == Via::Link
        && facts
            .links
            .get(&route.device)
            .is_none_or(|link| local(link.kind));
    !on_link
        && wanted
            .pod_cidrs
            .iter()
            .any(|cidr| cidr.contains(&route.to) || route.to.contains(cidr))
}

fn device(
    facts: &Facts,
    wanted: &Wanted,
    pods: &BTreeMap<IpAddr, IfIndex>,
    index: IfIndex,
) -> Option<Device> {
    let link = facts.links.get(&index)?;
    let (mut masquerade4, mut masquerade6) = (Addr4::default(), Addr6::default());
    if let Some(IpAddr::V4(addr)) = masquerade(facts, wanted, index, IpAddr::is_ipv4) {
        masquerade4 = addr.into();
    }
    if let Some(IpAddr::V6(addr)) = masquerade(facts, wanted, index, IpAddr::is_ipv6) {
        masquerade6 = addr.into();
    }
    // P18: what such a bridge receives may be a pod's of this node.
    let has_pods = pods.values().any(|pod| is_port_of(facts, *pod, index));
    let flags = if has_pods { Device::HAS_PODS } else { 0 };
    Some(Device {
        masquerade6,
        masquerade4,
        mtu: link.mtu,
        flags,
        ..Device::default()
    })
}

/// The source that packets leaving by a device get (V12): the Node's address if the device has it,
/// else the device's first that the kernel prefers, else the Node's, else the first of any device
/// that leads out.
fn masquerade(
    facts: &Facts,
    wanted: &Wanted,
    index: IfIndex,
    family: fn(&IpAddr) -> bool,
) -> Option<IpAddr> {
    let usable = || {
        facts
            .addresses
            .iter()
            .filter(|a| a.preferred == Preferred::Yes && family(&a.addr))
    };
    let ours = |a: &&super::facts::HostAddress| wanted.node_addresses.contains(&a.addr);
    let here = |a: &&super::facts::HostAddress| a.device == index;
    let found = usable()
        .filter(here)
        .find(ours)
        .or_else(|| usable().find(here));
    found
        .or_else(|| usable().find(ours))
        .or_else(|| {
            usable().find(|a: &&super::facts::HostAddress| {
                facts
                    .routes
                    .iter()
                    .any(|r| r.to.prefix_len() == 0 && r.device == a.device)
            })
        })
        .map(|a| a.addr)
}

fn host_addresses(facts: &Facts) -> BTreeMap<IpAddr, IfIndex> {
    let ours = facts.addresses.iter().filter(|a| {
        facts
            .links
            .get(&a.device)
            .is_some_and(|link: &super::facts::Link| {
                link.kind != Kind::Loopback && !NOT_OURS.contains(&link.name.as_str())
            })
    });
    ours.map(|a| (a.addr, a.device)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Driver;
    use crate::links::facts::{HostAddress, Link};

    fn link(name: &str, kind: Kind) -> Link {
        Link {
            name: name.into(),
            kind,
            driver: Driver::Software,
            mtu: 1500,
            bridge: None,
        }
    }

    fn address(device: u32, addr: &str) -> HostAddress {
        HostAddress {
            device: IfIndex(device),
            addr: addr.parse().expect("an address"),
            preferred: Preferred::Yes,
        }
    }

    fn route(to: &str, device: u32, via: Via) -> Route {
        Route {
            to: to.parse().expect("a prefix"),
            device: IfIndex(device),
            via,
        }
    }

    /// P18: a node device that is the pods' bridge is one that their packets come in by; no other
    /// is.
    #[test]
    fn p18_a_bridge_with_pods_is_known_as_such() {
        let (mut facts, mut wanted) = node();
        facts.links.insert(
            IfIndex(9),
            Link {
                bridge: Some(IfIndex(4)),
                ..link("veth9", Kind::Veth)
            },
        );
        wanted.devices = vec!["eth0".into(), "cni0".into()];
        let flags = |pods: &[(IpAddr, IfIndex)], index| {
            let pods = pods.iter().copied().collect();
            device(&facts, &wanted, &pods, IfIndex(index))
                .expect("a device")
                .flags
        };
        let pod = ("10.244.1.2".parse().expect("an address"), IfIndex(9));
        assert_eq!(
            (flags(&[pod], 4), flags(&[pod], 2), flags(&[], 4)),
            (Device::HAS_PODS, 0, 0)
        );
    }

    /// A node as flannel makes it: uplink, vxlan, bridge with pods.
    fn node() -> (Facts, Wanted) {
        let facts = Facts {
            links: BTreeMap::from([
                (IfIndex(1), link("lo", Kind::Loopback)),
                (IfIndex(2), link("eth0", Kind::Veth)),
                (IfIndex(3), link("flannel.1", Kind::Other)),
                (IfIndex(4), link("cni0", Kind::Bridge)),
                (IfIndex(5), link("veth5", Kind::Veth)),
                (IfIndex(6), link("kube-ipvs0", Kind::Other)),
            ]),
            addresses: vec![
                address(1, "127.0.0.1"),
                address(2, "192.0.2.9"),
                address(2, "192.0.2.1"),
                address(2, "2001:db8::1"),
                address(3, "10.244.1.0"),
                address(4, "10.244.1.1"),
                address(6, "10.96.0.1"),
            ],
            routes: vec![
                route("0.0.0.0/0", 2, Via::Gateway),
                route("192.0.2.0/24", 2, Via::Link),
                route("10.244.1.0/24", 4, Via::Link),
                route("10.244.2.0/24", 3, Via::Gateway),
            ],
        };
        let wanted = Wanted {
            node_addresses: vec!["192.0.2.1".parse().expect("an address")],
            pod_cidrs: vec!["10.244.0.0/16".parse().expect("a prefix")],
            ..Wanted::default()
        };
        (facts, wanted)
    }

    fn names(found: &Found) -> Vec<&str> {
        found.names.values().map(String::as_str).collect()
    }

    #[test]
    fn the_uplink_and_the_tunnel_are_ours_and_the_pods_bridge_is_not() {
        let (facts, wanted) = node();
        assert_eq!(
            names(&Wiring::default().found(&facts, &wanted)),
            ["eth0", "flannel.1"]
        );
    }

    /// V21: what processes ask of this host's own addresses is met there.
    #[test]
    fn loopback_is_ours_beside_a_gate_and_no_node_device() {
        let (mut facts, wanted) = node();
        facts.links.insert(IfIndex(7), link(gate::EXIT, Kind::Veth));
        let found = Wiring::default().found(&facts, &wanted);
        assert_eq!(names(&found), ["lo", "eth0", "flannel.1", "portway1"]);
        assert_eq!(
            (found.drivers[&IfIndex(1)], found.drivers[&IfIndex(7)]),
            (Driver::Loopback, Driver::Tunnel)
        );
        assert_eq!(
            (
                found.links.devices.contains_key(&IfIndex(1)),
                found.links.gate
            ),
            (false, Some(IfIndex(7)))
        );
    }

    #[test]
    fn named_devices_replace_the_choice() {
        let (facts, mut wanted) = node();
        wanted.devices = vec!["veth5".into()];
        assert_eq!(names(&Wiring::default().found(&facts, &wanted)), ["veth5"]);
    }

    #[test]
    fn a_pods_own_device_is_never_a_node_device() {
        let (mut facts, wanted) = node();
        facts.routes.push(route("10.244.1.7/32", 5, Via::Gateway));
        let pods = BTreeMap::from([("10.244.1.7".parse().expect("an address"), IfIndex(5))]);
        let wiring = Wiring {
            pods,
            ..Wiring::default()
        };
        let found = wiring.found(&facts, &wanted);
        assert_eq!(
            found.drivers.keys().copied().collect::<Vec<_>>(),
            [IfIndex(2), IfIndex(3)]
        );
        assert_eq!(
            names(&found),
            ["eth0", "flannel.1", "veth5"],
            "but it is hooked"
        );
    }

    #[test]
    fn masquerade_takes_the_nodes_address_then_the_devices_then_the_nodes_from_elsewhere() {
        let (facts, wanted) = node();
        let found = Wiring::default().found(&facts, &wanted);
        let device = |index| found.links.devices[&IfIndex(index)];
        assert_eq!(
            device(2).masquerade4,
            Addr4::from_bytes([192, 0, 2, 1]),
            "not the first, but the Node's"
        );
        assert_eq!(device(3).masquerade4, Addr4::from_bytes([10, 244, 1, 0]));
        assert_eq!(
            device(3).masquerade6,
            "2001:db8::1"
                .parse::<std::net::Ipv6Addr>()
                .expect("an address")
                .into()
        );
        assert_eq!(device(3).mtu, 1500);
    }

    #[test]
    fn addresses_of_loopback_and_of_ipvs_are_not_the_hosts() {
        let (facts, wanted) = node();
        let found = Wiring::default().found(&facts, &wanted);
        let addresses: Vec<_> = found
            .links
            .host_addresses
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            addresses,
            [
                "10.244.1.0",
                "10.244.1.1",
                "192.0.2.1",
                "192.0.2.9",
                "2001:db8::1"
            ]
        );
    }
}
