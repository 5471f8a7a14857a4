//! Source ports (V12): kept, replaced if two connections would share a reply key, or taken from the
//! masquerade range.

use std::collections::BTreeSet;

use proxy_common::net::Protocol;
use proxy_common::reason::Reason;
use proxy_ebpf::{Action, Table, Tables};

use crate::both_families;
use crate::segment::{ACK, FIN, Segment};
use crate::world::*;

both_families!(
    two_frontends_of_one_backend_get_two_replies,
    masquerade_ports_are_unique_per_backend,
    exhausted_range_refuses_the_flow,
    port_is_free_again_when_its_flow_is_gone,
    established_flow_keeps_its_port_from_others,
    port_is_kept_where_only_the_forward_half_was_evicted,
    range_without_ports_masquerades_nothing,
    crowded_range_still_finds_a_port,
    a_port_that_was_given_back_rests_until_the_range_has_come_round,
    a_client_that_comes_again_on_its_tuple_gets_its_port_again,
    where_all_ports_are_taken_those_of_closed_connections_are_given,
);

/// One client port, two frontends, one backend: the second connection gets another source port, and
/// each client its own replies.
fn two_frontends_of_one_backend_get_two_replies<F: Net>() {
    for protocol in PROTOCOLS {
        let backends = [pod::<F>(POD_A)];
        let node = Node::<F>::new()
            .with_cluster_ip(0, &backends)
            .with_node_port(0, &backends);
        let from = (POD_B, 40000);
        let one = node
            .from_pod(VETH_B, &opening::<F>(protocol, from, (VIP, 80)))
            .goes(Action::Pod(VETH_A));
        let two = node
            .from_pod(VETH_B, &opening::<F>(protocol, from, (NODE, NODE_PORT)))
            .goes(Action::Pod(VETH_A));
        assert_eq!(one.src, end::<F>(from));
        assert_eq!(two.src.ip(), one.src.ip());
        assert!((1024..30000).contains(&two.src.port()));

        let one = node
            .from_pod(VETH_A, &one.answer())
            .goes(Action::Pod(VETH_B));
        let two = node
            .from_pod(VETH_A, &two.answer())
            .goes(Action::Pod(VETH_B));
        assert_eq!((one.src, one.dst), (end::<F>((VIP, 80)), end::<F>(from)));
        assert_eq!(
            (two.src, two.dst),
            (end::<F>((NODE, NODE_PORT)), end::<F>(from))
        );
        assert_eq!(node.flows(), (0, 4));
    }
}

/// V12: ports are unique per backend address and port: two backends may see the same port.
fn masquerade_ports_are_unique_per_backend<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    (
        node.tables.config.masquerade_first,
        node.tables.config.masquerade_len,
    ) = (2000, 64);
    let mut ports = BTreeSet::new();
    for client in 1..=32 {
        let syn = opening::<F>(Protocol::TCP, (CLIENT, client), (NODE, NODE_PORT));
        let left = node.from_device(&syn).goes(Action::Neighbour(ETH));
        assert!((2000..2064).contains(&left.src.port()));
        assert!(ports.insert(left.src.port()), "twice {}", left.src);
    }

    let node = Node::<F>::new()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE), pod::<F>(NODE2)]);
    let mut left = BTreeSet::new();
    for client in 1..=32 {
        if let Ok(action) = node
            .from_device(&opening::<F>(
                Protocol::TCP,
                (CLIENT, client),
                (NODE, NODE_PORT),
            ))
            .said
        {
            assert_eq!(action, Action::Neighbour(ETH));
            left.insert(client);
        }
    }
    assert_eq!(left.len(), 2, "one connection to each of the two");
}

/// V12: if no port is left, the new connection is dropped without a flow, and the old one goes on.
fn exhausted_range_refuses_the_flow<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new()
            .with_masquerade_port(2000)
            .with_node_port(0, &[pod::<F>(REMOTE)]);
        let first = opening::<F>(protocol, (CLIENT, 1), (NODE, NODE_PORT));
        node.from_device(&first).goes(Action::Neighbour(ETH));
        node.from_device(&opening::<F>(protocol, (CLIENT, 2), (NODE, NODE_PORT)))
            .dropped(Reason::NoMasqueradePort);
        assert_eq!(node.flows(), (2, 0));
        assert_eq!(
            node.from_device(&first).goes(Action::Neighbour(ETH)).src,
            end::<F>((NODE, 2000))
        );
    }
}

/// V12: a port is free after its flow ends, here by the agent's sweep.
fn port_is_free_again_when_its_flow_is_gone<F: Net>() {
    let node = Node::<F>::new()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE)]);
    let left = node
        .from_device(&opening::<F>(Protocol::TCP, (CLIENT, 1), (NODE, NODE_PORT)))
        .goes(Action::Neighbour(ETH));
    node.from_device(&left.answer())
        .goes(Action::Neighbour(ETH));
    let two = opening::<F>(Protocol::TCP, (CLIENT, 2), (NODE, NODE_PORT));
    node.from_device(&two).dropped(Reason::NoMasqueradePort);
    node.tables.established.borrow_mut().clear();
    assert_eq!(
        node.from_device(&two).goes(Action::Neighbour(ETH)).src,
        end::<F>((NODE, 2000))
    );
}

