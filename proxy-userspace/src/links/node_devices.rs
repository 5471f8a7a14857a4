//! The devices that packets leave the node by, their masquerade addresses, and the addresses of the
//! host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::net::{Addr4, Addr6, Device, IfIndex};

use super::Wanted;
use super::facts::{Facts, HostAddress, Kind, Link, Preferred, Route, Via};

/// Devices with addresses that are not the host's in the sense of V20.
const NOT_OURS: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// Returns true if `port` is a veth and a port of `bridge`.
pub fn is_port_of(facts: &Facts, port: IfIndex, bridge: IfIndex) -> bool {
    facts
        .links
        .get(&port)
        .is_some_and(|link| link.kind == Kind::Veth && link.bridge == Some(bridge))
}

/// The devices with the node's addresses, the default routes, and the routes to other nodes' pods;
/// or those that were named.
pub fn node_devices(
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

/// Returns the element of a node device in `DEVICES`.
pub fn device(
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
    // P18: packets that such a bridge receives may come from a pod of this node.
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
    let ours = |a: &&HostAddress| wanted.node_addresses.contains(&a.addr);
    let here = |a: &&HostAddress| a.device == index;
    let found = usable()
        .filter(here)
        .find(ours)
        .or_else(|| usable().find(here));
    found
        .or_else(|| usable().find(ours))
        .or_else(|| {
            usable().find(|a: &&HostAddress| {
                facts
                    .routes
                    .iter()
                    .any(|r| r.to.prefix_len() == 0 && r.device == a.device)
            })
        })
        .map(|a| a.addr)
}

/// Returns the addresses of this host (V20).
pub fn host_addresses(facts: &Facts) -> BTreeMap<IpAddr, IfIndex> {
    let ours = facts.addresses.iter().filter(|a| {
        facts.links.get(&a.device).is_some_and(|link: &Link| {
            link.kind != Kind::Loopback && !NOT_OURS.contains(&link.name.as_str())
        })
    });
    ours.map(|a| (a.addr, a.device)).collect()
}
