//! The choice of devices and of masquerade addresses.

use std::collections::BTreeMap;

use proxy_common::net::{Addr4, Device};

use super::super::facts::{Preferred, Route, Via};
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
