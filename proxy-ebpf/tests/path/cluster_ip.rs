//! A pod reaches a cluster IP, wherever the backend is, itself included.

use proxy_common::net::{Port, Protocol};
use proxy_common::node::{AddressFlags, LocalPod};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, ServiceFlags};
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::ACK;
use crate::world::*;

both_families!(
    pod_reaches_a_pod_of_its_node,
    pod_reaches_a_pod_of_another_node,
    replies_that_came_through_the_stack_are_restored_too,
    pod_reaches_a_process_of_its_node,
    pod_reaches_a_process_of_another_node,
    pod_reaches_itself,
    client_outside_reaches_a_cluster_ip,
    service_ports_have_target_ports_of_their_own,
    backend_of_another_generation_is_not_used,
    pod_without_a_device_is_waited_for,
    no_route_no_flow,
);

const FROM: End = (POD_B, 40000);
const TO: End = (VIP, 80);

/// V9: between pods of one node both directions are redirected, and the client's address is kept.
fn pod_reaches_a_pod_of_its_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
        let syn = opening::<F>(protocol, FROM, TO);
        let arrived = node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
        assert_eq!(arrived, syn.to(end::<F>((POD_A, TARGET))).hop());

        let answer = arrived.answer();
        let answered = node.from_pod(VETH_A, &answer).goes(Action::Pod(VETH_B));
        assert_eq!(answered, answer.from(end::<F>(TO)).hop());
        assert_eq!(node.flows(), (0, 2));
    }
}

/// V9: a pod keeps its address; the reply comes in by the device and goes straight into the pod.
fn pod_reaches_a_pod_of_another_node<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
        let syn = opening::<F>(protocol, FROM, TO);
        let left = node.from_pod(VETH_B, &syn).goes(Action::Neighbour(ETH));
        assert_eq!(left, syn.to(end::<F>((REMOTE, TARGET))).hop());

        let answer = left.answer();
        let answered = node.from_device(&answer).goes(Action::Pod(VETH_B));
        assert_eq!(answered, answer.from(end::<F>(TO)).hop());
        assert_eq!(node.flows(), (0, 2));
        assert_eq!(node.tables.counted(Counter::Fallback), 0);
    }
}

/// A reply that arrives at a device without a program of ours comes through the stack: it is
/// restored, and counted.
fn replies_that_came_through_the_stack_are_restored_too<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
        let left = node
            .from_pod(VETH_B, &opening::<F>(protocol, FROM, TO))
            .goes(Action::Neighbour(ETH));

        let answer = left.answer();
        let answered = node.to_pod(VETH_B, &answer).goes(Action::Stack);
        assert_eq!(answered, answer.from(end::<F>(TO)));
        assert_eq!(node.tables.counted(Counter::Fallback), 1);
        assert_eq!(node.flows(), (0, 2));
    }
}

/// A hostNetwork backend of this node is reached through the stack, in both directions.
fn pod_reaches_a_process_of_its_node<F: Net>() {
    by_the_stack::<F>(NODE);
}

/// A hostNetwork backend of another node is reached through the stack, where the CNI masquerades,
/// in both directions.
fn pod_reaches_a_process_of_another_node<F: Net>() {
    by_the_stack::<F>(NODE2);
}

fn by_the_stack<F: Net>(backend: Dotted) {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[process::<F>(backend)]);
        let syn = opening::<F>(protocol, FROM, TO);
        let left = node.from_pod(VETH_B, &syn).goes(Action::Stack);
        assert_eq!(left, syn.to(end::<F>((backend, TARGET))));

        // At the device the reply is left to the stack, which undoes the CNI's masquerade first.
        let answer = left.answer();
        node.from_device(&answer).untouched();
        let answered = node.to_pod(VETH_B, &answer).goes(Action::Stack);
        assert_eq!(answered, answer.from(end::<F>(TO)));
        assert_eq!(node.flows(), (0, 2));
        assert_eq!(node.tables.counted(Counter::Fallback), 0);
    }
}

