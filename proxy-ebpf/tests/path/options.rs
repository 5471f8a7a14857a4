//! Options of a Service: affinity (V13), source ranges (V3); and drops at unused addresses of a
//! Service range.

use std::collections::BTreeSet;

use proxy_common::node::{AddressFlags, RangeKind};
use proxy_common::reason::Reason;
use proxy_common::service::{MAGLEV_CHUNK, MaglevKey, ServiceFlags, SourceKey};
use proxy_ebpf::Action;

use crate::both_families;
use crate::world::*;

both_families!(
    a_client_stays_with_its_backend_over_all_frontends,
    affinity_ends_after_its_time_and_each_connection_renews_it,
    affinity_ends_when_the_endpoint_leaves_the_set_that_applies,
    clients_are_apart_and_without_affinity_they_spread,
    maglev_goes_by_its_table,
    with_maglev_all_nodes_choose_alike_and_otherwise_each_by_itself,
    sources_out_of_range_are_dropped_before_anything_else,
    addresses_of_the_service_ranges_that_no_service_has_are_dropped,
    pods_of_other_nodes_short_circuit_the_external_policy,
);

const BACKENDS: [Dotted; 3] = [POD_A, POD_B, REMOTE];

/// Returns a node with a nodePort and a cluster IP of one service port with affinity, and three
/// backends.
fn sticky<F: Net>(seconds: u32) -> Node<F> {
    let backends = BACKENDS.map(pod::<F>);
    let mut node = Node::<F>::new()
        .with_cluster_ip(0, &backends)
        .with_node_port(0, &backends);
    node.tables
        .services
        .values_mut()
        .for_each(|service| (service.affinity, service.id) = (seconds, 7));
    node
}

/// Returns the backend of a new connection from this port of a client.
fn backend<F: Net>(node: &Node<F>, client: Dotted, port: u16, to: End) -> std::net::SocketAddr {
    for protocol in PROTOCOLS {
        let hop = node.from_device(&opening::<F>(protocol, (client, port), to));
        assert!(
            matches!(hop.said, Ok(Action::Pod(_) | Action::Neighbour(_))),
            "{hop:?}"
        );
    }
    let hop = node.from_device(&opening::<F>(PROTOCOLS[0], (client, port), to));
    crate::segment::Segment::read(hop.bytes())
        .expect("a valid packet")
        .dst
}

/// V13: affinity is keyed by client address and service port, not by VIP, protocol or source port.
fn a_client_stays_with_its_backend_over_all_frontends<F: Net>() {
    let node = sticky::<F>(100);
    let first = backend(&node, CLIENT, 40000, (NODE, NODE_PORT));
    for port in 40001..40020 {
        assert_eq!(backend(&node, CLIENT, port, (NODE, NODE_PORT)), first);
        assert_eq!(backend(&node, CLIENT, port, (VIP, 80)), first);
    }
}

/// V13: each new connection refreshes affinity; it ends after its timeout.
fn affinity_ends_after_its_time_and_each_connection_renews_it<F: Net>() {
    let mut ended = false;
    for port in 1..40 {
        let mut node = sticky::<F>(100);
        let first = backend(&node, CLIENT, port, (NODE, NODE_PORT));
        for again in 1..4 {
            node.later(99);
            assert_eq!(
                backend(&node, CLIENT, port + 1000 * again, (NODE, NODE_PORT)),
                first
            );
        }
        node.later(101);
        ended |= backend(&node, CLIENT, port + 5000, (NODE, NODE_PORT)) != first;
    }
    assert!(ended, "no client ever moved after its time");
}

