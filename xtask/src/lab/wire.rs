//! Turns a topology into lines for `ip` and `bridge` and into sysctls, one script per namespace; it
//! runs none of them.

use std::fmt::Write;

use super::topology::{
    Addresses, FAR_CLIENT, FAR_ROUTER, Join, NEAR_CLIENT, ROUTER, RpFilter, Topology, Uplink,
    Wiring, node, pod_gateway, pod_network,
};

/// Sysctls that every namespace gets before it has devices: duplicate address detection would cost
/// seconds.
pub const EVERYWHERE: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// Sysctls of what forwards, nodes and router.
pub const FORWARDING: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// Sysctls of clients, which open many connections to few addresses.
pub const CLIENT: &[(&str, &str)] = &[
    ("ipv4/ip_local_port_range", "1024 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
];

/// The sysctls of the reverse path filter.
pub fn rp_filter(filter: RpFilter) -> [(&'static str, &'static str); 2] {
    let value = match filter {
        RpFilter::Off => "0",
        RpFilter::Loose => "2",
    };
    [
        ("ipv4/conf/all/rp_filter", value),
        ("ipv4/conf/default/rp_filter", value),
    ]
}

/// The LAN's switch: a bridge with a port for each of `hosts` and `nodes`, which are namespaces;
/// each sees it as `eth0`.
pub fn switch<'a>(
    topology: &Topology,
    hosts: impl IntoIterator<Item = &'a str>,
    nodes: impl IntoIterator<Item = &'a str>,
) -> String {
    let mtu = topology.mtu;
    let mut script =
        format!("link add br0 mtu {mtu} type bridge mcast_snooping 0\nlink set br0 up\n");
    let uplinks = nodes.into_iter().map(|node| (node, topology.uplink));
    let members = hosts
        .into_iter()
        .map(|host| (host, Uplink::Plain))
        .chain(uplinks);
    for (n, (member, uplink)) in members.enumerate() {
        let port = switch_port(n);
        let mut link = |port: &str, device: &str| {
            line(
                &mut script,
                format_args!(
                    "link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {member}"
                ),
            );
            line(&mut script, format_args!("link set {port} up"));
        };
        link(&port, "eth0");
        let tagged = format!("{port}.5");
        let ports = match uplink {
            Uplink::Plain | Uplink::Bridge => vec![port],
            Uplink::Vlan => {
                line(
                    &mut script,
                    format_args!("link add link {port} name {tagged} type vlan id 5"),
                );
                vec![tagged]
            }
            Uplink::Bond => {
                let second = format!("{port}b");
                link(&second, "eth1");
                vec![port, second]
            }
        };
        ports
            .iter()
            .for_each(|port| line(&mut script, format_args!("link set {port} master br0 up")));
    }
    script
}

/// Returns the commands for a node's device on the LAN, over the devices that the switch gave it.
fn uplink(topology: &Topology) -> String {
    let (device, mtu) = (topology.uplink.device(), topology.mtu);
    match topology.uplink {
        Uplink::Plain => String::new(),
        Uplink::Bridge => {
            format!(
                "link add {device} mtu {mtu} type bridge\nlink set eth0 up\nlink set eth0 master {device}\n"
            )
        }
        Uplink::Vlan => {
            format!("link set eth0 up\nlink add link eth0 name {device} type vlan id 5\n")
        }
        Uplink::Bond => format!(
            "link add {device} mtu {mtu} type bond mode active-backup miimon 100\n\
             link set eth0 master {device}\nlink set eth1 master {device}\n"
        ),
    }
}

/// The name of the switch's `n`th port, counted from 0.
pub fn switch_port(n: usize) -> String {
    format!("port{n}")
}

/// The router: `eth0` on the LAN, `eth1` to the far client in the namespace `far`, routes to the
/// pods of all nodes.
pub fn router(topology: &Topology, far: &str) -> String {
    let (mtu, nodes) = (topology.mtu, topology.nodes.len() as u8);
    let mut script = host(&ROUTER, "eth0");
    line(
        &mut script,
        format_args!("link add eth1 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {far}"),
    );
    script.push_str(&device(&FAR_ROUTER, "eth1"));
    (1..=nodes).for_each(|n| script.push_str(&route_by_node(n)));
    script
}

