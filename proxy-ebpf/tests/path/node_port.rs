//! A client outside reaches a nodePort, wherever the backend is.

use proxy_common::net::Protocol;
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{ACK, SYN};
use crate::world::*;

both_families!(
    local_pod_sees_the_client,
    remote_pod_sees_the_node,
    process_here_is_reached_through_the_stack,
    process_of_another_node_sees_the_node,
    pod_reaches_the_node_port_of_its_own_node,
    established_packets_cost_one_lookup,
    ip_options_are_kept,
    every_backend_is_chosen,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);

/// V9: a backend on this node sees the client's address; the reply leaves by the device that the
/// request came by.
fn local_pod_sees_the_client<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let syn = opening::<F>(protocol, FROM, TO);

        let arrived = node.from_device(&syn).goes(Action::Pod(VETH_A));
        assert_eq!(arrived, syn.clone().to(end::<F>((POD_A, TARGET))).hop());
        assert_eq!(node.flows(), (2, 0));

        let answer = arrived.answer();
        let answered = node.from_pod(VETH_A, &answer).goes(Action::Neighbour(ETH));
        assert_eq!(answered, answer.from(end::<F>(TO)).hop());
        assert_eq!(node.flows(), (0, 2));

        let data = packet::<F>(protocol, FROM, TO).flags(ACK);
        let arrived = node.from_device(&data).goes(Action::Pod(VETH_A));
        assert_eq!(arrived, data.to(end::<F>((POD_A, TARGET))).hop());
    }
}

/// V9, V12: a backend of another node sees the node's address and a port of the masquerade range,
/// so that it answers to this node.
fn remote_pod_sees_the_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        there_and_back_masqueraded(&node, protocol, (REMOTE, TARGET));
    }
}

/// V9: the same for a hostNetwork backend of another node.
fn process_of_another_node_sees_the_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE2)]);
        there_and_back_masqueraded(&node, protocol, (NODE2, TARGET));
    }
}

fn there_and_back_masqueraded<F: Net>(node: &Node<F>, protocol: Protocol, backend: End) {
    let syn = opening::<F>(protocol, FROM, TO);
    let left = node.from_device(&syn).goes(Action::Neighbour(ETH));
    let port = left.src.port();
    assert!((1024..30000).contains(&port), "{port}");
    assert_eq!(
        left,
        syn.from(end::<F>((NODE, port))).to(end::<F>(backend)).hop()
    );

    let answer = left.answer();
    let answered = node.from_device(&answer).goes(Action::Neighbour(ETH));
    assert_eq!(answered, answer.from(end::<F>(TO)).to(end::<F>(FROM)).hop());
    assert_eq!(node.flows(), (0, 2));

    let data = packet::<F>(protocol, FROM, TO).flags(ACK);
    let left = node.from_device(&data).goes(Action::Neighbour(ETH));
    assert_eq!(
        left,
        data.from(end::<F>((NODE, port)))
            .to(end::<F>(backend))
            .hop()
    );
}

/// The stack delivers to a hostNetwork backend of this node, and decrements the TTL; its reply is
/// restored on the way out.
fn process_here_is_reached_through_the_stack<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE)]);
        let syn = opening::<F>(protocol, FROM, TO);

        let arrived = node.from_device(&syn).goes(Action::Stack);
        assert_eq!(arrived, syn.to(end::<F>((NODE, TARGET))));

        let answer = arrived.answer();
        let answered = node.to_device(&answer).goes(Action::Stack);
        assert_eq!(answered, answer.from(end::<F>(TO)));
        assert_eq!(node.flows(), (0, 2));
    }
}

/// V9, V11: a pod keeps its address towards a nodePort of its own node, and gets the reply from any
/// backend.
fn pod_reaches_the_node_port_of_its_own_node<F: Net>() {
    for protocol in PROTOCOLS {
        let from = (POD_B, 40000);
        let syn = opening::<F>(protocol, from, TO);

        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let arrived = node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
        assert_eq!(arrived, syn.clone().to(end::<F>((POD_A, TARGET))).hop());
        let answer = arrived.answer();
        let answered = node.from_pod(VETH_A, &answer).goes(Action::Pod(VETH_B));
        assert_eq!(answered, answer.from(end::<F>(TO)).hop());

        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        let left = node.from_pod(VETH_B, &syn).goes(Action::Neighbour(ETH));
        assert_eq!(left, syn.to(end::<F>((REMOTE, TARGET))).hop());
        let answer = left.answer();
        let answered = node.from_device(&answer).goes(Action::Pod(VETH_B));
        assert_eq!(answered, answer.from(end::<F>(TO)).hop());
    }
}

/// One lookup of an established, unfragmented packet yields the rewrite and the action.
fn established_packets_cost_one_lookup<F: Net>() {
    for (protocol, backend) in PROTOCOLS
        .into_iter()
        .flat_map(|p| [POD_A, REMOTE].map(|b| (p, b)))
    {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(backend)]);
        let opened = node.from_device(&opening::<F>(protocol, FROM, TO));
        let there = crate::segment::Segment::read(opened.bytes()).expect("a valid packet");
        let answer = |node: &Node<F>| match backend {
            POD_A => node.from_pod(VETH_A, &there.answer()),
            _ => node.from_device(&there.answer()),
        };
        answer(&node).goes(Action::Neighbour(ETH));
        assert_eq!(node.flows(), (0, 2));

        node.tables.lookups.set(0);
        assert!(
            node.from_device(&packet::<F>(protocol, FROM, TO).flags(ACK))
                .said
                .is_ok()
        );
        assert_eq!(node.tables.lookups.get(), 1, "forward");
        answer(&node).goes(Action::Neighbour(ETH));
        assert_eq!(node.tables.lookups.get(), 2, "reply");
    }
}

/// IPv4 options move the transport header, and are kept. IPv6 has none.
fn ip_options_are_kept<F: Net>() {
    if F::V6 {
        return;
    }
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(POD_A)]);
        let mut syn = opening::<F>(protocol, FROM, TO);
        // Router alert and padding, up to the forty bytes that options may have.
        syn.options = [[148, 4, 0, 0]; 10].concat();
        let arrived = node.from_device(&syn).goes(Action::Pod(VETH_A));
        assert_eq!(arrived, syn.to(end::<F>((POD_A, TARGET))).hop());
    }
}

/// V15: new connections spread over all backends.
fn every_backend_is_chosen<F: Net>() {
    let node = Node::<F>::new().with_node_port(
        0,
        &[
            pod::<F>(POD_A),
            pod::<F>(POD_B),
            pod::<F>(REMOTE),
            process::<F>(NODE),
        ],
    );
    let mut chosen = std::collections::BTreeMap::<_, u32>::new();
    for port in 40000..40400 {
        let hop = node.from_device(&opening::<F>(Protocol::TCP, (CLIENT, port), TO));
        let there = crate::segment::Segment::read(hop.bytes()).expect("a valid packet");
        assert_eq!(there.flags, SYN);
        *chosen.entry(there.dst.ip()).or_default() += 1;
    }
    assert_eq!(chosen.len(), 4);
    assert!(
        chosen.values().all(|times| (60..140).contains(times)),
        "{chosen:?}"
    );
}