/// V13: affinity ends when the endpoint leaves the applicable set, Local or Cluster.
fn affinity_ends_when_the_endpoint_leaves_the_set_that_applies<F: Net>() {
    let mut node = sticky::<F>(100);
    let first = backend(&node, CLIENT, 40000, (NODE, NODE_PORT));
    let left: Vec<_> = BACKENDS
        .into_iter()
        .filter(|dotted| F::ip(*dotted) != first.ip())
        .collect();
    node = node.with_node_port(
        0,
        &left
            .iter()
            .map(|dotted| pod::<F>(*dotted))
            .collect::<Vec<_>>(),
    );
    node.tables
        .services
        .values_mut()
        .for_each(|service| (service.affinity, service.id) = (100, 7));
    let second = backend(&node, CLIENT, 40001, (NODE, NODE_PORT));
    assert_ne!(second, first);

    let node =
        Node::<F>::new().with_node_port(ServiceFlags::LOCAL, &[pod::<F>(POD_A), pod::<F>(REMOTE)]);
    let mut node = Node::<F> {
        tables: node.tables,
    };
    node.tables
        .services
        .values_mut()
        .for_each(|service| (service.affinity, service.local_len) = (100, 1));
    // Pods use the Cluster set (V11) and may keep the remote backend; the Local set for clients
    // outside lacks it.
    let remote = (1..60).find(|port| {
        node.tables.affinity.borrow_mut().clear();
        let syn = opening::<F>(PROTOCOLS[0], (POD_B, *port), (NODE, NODE_PORT));
        node.from_pod(VETH_B, &syn).said == Ok(Action::Neighbour(ETH))
    });
    assert!(remote.is_some(), "the hash never chose the remote backend");
    node.from_device(&opening::<F>(PROTOCOLS[0], (POD_B, 999), (NODE, NODE_PORT)))
        .goes(Action::Pod(VETH_A));
}

/// V15: with Maglev the choice depends on the flow alone, not on the node's key and address.
fn with_maglev_all_nodes_choose_alike_and_otherwise_each_by_itself<F: Net>() {
    let choices = |flags: u32, secret: u64, own: Dotted| {
        let backends = BACKENDS.map(pod::<F>);
        let mut node = Node::<F>::new()
            .with_cluster_ip(flags, &backends)
            .with_node_port(flags, &backends);
        node.tables.config.secret = secret;
        node.tables.addresses.insert(
            F::at(own),
            AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS),
        );
        [(own, NODE_PORT), (VIP, 80)].map(|to| {
            (1..200)
                .map(|port| backend(&node, CLIENT, port, to))
                .collect::<Vec<_>>()
        })
    };
    let maglev = choices(ServiceFlags::MAGLEV, 1, NODE);
    assert_eq!(maglev, choices(ServiceFlags::MAGLEV, 2, NODE2));
    for chosen in maglev {
        assert_eq!(
            chosen.into_iter().collect::<BTreeSet<_>>().len(),
            BACKENDS.len()
        );
    }
    for (ours, theirs) in choices(0, 1, NODE).into_iter().zip(choices(0, 2, NODE2)) {
        assert_ne!(ours, theirs);
    }
}

/// The Maglev table names the backend; where it is empty, or names none of the set, the hash
/// chooses.
fn maglev_goes_by_its_table<F: Net>() {
    let backends = BACKENDS.map(pod::<F>);
    for (set, entry, chosen) in [
        (MaglevKey::CLUSTER, 1, 1),
        (0, 1, BACKENDS.len()),
        (MaglevKey::CLUSTER, 9, BACKENDS.len()),
    ] {
        let mut node = Node::<F>::new().with_node_port(ServiceFlags::MAGLEV, &backends);
        for chunk in 0..8 {
            let set = set | if F::V6 { MaglevKey::V6 } else { 0 };
            node.tables.maglev.insert(
                MaglevKey {
                    generation: 1,
                    set,
                    chunk,
                },
                [entry; MAGLEV_CHUNK],
            );
        }
        let seen: BTreeSet<_> = (1..200)
            .map(|port| backend(&node, CLIENT, port, (NODE, NODE_PORT)))
            .collect();
        assert_eq!(seen.len(), chosen, "set {set}, entry {entry}: {seen:?}");
        assert!(
            chosen > 1 || seen.iter().all(|backend| backend.ip() == F::ip(POD_B)),
            "{seen:?}"
        );
    }
}

/// V15: different clients get different backends.
fn clients_are_apart_and_without_affinity_they_spread<F: Net>() {
    let node = sticky::<F>(100);
    let clients =
        (1..60).map(|host| backend(&node, [198, 51, 100, host], 40000, (NODE, NODE_PORT)));
    assert_eq!(clients.collect::<std::collections::BTreeSet<_>>().len(), 3);
    let node = sticky::<F>(0);
    let ports = (1..60).map(|port| backend(&node, CLIENT, port, (NODE, NODE_PORT)));
    assert_eq!(ports.collect::<std::collections::BTreeSet<_>>().len(), 3);
}