/// The client on the LAN.
pub fn near_client() -> String {
    host(&NEAR_CLIENT, "eth0") + &default_by(&ROUTER)
}

/// The client behind the router.
pub fn far_client() -> String {
    host(&FAR_CLIENT, "eth0") + &default_by(&FAR_ROUTER)
}

/// The `n`th node with its way to the other nodes' pods; its own pods come one by one.
pub fn node_script(topology: &Topology, n: u8) -> String {
    let mut script =
        uplink(topology) + &host(&node(n), topology.uplink.device()) + &default_by(&ROUTER);
    if topology.wiring == Wiring::Bridge {
        script.push_str(&bridge(topology, n));
    }
    let others = others(topology, n);
    match topology.join {
        Join::Routes => others.for_each(|other| script.push_str(&route_by_node(other))),
        Join::Vxlan => {
            script.push_str(&vxlan_device(topology, n));
            others.for_each(|other| script.push_str(&route_by_vxlan(other)));
        }
    }
    script
}

/// Lines for `bridge` that give the `n`th node's vxlan device the addresses of the others.
pub fn forwarding_database(topology: &Topology, n: u8) -> String {
    let mut script = String::new();
    for other in others(topology, n) {
        line(
            &mut script,
            format_args!(
                "fdb append {} dev flannel.1 dst {} self permanent",
                vxlan_mac(other),
                node(other).v4
            ),
        );
    }
    script
}

/// Returns the commands at the node for the pod in namespace `pod` with the host side `device`.
pub fn pod_on_node(topology: &Topology, device: &str, pod: &str, addresses: &Addresses) -> String {
    let mtu = topology.pod_mtu();
    let mut script = String::new();
    match topology.wiring {
        Wiring::Bridge => {
            line(
                &mut script,
                format_args!(
                    "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}"
                ),
            );
            line(
                &mut script,
                format_args!("link set {device} master cni0 up"),
            );
            line(
                &mut script,
                format_args!("link set {device} type bridge_slave hairpin on"),
            );
        }
        Wiring::PointToPoint => {
            let link = format!("link add {device} address ee:ee:ee:ee:ee:ee mtu {mtu} type veth");
            line(
                &mut script,
                format_args!("{link} peer name eth0 mtu {mtu} netns {pod}"),
            );
            line(&mut script, format_args!("link set {device} up"));
            line(
                &mut script,
                format_args!("route add {}/32 dev {device} scope link", addresses.v4),
            );
            line(
                &mut script,
                format_args!("route add {}/128 dev {device}", addresses.v6),
            );
        }
    }
    script
}

/// The name of the host side of the `i`th pod's veth pair.
pub fn pod_device(topology: &Topology, i: u8) -> String {
    match topology.wiring {
        Wiring::Bridge => format!("veth{i}"),
        Wiring::PointToPoint => format!("cali{i}"),
    }
}

/// Sysctls of a node for the host side of a pod's veth pair, once that is there.
pub fn pod_device_sysctls(topology: &Topology, device: &str) -> Vec<(String, &'static str)> {
    match topology.wiring {
        Wiring::Bridge => Vec::new(),
        // Proxy ARP would wait up to 0.8 s; Calico switches that off, too.
        Wiring::PointToPoint => {
            vec![
                (format!("ipv4/conf/{device}/proxy_arp"), "1"),
                (format!("ipv4/neigh/{device}/proxy_delay"), "0"),
            ]
        }
    }
}

/// The inside of a pod of the `n`th node.
pub fn pod_script(topology: &Topology, n: u8, addresses: &Addresses) -> String {
    match topology.wiring {
        Wiring::Bridge => {
            let Addresses { v4, v6 } = addresses;
            format!("{UP}addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n")
                + &default_by(&pod_gateway(n))
        }
        Wiring::PointToPoint => host_alone(addresses),
    }
}

/// The link-local address of every host side: what the kernel makes of the MAC address
/// ee:ee:ee:ee:ee:ee.
const CALICO_GATEWAY: &str = "fe80::ecee:eeff:feee:eeee";

const UP: &str = "link set lo up\nlink set eth0 up\n";

fn host_alone(Addresses { v4, v6 }: &Addresses) -> String {
    format!(
        "{UP}addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
         route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
         route add default via {CALICO_GATEWAY} dev eth0\n"
    )
}

