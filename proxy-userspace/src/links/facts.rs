//! Links, addresses and routes, read from netlink's messages.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the lists of netlink's attributes are open"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::net::IfIndex;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::Driver;

/// A link-layer address.
pub type Mac = Vec<u8>;

/// One reading of the kernel's tables.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub links: BTreeMap<IfIndex, Link>,
    pub addresses: Vec<HostAddress>,
    pub routes: Vec<Route>,
}

/// A network device.
#[derive(Clone, Debug)]
pub struct Link {
    pub name: String,
    pub kind: Kind,
    pub driver: Driver,
    pub mtu: u32,
    pub bridge: Option<IfIndex>,
}

/// The kinds of devices that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    Veth,
    Bridge,
    Other,
}

impl Link {
    pub fn from_message(message: &LinkMessage) -> (IfIndex, Self) {
        let mut link = Self {
            name: String::new(),
            kind: Kind::Other,
            driver: Driver::Software,
            mtu: 0,
            bridge: None,
        };
        let mut info = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name.clone(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.bridge = Some(IfIndex(*index)),
                LinkAttribute::LinkInfo(infos) => info = infos.iter().find_map(kind_of),
                _ => {}
            }
        }
        (link.kind, link.driver) = classify(message.header.link_layer_type, info);
        (IfIndex(message.header.index), link)
    }
}

fn kind_of(info: &LinkInfo) -> Option<&InfoKind> {
    match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    }
}

/// Returns the driver of a device. Software devices have a kind; cards, real and paravirtual, have
/// none.
fn classify(layer: LinkLayerType, kind: Option<&InfoKind>) -> (Kind, Driver) {
    match (layer, kind) {
        (LinkLayerType::Loopback, _) => (Kind::Loopback, Driver::Software),
        (LinkLayerType::Ether, None) => (Kind::Other, Driver::Card),
        (LinkLayerType::Ether, Some(InfoKind::Veth)) => (Kind::Veth, Driver::Software),
        (LinkLayerType::Ether, Some(InfoKind::Bridge)) => (Kind::Bridge, Driver::Software),
        (
            LinkLayerType::Ether,
            Some(
                InfoKind::Vxlan
                | InfoKind::Geneve
                | InfoKind::GreTap
                | InfoKind::GreTap6
                | InfoKind::Tun,
            ),
        ) => (Kind::Other, Driver::Tunnel),
        (LinkLayerType::Ether, Some(_)) => (Kind::Other, Driver::Software),
        (_, _) => (Kind::Other, Driver::Tunnel),
    }
}

/// An address of this host.
#[derive(Clone, Debug)]
pub struct HostAddress {
    pub device: IfIndex,
    pub addr: IpAddr,
    pub preferred: Preferred,
}

/// True if the kernel would choose the address as a source by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preferred {
    Yes,
    /// Secondary, temporary, deprecated, tentative, or not of global scope.
    No,
}

impl HostAddress {
    pub fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(addr) => local = Some(*addr),
                AddressAttribute::Address(addr) => address = Some(*addr),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let unfit = AddressFlags::Secondary
            | AddressFlags::Deprecated
            | AddressFlags::Tentative
            | AddressFlags::Dadfailed;
        let fit = message.header.scope == AddressScope::Universe && !flags.intersects(unfit);
        let preferred = if fit { Preferred::Yes } else { Preferred::No };
        Some(Self {
            device: IfIndex(message.header.index),
            addr: local.or(address)?,
            preferred,
        })
    }
}

/// A unicast route of the main table, or the kernel's answer to a lookup of one address.
#[derive(Clone, Debug)]
pub struct Route {
    pub to: IpNet,
    pub device: IfIndex,
    pub via: Via,
}

/// The next hop's kind: a router or the link itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Gateway,
    Link,
}

const TABLE_MAIN: u32 = 254;

impl Route {
    /// Returns a route's next hops; none if it is not unicast or not of the main table.
    pub fn from_message(message: &RouteMessage) -> Vec<Self> {
        let mut to = unspecified(message);
        let (mut device, mut via, mut hops, mut table) =
            (None, Via::Link, Vec::new(), u32::from(message.header.table));
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(addr) => {
                    to = prefix(addr, message.header.destination_prefix_length).or(to)
                }
                RouteAttribute::Oif(index) => device = Some(IfIndex(*index)),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = Via::Gateway,
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::MultiPath(all) => hops.extend(
                    all.iter()
                        .map(|hop| (IfIndex(hop.interface_index), via_of(&hop.attributes))),
                ),
                _ => {}
            }
        }
        hops.extend(device.map(|device| (device, via)));
        let Some(to) =
            to.filter(|_| message.header.kind == RouteType::Unicast && table == TABLE_MAIN)
        else {
            return Vec::new();
        };
        hops.into_iter()
            .map(|(device, via)| Self { to, device, via })
            .collect()
    }
}

/// Returns the destination of a unicast route of the main table.
pub fn destination(message: &RouteMessage) -> Option<IpNet> {
    Route::from_message(message).first().map(|route| route.to)
}

/// Returns true if such a route leads out by a device.
pub fn leaves_by(message: &RouteMessage, device: u32) -> bool {
    Route::from_message(message)
        .iter()
        .any(|route| route.device.0 == device)
}

fn via_of(attributes: &[RouteAttribute]) -> Via {
    let gateway = attributes
        .iter()
        .any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
    if gateway { Via::Gateway } else { Via::Link }
}

fn unspecified(message: &RouteMessage) -> Option<IpNet> {
    use rtnetlink::packet_route::AddressFamily::{Inet, Inet6};
    match message.header.address_family {
        Inet => Some(IpNet::V4(Default::default())),
        Inet6 => Some(IpNet::V6(Default::default())),
        _ => None,
    }
}

fn prefix(addr: &RouteAddress, len: u8) -> Option<IpNet> {
    match addr {
        RouteAddress::Inet(addr) => IpNet::new(IpAddr::V4(*addr), len).ok(),
        RouteAddress::Inet6(addr) => IpNet::new(IpAddr::V6(*addr), len).ok(),
        _ => None,
    }
}

/// An entry of a neighbour table or of a bridge's forwarding table.
#[derive(Clone, Debug, Default)]
pub struct Neighbour {
    pub device: IfIndex,
    pub addr: Option<IpAddr>,
    pub mac: Option<Mac>,
    pub bridge: Option<IfIndex>,
}

impl Neighbour {
    pub fn from_message(message: &NeighbourMessage) -> Self {
        let mut neighbour = Self {
            device: IfIndex(message.header.ifindex),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                    neighbour.addr = Some(IpAddr::V4(*addr))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
                    neighbour.addr = Some(IpAddr::V6(*addr))
                }
                NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac = Some(mac.clone()),
                NeighbourAttribute::Controller(index) => neighbour.bridge = Some(IfIndex(*index)),
                _ => {}
            }
        }
        neighbour
    }
}
