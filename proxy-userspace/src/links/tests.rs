//! A node wired in network namespaces, and the findings there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy_common::net::{Addr4, IfIndex};
use tokio::sync::watch;

use super::{Driver, Found, Wanted, run};
use crate::testing::Namespace;

/// A node with an uplink, a pod wired point to point and a pod behind a bridge.
struct Node {
    node: Arc<Namespace>,
    lan: Namespace,
    single: Namespace,
    bridged: Namespace,
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Node {
    fn new() -> Self {
        let all = Self {
            node: Arc::new(Namespace::new()),
            lan: Namespace::new(),
            single: Namespace::new(),
            bridged: Namespace::new(),
        };
        all.wire_uplink();
        all.wire_single();
        all.wire_bridged();
        all
    }

    fn wire_uplink(&self) {
        self.node.veth("eth0", &self.lan, "node");
        self.node.ip("addr add 192.0.2.1/24 dev eth0");
        self.node.ip("addr add 2001:db8::1/64 dev eth0 nodad");
        self.node.ip("route add default via 192.0.2.254");
    }

    fn wire_single(&self) {
        self.node.veth("single", &self.single, "eth0");
        self.single.ip("addr add 10.244.1.11/32 dev eth0");
        self.node.ip("route add 10.244.1.11/32 dev single");
    }

    fn wire_bridged(&self) {
        self.node.ip("link add cni0 type bridge");
        self.node.ip("link set cni0 up");
        self.node.ip("addr add 10.244.1.1/24 dev cni0");
        self.node.ip("addr add fd00:10:244:1::1/64 dev cni0 nodad");
        self.node.veth("bridged", &self.bridged, "eth0");
        self.node.ip("link set bridged master cni0");
        self.bridged.ip("addr add 10.244.1.12/24 dev eth0");
        self.bridged
            .ip("addr add fd00:10:244:1::12/64 dev eth0 nodad");
    }

    fn wanted(&self, pods: &[&str]) -> Wanted {
        Wanted {
            node_addresses: vec![addr("192.0.2.1"), addr("2001:db8::1")],
            pods: pods.iter().map(|p| addr(p)).collect(),
            ..Wanted::default()
        }
    }

    /// Runs `links` and calls `then` with its findings, in the node's namespace.
    fn watch<F: Future<Output = ()> + Send>(
        &self,
        wanted: Wanted,
        then: impl FnOnce(Watch) -> F + Send + 'static,
    ) {
        self.watch_after(BTreeMap::new(), wanted, then);
    }

    /// Watches as above, beginning with the findings of an earlier agent.
    fn watch_after<F: Future<Output = ()> + Send>(
        &self,
        earlier: BTreeMap<IpAddr, IfIndex>,
        wanted: Wanted,
        then: impl FnOnce(Watch) -> F + Send + 'static,
    ) {
        self.node.block_on(async move {
            let (want, wants) = watch::channel(wanted);
            let (found_tx, found) = watch::channel(None);
            let task = tokio::spawn(run(wants, found_tx, earlier));
            then(Watch { want, found }).await;
            task.abort();
        });
    }
}

struct Watch {
    want: watch::Sender<Wanted>,
    found: watch::Receiver<Option<Found>>,
}

impl Watch {
    /// Waits until the findings meet a condition.
    async fn until(&mut self, what: &str, is: impl Fn(&Found) -> bool) -> Found {
        let all_right = self.found.wait_for(|found| found.as_ref().is_some_and(&is));
        let in_time = tokio::time::timeout(Duration::from_secs(5), all_right)
            .await
            .is_ok();
        let found = self.found.borrow().clone();
        assert!(in_time, "{what}: not within 5 s; published is {found:#?}");
        found.expect("it was waited for")
    }
}

fn device_of<'a>(found: &'a Found, pod: &str) -> Option<&'a str> {
    Some(found.names.get(found.links.pods.get(&addr(pod))?)?.as_str())
}

#[test]
fn pods_are_found_in_both_wirings_and_both_families_without_having_spoken() {
    let node = Node::new();
    let pods = ["10.244.1.11", "10.244.1.12", "fd00:10:244:1::12"];
    node.watch(node.wanted(&pods), move |mut watch| async move {
        let found = watch
            .until("all pods", |found| {
                pods.iter()
                    .all(|pod| found.links.pods.contains_key(&addr(pod)))
            })
            .await;
        assert_eq!(
            pods.map(|pod| device_of(&found, pod)),
            [Some("single"), Some("bridged"), Some("bridged")]
        );
        let devices: Vec<_> = found
            .links
            .devices
            .iter()
            .map(|(index, device)| (found.names[index].as_str(), device.masquerade4))
            .collect();
        assert_eq!(
            devices,
            [("eth0", Addr4::from_bytes([192, 0, 2, 1]))],
            "pods' devices and the bridge are no node devices"
        );
        assert_eq!(
            found.drivers.values().collect::<Vec<_>>(),
            [&Driver::Software]
        );
        // V26: the host's addresses are those of all devices.
        assert!(
            ["192.0.2.1", "2001:db8::1", "10.244.1.1"]
                .iter()
                .all(|a| found.links.host_addresses.contains_key(&addr(a)))
        );
        assert!(!found.links.host_addresses.contains_key(&addr("127.0.0.1")));
    });
}

