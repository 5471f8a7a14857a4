//! Flows that open anew: SYN on a closed connection, or on one without its backend (V17), and
//! expired UDP (V18).

use super::*;

both_families!(
    syn_on_a_closed_connection_opens_a_new_one,
    syn_on_a_living_connection_does_not,
    syn_whose_backend_has_left_opens_a_new_flow,
    syn_whose_backend_is_for_policy_local_only_opens_a_new_flow,
    one_way_udp_keeps_its_backend,
    expired_udp_flow_is_opened_anew,
    udp_flow_with_replies_only_is_alive,
);

/// V17: a SYN on a closed flow (FIN of both sides, or RST of one) opens a new connection to a
/// current backend.
fn syn_on_a_closed_connection_opens_a_new_one<F: Net>() {
    for (forward, reply) in [
        (Some(FIN | ACK), Some(FIN | ACK)),
        (Some(RST), None),
        (None, Some(RST | ACK)),
    ] {
        let (mut node, there) = connected::<F>(Protocol::TCP);
        node = node.with_node_port(0, &[pod::<F>(POD_A)]);
        if let Some(flags) = forward {
            node.from_device(&data::<F>().flags(flags))
                .goes(Action::Neighbour(ETH));
        }
        if let Some(flags) = reply {
            node.from_device(&there.answer().flags(flags))
                .goes(Action::Neighbour(ETH));
        }
        assert_eq!(
            node.from_device(&data::<F>())
                .goes(Action::Neighbour(ETH))
                .dst,
            there.dst,
            "the last ACK"
        );
        node.from_device(&syn::<F>()).goes(Action::Pod(VETH_A));
        assert_eq!(node.flows(), (2, 0));
        node.from_device(&there.answer()).untouched();
    }
}

/// V17: a late SYN, or one on a half-closed connection, does not replace the flow.
fn syn_on_a_living_connection_does_not<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::TCP);
    node = node.with_node_port(0, &[pod::<F>(POD_A), pod::<F>(REMOTE)]);
    assert_eq!(
        node.from_device(&syn::<F>())
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
    node.from_device(&data::<F>().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    assert_eq!(
        node.from_device(&syn::<F>())
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
    assert_eq!(node.flows(), (0, 2));
}

/// V17: a SYN on a connection with a backend that has left the Service opens a new one, half-open
/// or established; the old one goes on until then.
fn syn_whose_backend_has_left_opens_a_new_flow<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::TCP);
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    assert_eq!(
        node.from_device(&data::<F>())
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
    node.from_device(&syn::<F>()).goes(Action::Pod(VETH_A));
    node = node.with_node_port(0, &[pod::<F>(POD_B)]);
    node.from_device(&syn::<F>()).goes(Action::Pod(VETH_B));
    assert_eq!(node.flows(), (2, 0));
    node.tables.services.clear();
    node.from_device(&syn::<F>()).untouched();
    assert_eq!(node.flows(), (0, 0));
}

/// V17, V7: the backend in the first slot serves policy Local only, so a Cluster frontend does not
/// keep it.
fn syn_whose_backend_is_for_policy_local_only_opens_a_new_flow<F: Net>() {
    for (flags, same) in [(0, false), (ServiceFlags::LOCAL, true)] {
        let (mut node, there) = connected::<F>(Protocol::TCP);
        node = node.with_node_port(flags, &[pod::<F>(REMOTE), pod::<F>(POD_A)]);
        node.tables
            .services
            .values_mut()
            .for_each(|service| (service.cluster_first, service.cluster_len) = (1, 1));
        let hop = node.from_device(&syn::<F>());
        if same {
            assert_eq!(hop.goes(Action::Neighbour(ETH)).dst, there.dst);
        } else {
            hop.goes(Action::Pod(VETH_A));
        }
    }
}

/// V18: an unanswered UDP client keeps backend and port while it sends (syslog, metrics), and no
/// longer.
fn one_way_udp_keeps_its_backend<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let datagram = packet::<F>(Protocol::UDP, FROM, TO);
    let first = node.from_device(&datagram).goes(Action::Neighbour(ETH));
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    for _ in 0..5 {
        node.later(29);
        assert_eq!(
            node.from_device(&datagram).goes(Action::Neighbour(ETH)).src,
            first.src
        );
    }
    node.later(31);
    node.from_device(&datagram).goes(Action::Pod(VETH_A));
}

/// V18: an answered UDP flow ends after its timeout; a datagram on it opens a new one.
fn expired_udp_flow_is_opened_anew<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::UDP);
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    let datagram = packet::<F>(Protocol::UDP, FROM, TO);
    for _ in 0..3 {
        node.later(119);
        assert_eq!(
            node.from_device(&datagram).goes(Action::Neighbour(ETH)).dst,
            there.dst,
            "each datagram keeps it alive"
        );
    }
    node.later(121);
    node.from_device(&datagram).goes(Action::Pod(VETH_A));
    assert_eq!(node.flows(), (2, 0));
}

/// V18: a packet in either direction refreshes both entries, so a stream from the backend alone
/// keeps the flow.
fn udp_flow_with_replies_only_is_alive<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::UDP);
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    for _ in 0..5 {
        node.later(60);
        node.from_device(&there.answer())
            .goes(Action::Neighbour(ETH));
    }
    assert_eq!(
        node.from_device(&packet::<F>(Protocol::UDP, FROM, TO))
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
}
