//! The gate in a network namespace: its routes, and the settings of loopback.

use std::collections::BTreeSet;

use ipnet::IpNet;
use rtnetlink::{Handle, LinkUnspec, new_connection};

use super::{ENTRY, EXIT, GateSpec, bring, index_of, remove, remove_by, routes};
use crate::links::facts::destination;
use crate::testing::Namespace;

fn spec(ranges: &[&str]) -> GateSpec {
    let ranges = ranges
        .iter()
        .map(|range| range.parse().expect("a range"))
        .collect();
    let sources = ["192.0.2.1", "2001:db8::1"]
        .map(|source| source.parse().expect("an address"))
        .into();
    GateSpec {
        open: true,
        ranges,
        sources,
        mtu: 1400,
    }
}

/// Returns two settings of loopback: `accept_local`, `route_localnet`.
fn lets_in() -> [String; 2] {
    ["accept_local", "route_localnet"].map(|setting| {
        let path = format!("/proc/sys/net/ipv4/conf/lo/{setting}");
        std::fs::read_to_string(path)
            .expect("a setting")
            .trim()
            .to_owned()
    })
}

/// Returns the destinations of the routes by the entry.
async fn lead_to(handle: &Handle) -> BTreeSet<IpNet> {
    let entry = index_of(handle, ENTRY)
        .await
        .expect("an answer")
        .expect("the entry");
    routes(handle, entry)
        .await
        .expect("routes")
        .iter()
        .filter_map(destination)
        .collect()
}

#[test]
fn v21_its_routes_follow_the_ranges_come_back_and_go() {
    let host = Namespace::new();
    host.ip("addr add 192.0.2.1/32 dev lo");
    host.ip("addr add 2001:db8::1/128 dev lo nodad");
    host.block_on(async {
        let (connection, handle, _) = new_connection().expect("netlink");
        let task = tokio::spawn(connection);
        bring(&handle, &GateSpec::default())
            .await
            .expect("nothing to do");
        assert_eq!(lets_in(), ["0", "0"]);
        let (both, other) = (
            spec(&["10.96.0.0/12", "fd00:10:96::/112"]),
            spec(&["10.97.0.0/16", "fd00:10:96::/112"]),
        );
        for spec in [&both, &both, &other] {
            bring(&handle, spec).await.expect("a gate");
            assert_eq!(lead_to(&handle).await, spec.ranges);
        }
        // Setting the devices down removes the routes.
        for name in [ENTRY, EXIT] {
            handle
                .link()
                .set(LinkUnspec::new_with_name(name).down().build())
                .execute()
                .await
                .expect("down");
        }
        assert_ne!(lead_to(&handle).await, other.ranges);
        bring(&handle, &other).await.expect("a gate");
        assert_eq!(lead_to(&handle).await, other.ranges);
        assert_eq!(lets_in(), ["1", "1"]);
        // No range is known: nodePorts are served.
        bring(&handle, &spec(&[])).await.expect("a gate");
        assert_eq!(lead_to(&handle).await, BTreeSet::new());
        bring(&handle, &GateSpec::default()).await.expect("no gate");
        assert_eq!(index_of(&handle, EXIT).await.expect("an answer"), None);
        assert_eq!(lets_in(), ["0", "0"]);
        remove().await.expect("it is gone already");
        task.abort();
    });
}

#[test]
fn what_loopback_let_in_before_it_lets_in_after() {
    let host = Namespace::new();
    host.block_on(async {
        // Also for devices that are made later.
        for device in ["lo", "default"] {
            std::fs::write(
                format!("/proc/sys/net/ipv4/conf/{device}/accept_local"),
                "1",
            )
            .expect("a setting");
        }
        let (connection, handle, _) = new_connection().expect("netlink");
        let task = tokio::spawn(connection);
        for _ in 0..2 {
            bring(&handle, &spec(&[])).await.expect("a gate");
            assert_eq!(lets_in(), ["1", "1"]);
        }
        remove_by(&handle).await.expect("no gate");
        assert_eq!(lets_in(), ["1", "0"]);
        task.abort();
    });
}
