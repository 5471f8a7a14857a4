//! Devices that look like pods' devices, of pods that are not known yet (P31).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::net::IfIndex;

use super::Wanted;
use super::facts::{Facts, Kind, Link, Route, Via};

/// Returns the veths that no known pod has and that look like a pod's: ports of a bridge that a
/// known pod is behind or that has an address of the pods' prefixes, and veths with a route to one
/// such address. `ours` are node devices, which never count.
///
/// A device that a user has wired (another bridge, other addresses) does not count.
pub fn unclaimed(
    facts: &Facts,
    wanted: &Wanted,
    pods: &BTreeMap<IpAddr, IfIndex>,
    ours: &BTreeSet<IfIndex>,
) -> BTreeSet<IfIndex> {
    let known: BTreeSet<_> = pods.values().copied().collect();
    let bridges = bridges_of_pods(facts, wanted, &known);
    let routed: BTreeSet<_> = facts
        .routes
        .iter()
        .filter(|route| is_to_a_pod(wanted, route))
        .map(|route| route.device)
        .collect();
    let found = facts
        .links
        .iter()
        .filter(|(index, link): &(&IfIndex, &Link)| match link.bridge {
            _ if link.kind != Kind::Veth => false,
            Some(bridge) => bridges.contains(&bridge),
            None => routed.contains(index),
        })
        .map(|(index, _)| *index);
    found
        .filter(|index| !known.contains(index) && !ours.contains(index))
        .collect()
}

fn bridges_of_pods(facts: &Facts, wanted: &Wanted, known: &BTreeSet<IfIndex>) -> BTreeSet<IfIndex> {
    let of_known = known.iter().filter_map(|pod| facts.links.get(pod)?.bridge);
    let addressed = facts
        .addresses
        .iter()
        .filter(|a| is_pods(wanted, a.addr))
        .map(|a| a.device);
    of_known
        .chain(addressed)
        .filter(|index: &IfIndex| {
            facts
                .links
                .get(index)
                .is_some_and(|link| link.kind == Kind::Bridge)
        })
        .collect()
}

/// Returns true for a route to one address, on the link.
fn is_to_a_pod(wanted: &Wanted, route: &Route) -> bool {
    route.via == Via::Link
        && route.to.prefix_len() == route.to.max_prefix_len()
        && is_pods(wanted, route.to.addr())
}

fn is_pods(wanted: &Wanted, addr: IpAddr) -> bool {
    wanted
        .own_pod_cidrs
        .iter()
        .chain(&wanted.pod_cidrs)
        .any(|cidr| cidr.contains(&addr))
}

#[cfg(test)]
mod tests {
    use super::super::Driver;
    use super::super::facts::{HostAddress, Preferred};
    use super::*;

    fn link(name: &str, kind: Kind, bridge: Option<u32>) -> Link {
        Link {
            name: name.into(),
            kind,
            driver: Driver::Software,
            mtu: 1500,
            bridge: bridge.map(IfIndex),
        }
    }

    fn address(device: u32, addr: &str) -> HostAddress {
        HostAddress {
            device: IfIndex(device),
            addr: addr.parse().expect("an address"),
            preferred: Preferred::Yes,
        }
    }

    fn route(to: &str, device: u32) -> Route {
        Route {
            to: to.parse().expect("a prefix"),
            device: IfIndex(device),
            via: Via::Link,
        }
    }

    /// The uplink, which is a veth as in kind; a bridge of pods with two ports, a user's bridge
    /// with one, and two veths of their own.
    fn node() -> (Facts, Wanted) {
        let links = [
            (2, link("eth0", Kind::Veth, None)),
            (4, link("cni0", Kind::Bridge, None)),
            (5, link("veth5", Kind::Veth, Some(4))),
            (6, link("veth6", Kind::Veth, Some(4))),
            (7, link("docker0", Kind::Bridge, None)),
            (8, link("veth8", Kind::Veth, Some(7))),
            (9, link("cali9", Kind::Veth, None)),
            (10, link("mine", Kind::Veth, None)),
            (11, link("tap11", Kind::Other, Some(4))),
        ];
        let facts = Facts {
            links: links.map(|(index, link)| (IfIndex(index), link)).into(),
            addresses: vec![
                address(2, "192.0.2.1"),
                address(4, "10.244.1.1"),
                address(7, "172.17.0.1"),
                address(10, "192.168.7.1"),
            ],
            routes: vec![
                route("10.244.1.0/24", 4),
                route("10.244.1.9/32", 9),
                route("192.168.7.2/32", 10),
                route("192.0.2.9/32", 2),
            ],
        };
        let own_pod_cidrs = vec!["10.244.1.0/24".parse().expect("a prefix")];
        (
            facts,
            Wanted {
                own_pod_cidrs,
                ..Wanted::default()
            },
        )
    }

    fn found(facts: &Facts, wanted: &Wanted, pods: &[(&str, u32)]) -> Vec<u32> {
        let pods = pods
            .iter()
            .map(|(addr, device)| (addr.parse().expect("an address"), IfIndex(*device)))
            .collect();
        unclaimed(facts, wanted, &pods, &BTreeSet::from([IfIndex(2)]))
            .into_iter()
            .map(|index| index.0)
            .collect()
    }

    #[test]
    fn p31_ports_of_the_pods_bridge_and_veths_with_a_pods_route_are_pods_before_anybody_says_so() {
        let (facts, wanted) = node();
        assert_eq!(found(&facts, &wanted, &[]), [5, 6, 9]);
        assert_eq!(
            found(&facts, &wanted, &[("10.244.1.5", 5), ("10.244.1.9", 9)]),
            [6]
        );
    }

    #[test]
    fn p31_a_known_pods_bridge_needs_no_address() {
        let (mut facts, wanted) = node();
        facts.addresses.retain(|a| a.device != IfIndex(4));
        assert_eq!(found(&facts, &wanted, &[]), [9]);
        assert_eq!(found(&facts, &wanted, &[("10.244.1.5", 5)]), [6, 9]);
    }

    #[test]
    fn p31_what_a_user_has_wired_is_nobodys_pod_and_no_node_device_is() {
        let (mut facts, wanted) = node();
        facts.routes.push(route("10.244.1.77/32", 2));
        assert_eq!(found(&facts, &Wanted::default(), &[]), [0; 0]);
        assert_eq!(
            found(
                &facts,
                &wanted,
                &[("10.244.1.5", 5), ("10.244.1.6", 6), ("10.244.1.9", 9)]
            ),
            [0; 0]
        );
    }
}