/// A reply key among the established flows counts as taken, and the attempt adds no half-open
/// entry.
fn established_flow_keeps_its_port_from_others<F: Net>() {
    let node = Node::<F>::new()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE)]);
    let left = node
        .from_device(&opening::<F>(Protocol::TCP, (CLIENT, 1), (NODE, NODE_PORT)))
        .goes(Action::Neighbour(ETH));
    node.from_device(&left.answer())
        .goes(Action::Neighbour(ETH));
    node.from_device(&opening::<F>(Protocol::TCP, (CLIENT, 2), (NODE, NODE_PORT)))
        .dropped(Reason::NoMasqueradePort);
    assert_eq!(node.flows(), (0, 2));
    let answered = node
        .from_device(&left.answer().flags(ACK))
        .goes(Action::Neighbour(ETH));
    assert_eq!(answered.dst, end::<F>((CLIENT, 1)));
}

/// The reply entry that is left belongs to the same connection, so its port is not taken.
fn port_is_kept_where_only_the_forward_half_was_evicted<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let (from, to) = ((CLIENT, 40000), (NODE, NODE_PORT));
        let first = node
            .from_device(&opening::<F>(protocol, from, to))
            .goes(Action::Pod(VETH_A));
        node.tables
            .remove_flow(Table::Opening, &key::<F>(protocol, from, to));
        assert_eq!(
            node.from_device(&opening::<F>(protocol, from, to))
                .goes(Action::Pod(VETH_A)),
            first
        );
        assert_eq!(node.flows(), (2, 0));
    }
}

/// A masquerade range that was never written (zeros) yields no port 0.
fn range_without_ports_masquerades_nothing<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    node.tables.config = Default::default();
    node.from_device(&opening::<F>(Protocol::TCP, (CLIENT, 1), (NODE, NODE_PORT)))
        .dropped(Reason::NoMasqueradePort);
}

/// V12: with seven of eight ports to a backend taken (25,000 of the default range), every new
/// connection finds one.
fn crowded_range_still_finds_a_port<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    (
        node.tables.config.masquerade_first,
        node.tables.config.masquerade_len,
    ) = (1024, 2048);
    for client in 0..1792 {
        let syn = opening::<F>(Protocol::TCP, (CLIENT, 1000 + client), (NODE, NODE_PORT));
        node.from_device(&syn).goes(Action::Neighbour(ETH));
    }
    // Ports are tried in order: the free ones first, then the block that is taken.
    for client in 0..2048 {
        let (from, to) = ((CLIENT, 10_000 + client), (NODE, NODE_PORT));
        let left = node
            .from_device(&opening::<F>(Protocol::TCP, from, to))
            .goes(Action::Neighbour(ETH));
        give_back(&node, from, to, left.src.port());
    }
}

/// A backend may hold the port of a connection that it closed in TIME_WAIT, and not answer another
/// one on it at once.
fn a_port_that_was_given_back_rests_until_the_range_has_come_round<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    (
        node.tables.config.masquerade_first,
        node.tables.config.masquerade_len,
    ) = (2000, 512);
    let ports: Vec<u16> = (0..1024)
        .map(|client| {
            let (from, to) = ((CLIENT, 10_000 + client), (NODE, NODE_PORT));
            let port = node
                .from_device(&opening::<F>(Protocol::TCP, from, to))
                .goes(Action::Neighbour(ETH))
                .src
                .port();
            give_back(&node, from, to, port);
            port
        })
        .collect();
    assert_eq!(ports[..512].iter().collect::<BTreeSet<_>>().len(), 512);
    assert_eq!(ports[..512], ports[512..]);
}

/// V17: TIME_WAIT accepts the next connection of the same client (its timestamps increase), hardly
/// another client's.
fn a_client_that_comes_again_on_its_tuple_gets_its_port_again<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let open = |client| opening::<F>(Protocol::TCP, (CLIENT, client), (NODE, NODE_PORT));
    let (first, other) = (
        connect_and_close(&node, &open(1)),
        connect_and_close(&node, &open(2)),
    );
    assert_ne!(first, other);
    let again = node.from_device(&open(1)).goes(Action::Neighbour(ETH));
    assert_eq!(again.src.port(), first);
    assert_ne!(
        node.from_device(&open(3))
            .goes(Action::Neighbour(ETH))
            .src
            .port(),
        first
    );
}

/// V12: ports of closed connections are given away first.
fn where_all_ports_are_taken_those_of_closed_connections_are_given<F: Net>() {
    let node = Node::<F>::new()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE)]);
    let open = |client| opening::<F>(Protocol::TCP, (CLIENT, client), (NODE, NODE_PORT));
    connect_and_close(&node, &open(1));
    let left = node.from_device(&open(2)).goes(Action::Neighbour(ETH));
    assert_eq!(left.src, end::<F>((NODE, 2000)));
    assert_eq!(
        node.flows(),
        (2, 1),
        "of the closed one only the half that leads nowhere else"
    );
    assert_eq!(
        node.from_device(&left.answer())
            .goes(Action::Neighbour(ETH))
            .dst,
        end::<F>((CLIENT, 2))
    );
    node.from_device(&open(3)).dropped(Reason::NoMasqueradePort);
}

/// Makes and closes a connection to the remote backend; returns its masquerade port.
fn connect_and_close<F: Net>(node: &Node<F>, syn: &Segment) -> u16 {
    let left = node.from_device(syn).goes(Action::Neighbour(ETH));
    node.from_device(&left.answer())
        .goes(Action::Neighbour(ETH));
    node.from_device(&left.answer().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    node.from_device(&syn.clone().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    left.src.port()
}

/// Removes the flow of a connection.
fn give_back<F: Net>(node: &Node<F>, from: End, to: End, port: u16) {
    node.tables
        .remove_flow(Table::Opening, &key::<F>(Protocol::TCP, from, to));
    node.tables.remove_flow(
        Table::Opening,
        &key::<F>(Protocol::TCP, (REMOTE, 8080), (NODE, port)),
    );
}
