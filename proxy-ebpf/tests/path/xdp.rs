//! XDP: it sends what tc would send plus the link-layer header, or leaves the packet unchanged.

use proxy_common::net::{IfIndex, Protocol};
use proxy_common::node::Device;
use proxy_common::reason::Counter;
use proxy_ebpf::{Action, Route};

use crate::both_families;
use crate::segment::{ACK, FIN, Segment, overhead};
use crate::world::*;

both_families!(
    first_packet_is_left_to_tc,
    both_directions_leave_as_at_tc,
    local_pods_and_processes_are_left_to_tc,
    flows_of_pods_are_left_to_tc,
    what_xdp_cannot_finish_is_left_to_tc,
    other_devices_need_a_program_to_send,
    closed_flow_makes_room_for_tc,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);

fn data<F: Net>(protocol: Protocol) -> Segment {
    packet::<F>(protocol, FROM, TO).flags(ACK)
}

/// Returns a node with a half-open connection to a remote backend, and the packet that the backend
/// saw.
fn opened<F: Net>(protocol: Protocol) -> (Node<F>, Segment) {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let there = node
        .from_device(&opening::<F>(protocol, FROM, TO))
        .goes(Action::Neighbour(ETH));
    (node, there)
}

/// Only tc opens flows: it can refuse them, and has the instructions for it.
fn first_packet_is_left_to_tc<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        node.xdp(&opening::<F>(protocol, FROM, TO)).untouched();
        assert_eq!(
            (node.flows(), node.tables.counted(Counter::LeftToTc)),
            ((0, 0), 0)
        );
    }
}

/// Half-open and established, forward and reply: the bytes that tc sends, with the next hop's MAC
/// addresses.
fn both_directions_leave_as_at_tc<F: Net>() {
    for protocol in PROTOCOLS {
        let (node, there) = opened::<F>(protocol);
        let twin = Node::<F> {
            tables: node.tables.clone(),
        };
        for packet in [
            opening::<F>(protocol, FROM, TO),
            there.answer(),
            data::<F>(protocol),
            there.answer().flags(FIN | ACK),
        ] {
            let sent = node.xdp(&packet).goes(Action::Transmit(ETH));
            let tc = twin.from_device(&packet).goes(Action::Neighbour(ETH));
            assert_eq!(sent, Segment { link: LINK, ..tc });
            assert_eq!(node.tables.established, twin.tables.established);
            assert_eq!(node.tables.opening, twin.tables.opening);
        }
        assert_eq!(node.flows(), (0, 2));
    }
}

/// Packets to local pods and local processes are left to tc.
fn local_pods_and_processes_are_left_to_tc<F: Net>() {
    for (protocol, backend) in PROTOCOLS
        .into_iter()
        .flat_map(|p| [pod::<F>(POD_A), process::<F>(NODE)].map(|b| (p, b)))
    {
        let node = Node::<F>::new().with_node_port(0, &[backend]);
        assert!(
            node.from_device(&opening::<F>(protocol, FROM, TO))
                .said
                .is_ok()
        );
        node.xdp(&data::<F>(protocol)).untouched();
        assert_eq!(node.tables.counted(Counter::LeftToTc), 1);
    }
}

/// The reply to a pod's own connection must enter the pod, which XDP cannot do.
fn flows_of_pods_are_left_to_tc<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
        let there = node
            .from_pod(VETH_A, &opening::<F>(protocol, (POD_A, 1), (VIP, 80)))
            .goes(Action::Neighbour(ETH));
        node.xdp(&there.answer()).untouched();
        node.from_device(&there.answer()).goes(Action::Pod(VETH_A));
    }
}

/// XDP leaves packets unchanged to tc: an unresolved next hop, one that does not fit, one at its
/// last hop.
fn what_xdp_cannot_finish_is_left_to_tc<F: Net>() {
    for protocol in PROTOCOLS {
        let (node, _) = opened::<F>(protocol);
        let overhead = if F::V6 { 40 } else { 20 } + overhead(protocol);
        node.xdp(&data::<F>(protocol).payload(&vec![1; 1500 - overhead]))
            .goes(Action::Transmit(ETH));
        node.xdp(&data::<F>(protocol).payload(&vec![1; 1501 - overhead]))
            .untouched();
        node.xdp(&data::<F>(protocol).ttl(2))
            .goes(Action::Transmit(ETH));
        node.xdp(&data::<F>(protocol).ttl(1)).untouched();
        node.xdp(&data::<F>(protocol).ttl(0)).untouched();

        let unresolved =
            |node: &mut Node<F>, route| node.tables.routes.insert(F::at(REMOTE), route);
        let (mut node, _) = opened::<F>(protocol);
        unresolved(
            &mut node,
            Route {
                device: ETH,
                neighbour: None,
            },
        );
        node.xdp(&data::<F>(protocol)).untouched();
        node.from_device(&data::<F>(protocol))
            .goes(Action::Neighbour(ETH));
        node.tables.routes.clear();
        node.xdp(&data::<F>(protocol)).untouched();
        assert_eq!(node.tables.counted(Counter::LeftToTc), 2);
    }
}

/// XDP redirects to another device only if that device's driver can send such frames.
fn other_devices_need_a_program_to_send<F: Net>() {
    let other = IfIndex(3);
    for protocol in PROTOCOLS {
        let (mut node, _) = opened::<F>(protocol);
        node.tables.routes.insert(
            F::at(REMOTE),
            Route {
                device: other,
                neighbour: Some(LINK),
            },
        );
        node.xdp(&data::<F>(protocol)).untouched();
        let device = |flags| Device {
            mtu: 1500,
            flags,
            ..Device::default()
        };
        node.tables.devices.insert(other, device(0));
        node.xdp(&data::<F>(protocol)).untouched();
        node.tables
            .devices
            .insert(other, device(Device::XDP_TARGET));
        node.xdp(&data::<F>(protocol)).goes(Action::Transmit(other));
    }
}

/// V17 in XDP: a SYN on a closed flow is left to tc, which opens the new one.
fn closed_flow_makes_room_for_tc<F: Net>() {
    let (node, there) = opened::<F>(Protocol::TCP);
    let fin = FIN | ACK;
    for packet in [
        there.answer(),
        data::<F>(Protocol::TCP).flags(fin),
        there.answer().flags(fin),
    ] {
        node.xdp(&packet).goes(Action::Transmit(ETH));
    }
    let syn = opening::<F>(Protocol::TCP, FROM, TO);
    node.xdp(&syn).untouched();
    node.from_device(&syn).goes(Action::Neighbour(ETH));
    assert_eq!(node.tables.counted(Counter::Opened), 2);
}
