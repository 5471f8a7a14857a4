//! Addresses that serve nodePorts (V8), and the node's devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::net::{Addr4, Addr6, Device, IfIndex};

use crate::model::{Links, Node, NodePortAddresses, ObjectName, Snapshot};

/// Returns the addresses that serve nodePorts (V8).
pub fn node_port_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    match &snapshot.settings.nodeport_addresses {
        NodePortAddresses::Within(prefixes) => within(&snapshot.links, prefixes),
        NodePortAddresses::Primary => {
            let own = snapshot
                .state
                .nodes
                .get(&ObjectName::cluster(&snapshot.settings.node_name));
            let primary = own.map(primary).unwrap_or_default();
            if primary.is_empty() {
                on_node_devices(&snapshot.links)
            } else {
                primary
            }
        }
    }
}

/// Returns the node's devices, each with the masquerade address of each family: the first address
/// of the Node object that this host has.
pub fn devices(snapshot: &Snapshot) -> BTreeMap<IfIndex, Device> {
    let own = snapshot
        .state
        .nodes
        .get(&ObjectName::cluster(&snapshot.settings.node_name));
    let told = own
        .into_iter()
        .flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
    let has: Vec<_> = told
        .filter(|ip| snapshot.links.host_addresses.contains_key(ip))
        .collect();
    let node4 = has.iter().find_map(|ip| {
        if let IpAddr::V4(ip) = ip {
            Some(Addr4::from(*ip))
        } else {
            None
        }
    });
    let node6 = has.iter().find_map(|ip| {
        if let IpAddr::V6(ip) = ip {
            Some(Addr6::from(*ip))
        } else {
            None
        }
    });
    let (node4, node6) = (node4.unwrap_or_default(), node6.unwrap_or_default());
    snapshot
        .links
        .devices
        .iter()
        .map(|(index, device)| {
            (
                *index,
                Device {
                    node4,
                    node6,
                    ..*device
                },
            )
        })
        .collect()
}

fn within(links: &Links, prefixes: &[IpNet]) -> BTreeSet<IpAddr> {
    links
        .host_addresses
        .keys()
        .copied()
        .filter(|addr| NodePortAddresses::have_within(prefixes, *addr))
        .collect()
}

/// Returns the first InternalIP of each family, else the first ExternalIP.
fn primary(node: &Node) -> BTreeSet<IpAddr> {
    [true, false]
        .into_iter()
        .filter_map(|v4| {
            node.internal_ips
                .iter()
                .chain(&node.external_ips)
                .find(|ip| ip.is_ipv4() == v4)
        })
        .copied()
        .collect()
}

/// Returns the addresses of the node's devices. They stand for the node's addresses if there is no
/// Node object, as in a directory of manifests without one.
fn on_node_devices(links: &Links) -> BTreeSet<IpAddr> {
    let on_devices = links
        .host_addresses
        .iter()
        .filter(|(_, device)| links.devices.contains_key(device));
    on_devices
        .map(|(addr, _)| *addr)
        .filter(|addr| !is_link_local(*addr))
        .collect()
}

/// Returns true for link-local addresses of IPv6, which need a device to be listened on.
pub(super) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts
            .iter()
            .map(|t| t.parse().expect("an address"))
            .collect()
    }

    fn host() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (ip, device) in [
            ("192.0.2.1", 2),
            ("198.51.100.1", 3),
            ("2001:db8::1", 2),
            ("fe80::1", 2),
        ] {
            snapshot
                .links
                .host_addresses
                .insert(ip.parse().expect("an address"), IfIndex(device));
        }
        snapshot.links.devices.insert(IfIndex(2), Device::default());
        snapshot.settings.node_name = "node-a".into();
        snapshot
    }

    #[test]
    fn devices_know_the_node_by_what_its_node_tells_and_this_host_has() {
        let mut snapshot = host();
        let known = |snapshot: &Snapshot| devices(snapshot)[&IfIndex(2)];
        assert_eq!(known(&snapshot), Device::default(), "nobody tells");
        let internal = ["203.0.113.7", "198.51.100.1"]
            .map(|ip| ip.parse().expect("an address"))
            .to_vec();
        let node = Node {
            internal_ips: internal,
            external_ips: ips(&["2001:db8::1"]).into_iter().collect(),
            ..Node::default()
        };
        snapshot
            .state
            .nodes
            .insert(ObjectName::cluster("node-a"), node);
        let (node4, node6) = (
            Ipv4Addr::new(198, 51, 100, 1).into(),
            "2001:db8::1"
                .parse::<Ipv6Addr>()
                .expect("an address")
                .into(),
        );
        assert_eq!(
            known(&snapshot),
            Device {
                node4,
                node6,
                ..Device::default()
            }
        );
    }

    #[test]
    fn v8_prefixes_of_one_family_leave_the_other_alone() {
        let mut snapshot = host();
        snapshot.settings.nodeport_addresses =
            NodePortAddresses::Within(vec!["192.0.2.0/24".parse().expect("a prefix")]);
        assert_eq!(
            node_port_addresses(&snapshot),
            ips(&["192.0.2.1", "2001:db8::1", "fe80::1"])
        );
    }

    #[test]
    fn v8_primary_is_one_internal_ip_per_family_else_the_external_one() {
        let mut snapshot = host();
        assert_eq!(
            node_port_addresses(&snapshot),
            ips(&["192.0.2.1", "2001:db8::1"]),
            "without a Node: its devices' addresses"
        );
        let [internal, external] = [["192.0.2.1", "192.0.2.7"], ["203.0.113.1", "2001:db8::9"]];
        let parse = |list: [&str; 2]| {
            list.iter()
                .map(|t| t.parse().expect("an address"))
                .collect()
        };
        let node = Node {
            internal_ips: parse(internal),
            external_ips: parse(external),
            ..Node::default()
        };
        snapshot
            .state
            .nodes
            .insert(ObjectName::cluster("node-a"), node);
        assert_eq!(
            node_port_addresses(&snapshot),
            ips(&["192.0.2.1", "2001:db8::9"])
        );
    }
}