/// V10: a pod that reaches itself is always masqueraded; else it would answer itself and bypass the
/// rewrite.
fn pod_reaches_itself<F: Net>() {
    for (protocol, to) in PROTOCOLS
        .into_iter()
        .flat_map(|p| [TO, (NODE, NODE_PORT)].map(|to| (p, to)))
    {
        let backends = [pod::<F>(POD_B)];
        let node = Node::<F>::new()
            .with_cluster_ip(0, &backends)
            .with_node_port(0, &backends);
        let syn = opening::<F>(protocol, FROM, to);
        let arrived = node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_B));
        let masquerade = (to.0, arrived.src.port());
        assert!((1024..30000).contains(&masquerade.1));
        assert_eq!(
            arrived,
            syn.from(end::<F>(masquerade))
                .to(end::<F>((POD_B, TARGET)))
                .hop()
        );

        let answer = arrived.answer();
        let answered = node.from_pod(VETH_B, &answer).goes(Action::Pod(VETH_B));
        assert_eq!(answered, answer.from(end::<F>(to)).to(end::<F>(FROM)).hop());
        assert_eq!(node.flows(), (0, 2));
    }
}

/// V9: a client outside reaches a cluster IP like a nodePort: masqueraded to another node's
/// backend, not to a local one.
fn client_outside_reaches_a_cluster_ip<F: Net>() {
    let from = (CLIENT, 40000);
    let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(REMOTE)]);
    let left = node
        .from_device(&opening::<F>(Protocol::TCP, from, TO))
        .goes(Action::Neighbour(ETH));
    assert_eq!(left.src.ip(), F::ip(NODE));
    let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
    let arrived = node
        .from_device(&opening::<F>(Protocol::TCP, from, TO))
        .goes(Action::Pod(VETH_A));
    assert_eq!(arrived.src, end::<F>(from));
}

/// V4: target ports may differ per endpoint.
fn service_ports_have_target_ports_of_their_own<F: Net>() {
    let backends = [
        pod::<F>(POD_A),
        Backend {
            port: Port::new(9090),
            ..pod::<F>(REMOTE)
        },
    ];
    let node = Node::<F>::new().with_cluster_ip(0, &backends);
    let mut seen = std::collections::BTreeSet::new();
    for port in 40000..40050 {
        let hop = node.from_pod(VETH_B, &opening::<F>(Protocol::TCP, (POD_B, port), TO));
        seen.insert(
            crate::segment::Segment::read(hop.bytes())
                .expect("a valid packet")
                .dst,
        );
    }
    assert_eq!(
        seen,
        [end::<F>((POD_A, TARGET)), end::<F>((REMOTE, 9090))].into()
    );
}

/// Write order: a slot with another generation is not used; another Service may own it already.
fn backend_of_another_generation_is_not_used<F: Net>() {
    let mut node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
    node.tables
        .backends
        .values_mut()
        .for_each(|backend| backend.generation += 1);
    let syn = opening::<F>(Protocol::TCP, FROM, TO);
    node.from_pod(VETH_B, &syn).dropped(Reason::BackendMissing);
    node.tables.backends.clear();
    node.from_pod(VETH_B, &syn).dropped(Reason::BackendMissing);
    assert_eq!(node.flows(), (0, 0));
}

/// Write order: new flows to a pod fail until its device is known, and succeed afterwards.
fn pod_without_a_device_is_waited_for<F: Net>() {
    let mut node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
    node.tables.pods.insert(F::at(POD_A), LocalPod::default());
    let syn = opening::<F>(Protocol::TCP, FROM, TO);
    node.from_pod(VETH_B, &syn)
        .dropped(Reason::PodDeviceUnknown);
    assert_eq!(node.flows(), (0, 0));
    node.tables.pods.insert(
        F::at(POD_A),
        LocalPod {
            device: VETH_A,
            pod_id: 0,
        },
    );
    node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
}

/// V12: without a route, or an address to masquerade with, no flow is opened.
fn no_route_no_flow<F: Net>() {
    let mut node = Node::<F>::new().with_cluster_ip(ServiceFlags::EXTERNAL_IP, &[pod::<F>(REMOTE)]);
    let syn = opening::<F>(Protocol::TCP, FROM, TO);
    let outside = opening::<F>(Protocol::TCP, (CLIENT, 1), TO);
    node.tables.devices.clear();
    node.from_device(&outside)
        .dropped(Reason::NoMasqueradeAddress);
    node.tables.routes.clear();
    node.from_device(&outside).dropped(Reason::NoRoute);
    node.from_pod(VETH_B, &syn).dropped(Reason::NoRoute);
    assert_eq!(node.flows(), (0, 0));
    assert!(node.tables.addresses[&F::at(VIP)].has(AddressFlags::CLUSTER_IP));
    node.from_pod(VETH_B, &packet::<F>(Protocol::TCP, FROM, TO).flags(ACK))
        .dropped(Reason::NotSyn);
}