/// Verdict table, first row: source ranges apply to pods too, and before the search for a backend.
fn sources_out_of_range_are_dropped_before_anything_else<F: Net>() {
    for backends in [&[pod::<F>(POD_A)][..], &[]] {
        let mut node = Node::<F>::new()
            .with_node_port(ServiceFlags::SOURCE_RANGES | ServiceFlags::LOCAL, backends);
        node.tables.sources.insert((
            SourceKey {
                service: 1,
                addr: F::at(CLIENT),
            },
            if F::V6 { 120 } else { 24 },
        ));
        node.tables.sources.insert((
            SourceKey {
                service: 2,
                addr: F::at([203, 0, 113, 0]),
            },
            0,
        ));
        for protocol in PROTOCOLS {
            let out = opening::<F>(protocol, ([203, 0, 113, 9], 40000), (NODE, NODE_PORT));
            node.from_device(&out).dropped(Reason::SourceNotAllowed);
            node.from_pod(
                VETH_B,
                &opening::<F>(protocol, (POD_B, 1), (NODE, NODE_PORT)),
            )
            .dropped(Reason::SourceNotAllowed);
            let within = opening::<F>(protocol, ([198, 51, 100, 250], 40000), (NODE, NODE_PORT));
            if backends.is_empty() {
                node.from_device(&within).refused(ETH);
            } else {
                node.from_device(&within).goes(Action::Pod(VETH_A));
            }
        }
    }
}

/// V11: other nodes' pods use the Cluster set, masqueraded to remote backends (V9); a node's
/// address inside their range counts as outside.
fn pods_of_other_nodes_short_circuit_the_external_policy<F: Net>() {
    const OTHER: Dotted = [10, 244, 2, 77];
    for protocol in PROTOCOLS {
        let node = Node::<F>::new()
            .with_node_port(ServiceFlags::LOCAL, &[pod::<F>(REMOTE)])
            .without_local_backends();
        let mut node = node
            .with_cluster_ip(ServiceFlags::LOCAL, &[pod::<F>(REMOTE)])
            .without_local_backends();
        let (to_node, to_vip) = ([(NODE, NODE_PORT), (VIP, 80)])
            .map(|to| opening::<F>(protocol, (OTHER, 40000), to))
            .into();
        node.from_device(&to_node).refused(ETH);
        node.tables.ranges.insert(
            (F::at([10, 244, 0, 0]), if F::V6 { 112 } else { 16 }),
            RangeKind::PODS,
        );
        let left = node.from_device(&to_node).goes(Action::Neighbour(ETH));
        assert_eq!(
            (left.src.ip(), left.dst),
            (end::<F>((NODE, 0)).ip(), end::<F>((REMOTE, 8080)))
        );
        node.from_device(&to_vip).dropped(Reason::AwaitLocalBackend);
        node.from_device(&opening::<F>(protocol, (CLIENT, 40000), (NODE, NODE_PORT)))
            .refused(ETH);

        node.tables.ranges.insert(
            (F::at(OTHER), if F::V6 { 128 } else { 32 }),
            RangeKind::NONE,
        );
        node.from_device(&opening::<F>(protocol, (OTHER, 40001), (NODE, NODE_PORT)))
            .refused(ETH);
    }
}

/// Verdict table: packets to such addresses are dropped, except to the host's own (V20) and to
/// another proxy's (V1).
fn addresses_of_the_service_ranges_that_no_service_has_are_dropped<F: Net>() {
    const NOBODY: Dotted = [10, 96, 0, 77];
    for protocol in PROTOCOLS {
        let mut node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
        let syn = opening::<F>(protocol, (POD_B, 40000), (NOBODY, 80));
        node.from_pod(VETH_B, &syn).untouched();
        node.tables.ranges.insert(
            (F::at([10, 96, 0, 0]), if F::V6 { 112 } else { 16 }),
            RangeKind::SERVICES,
        );
        node.from_pod(VETH_B, &syn).dropped(Reason::NoSuchService);
        node.from_device(&opening::<F>(protocol, (CLIENT, 40000), (NOBODY, 80)))
            .dropped(Reason::NoSuchService);
        node.from_pod(VETH_B, &syn.clone().to(end::<F>((VIP, 80))))
            .goes(Action::Pod(VETH_A));
        node.from_pod(VETH_B, &syn.clone().to(end::<F>((CLIENT, 80))))
            .untouched();
        for flag in [AddressFlags::HOST, AddressFlags::FOREIGN] {
            node.tables
                .addresses
                .insert(F::at(NOBODY), AddressFlags(flag));
            node.from_pod(VETH_B, &syn).untouched();
        }
    }
}