#[test]
fn a_neighbour_that_is_known_but_aged_out_of_the_bridges_table_is_asked_again() {
    let node = Node::new();
    // IPv6 sends packets by itself, and would refresh the bridge's table.
    node.bridged.run(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").expect("switch IPv6 off")
    });
    node.node.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.send_to(b"wake up", "10.244.1.12:9").expect("send");
    });
    let known = || {
        node.node
            .command("ip", "neigh show 10.244.1.12")
            .contains("REACHABLE")
    };
    let mut patience = 100;
    while !known() && patience > 0 {
        std::thread::sleep(Duration::from_millis(20));
        patience -= 1;
    }
    assert!(patience > 0, "the neighbour is not resolved");
    node.node.ip("link set cni0 type bridge fdb_flush");
    node.watch(node.wanted(&["10.244.1.12"]), |mut watch| async move {
        watch
            .until("the bridged pod", |found| {
                device_of(found, "10.244.1.12") == Some("bridged")
            })
            .await;
    });
}

#[test]
fn a_pod_whose_link_comes_late_or_comes_again_is_found_each_time() {
    let node = Node::new();
    let inner = node.node.clone();
    node.node.ip("link del single");
    node.watch(node.wanted(&[]), move |mut watch| async move {
        watch
            .until("the uplink", |found| !found.links.devices.is_empty())
            .await;
        watch
            .want
            .send_modify(|wanted| assert!(wanted.pods.insert(addr("10.244.1.11"))));
        let mut seen = IfIndex::NONE;
        for _ in 0..2 {
            run_ip("link add single type veth peer name other");
            run_ip("link set single up");
            run_ip("route add 10.244.1.11/32 dev single");
            let found = watch
                .until("the pod", |found| {
                    device_of(found, "10.244.1.11") == Some("single")
                })
                .await;
            let device = found.links.pods[&addr("10.244.1.11")];
            assert_ne!(device, seen, "the device of before is gone");
            seen = device;
            run_ip("link del single");
            watch
                .until("the pod's end", |found| found.links.pods.is_empty())
                .await;
        }
        drop(inner);
    });
}

/// Runs `ip` in the namespace of the calling thread.
fn run_ip(arguments: &str) {
    let status = std::process::Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("start ip");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn a_new_address_and_a_new_route_are_seen() {
    let node = Node::new();
    node.watch(node.wanted(&[]), |mut watch| async move {
        watch
            .until("the uplink", |found| found.links.devices.len() == 1)
            .await;
        run_ip("addr add 192.0.2.77/24 dev eth0");
        watch
            .until("the address", |found| {
                found.links.host_addresses.contains_key(&addr("192.0.2.77"))
            })
            .await;
        run_ip("link add tunnel type vxlan id 1 dstport 4789 dev eth0");
        run_ip("addr add 10.244.1.0/32 dev tunnel");
        run_ip("link set tunnel up");
        watch.want.send_modify(|wanted| {
            wanted
                .pod_cidrs
                .push("10.244.2.0/24".parse().expect("a prefix"))
        });
        run_ip("route add 10.244.2.0/24 via 10.244.2.0 dev tunnel onlink");
        let found = watch
            .until("the tunnel", |found| found.links.devices.len() == 2)
            .await;
        let tunnel = found
            .names
            .iter()
            .find(|(_, name)| *name == "tunnel")
            .map(|(index, _)| *index)
            .expect("it has a name");
        assert_eq!(found.drivers[&tunnel], Driver::Tunnel);
        assert_eq!(
            found.links.devices[&tunnel].masquerade4,
            Addr4::from_bytes([10, 244, 1, 0])
        );
    });
}

#[test]
fn what_an_earlier_agent_found_behind_a_bridge_is_there_at_once_and_what_is_no_port_any_more_is_not_believed()
 {
    let node = Node::new();
    let port = IfIndex(
        node.node
            .run(|| nix::net::if_::if_nametoindex("bridged"))
            .expect("the device exists"),
    );
    node.bridged.ip("link set eth0 down");
    let earlier = BTreeMap::from([
        (addr("10.244.1.12"), port),
        (addr("10.244.1.13"), IfIndex(1)),
    ]);
    node.watch_after(
        earlier,
        node.wanted(&["10.244.1.12", "10.244.1.13"]),
        move |mut watch| async move {
            let found = watch.until("the first look", |_| true).await;
            assert_eq!(
                found.links.pods,
                BTreeMap::from([(addr("10.244.1.12"), port)]),
                "though the pod cannot answer"
            );
        },
    );
}

#[test]
fn the_tables_are_read_one_after_the_other_and_never_meet_a_busy_socket() {
    let node = Node::new();
    node.node.block_on(async {
        let netlink = super::netlink::Netlink::open().expect("open netlink");
        for _ in 0..200 {
            let facts = netlink.read().await.expect("read");
            assert_eq!(facts.links.len(), 5, "lo, eth0, single, bridged, cni0");
        }
    });
}