fn host(addresses: &Addresses, name: &str) -> String {
    "link set lo up\n".to_owned() + &device(addresses, name)
}

fn device(Addresses { v4, v6 }: &Addresses, name: &str) -> String {
    format!("link set {name} up\naddr add {v4}/24 dev {name}\naddr add {v6}/64 dev {name} nodad\n")
}

fn default_by(Addresses { v4, v6 }: &Addresses) -> String {
    format!("route add default via {v4}\nroute add default via {v6}\n")
}

fn bridge(topology: &Topology, n: u8) -> String {
    let mtu = topology.pod_mtu();
    format!(
        "link add cni0 mtu {mtu} type bridge\n{}",
        device(&pod_gateway(n), "cni0")
    )
}

/// The other nodes of the `n`th, counted from 1.
fn others(topology: &Topology, n: u8) -> impl Iterator<Item = u8> + use<> {
    (1..=topology.nodes.len() as u8).filter(move |other| *other != n)
}

fn route_by_node(n: u8) -> String {
    let (pods, node) = (pod_network(n), node(n));
    format!(
        "route add {}/24 via {}\nroute add {}/64 via {}\n",
        pods.v4, node.v4, pods.v6, node.v6
    )
}

fn vxlan_mac(n: u8) -> String {
    format!("02:00:0a:f4:{n:02x}:00")
}

fn vxlan_device(topology: &Topology, n: u8) -> String {
    let (mtu, mac, local, uplink) = (
        topology.pod_mtu(),
        vxlan_mac(n),
        node(n).v4,
        topology.uplink.device(),
    );
    let Addresses { v4, v6 } = pod_network(n);
    format!(
        "link add flannel.1 address {mac} mtu {mtu} type vxlan id 1 local {local} dev {uplink} dstport 8472 nolearning\n\
         link set flannel.1 up\naddr add {v4}/32 dev flannel.1\naddr add {v6}/128 dev flannel.1 nodad\n"
    )
}

fn route_by_vxlan(n: u8) -> String {
    let (mac, Addresses { v4, v6 }) = (vxlan_mac(n), pod_network(n));
    format!(
        "neigh add {v4} lladdr {mac} dev flannel.1 nud permanent\nneigh add {v6} lladdr {mac} dev flannel.1 nud permanent\n\
         route add {v4}/24 via {v4} dev flannel.1 onlink\nroute add {v6}/64 via {v6} dev flannel.1 onlink\n"
    )
}

/// Writing to a `String` cannot fail.
fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(script, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::{PodSpec, pod};

    fn three(wiring: Wiring, join: Join) -> Topology {
        let nodes = Topology::new(wiring, join).node("node1", vec![PodSpec::new("a")]);
        nodes.node("node2", Vec::new()).node("node3", Vec::new())
    }

    #[test]
    fn a_node_has_a_route_to_the_pods_of_each_other_node_and_none_to_its_own() {
        let script = node_script(&three(Wiring::PointToPoint, Join::Routes), 2);
        assert!(script.contains("route add 10.244.1.0/24 via 192.0.2.11\n"));
        assert!(script.contains("route add fd00:244:3::/64 via 2001:db8:0:1::13\n"));
        assert!(!script.contains("10.244.2.0/24"));
    }

    #[test]
    fn vxlan_neighbours_and_forwarding_entries_agree() {
        let topology = three(Wiring::Bridge, Join::Vxlan);
        let (script, fdb) = (node_script(&topology, 1), forwarding_database(&topology, 1));
        assert!(script.contains(
            "neigh add 10.244.3.0 lladdr 02:00:0a:f4:03:00 dev flannel.1 nud permanent\n"
        ));
        assert!(fdb.contains(
            "fdb append 02:00:0a:f4:03:00 dev flannel.1 dst 192.0.2.13 self permanent\n"
        ));
    }

    #[test]
    fn a_point_to_point_pod_is_routed_to_by_its_own_device() {
        let script = pod_on_node(
            &three(Wiring::PointToPoint, Join::Routes),
            "cali0",
            "podns",
            &pod(1, 0),
        );
        assert!(script.contains("route add 10.244.1.10/32 dev cali0 scope link\n"));
    }
}
