//! Sockets of the node's processes: the backends that they are sent to, and the peer names that
//! they see (V11, V13, V15, V19-V21).

use std::collections::BTreeSet;

use proxy_common::net::{Address, Port, Protocol};
use proxy_common::node::{AddressFlags, RangeKind};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, BackendFlags, ServiceFlags, ServiceKey, SourceKey};
use proxy_ebpf::fake::Memory;
use proxy_ebpf::socket::{Ask, asked, direct};

use crate::both_families;
use crate::world::*;

both_families!(
    process_reaches_a_cluster_ip_and_knows_it_by_that_name,
    process_reaches_its_nodes_node_port_and_not_another_nodes,
    loopback_serves_node_ports_where_nobody_listens,
    what_no_service_has_is_left_alone,
    refusals_have_their_reasons,
    process_has_a_pods_rights_where_the_policy_is_local,
    load_balancer_ranges_hold_for_the_node,
    sockets_spread,
    datagrams_of_a_socket_keep_their_backend,
    affinity_is_the_nodes_and_ends_with_its_time_or_its_endpoint,
    other_protocols_are_nobodys_business,
);

/// The protocols that have socket hooks.
const ASKING: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

const OTHER: Protocol = Protocol::SCTP;

fn ask<F: Net>(protocol: Protocol, cookie: u32, (dotted, port): End) -> Ask<F::Addr> {
    Ask {
        addr: F::at(dotted),
        port: Port::new(port),
        protocol,
        cookie: [cookie, 7],
    }
}

/// Asserts success and returns the destination of a socket.
fn sent<F: Net>(tables: &Memory<F>, ask: &Ask<F::Addr>) -> (F::Addr, Port) {
    direct::<F, _>(tables, ask)
        .expect("no refusal")
        .expect("a backend")
}

fn to<F: Net>((dotted, port): End) -> (F::Addr, Port) {
    (F::at(dotted), Port::new(port))
}

/// V21: a process connects to a backend of any node; getpeername and the sender of replies are the
/// frontend.
fn process_reaches_a_cluster_ip_and_knows_it_by_that_name<F: Net>() {
    for protocol in ASKING {
        for backend in [POD_A, REMOTE] {
            let tables = Node::<F>::new()
                .with_cluster_ip(0, &[pod::<F>(backend)])
                .tables;
            let ask = ask::<F>(protocol, 1, (VIP, 80));
            assert_eq!(sent(&tables, &ask), to::<F>((backend, TARGET)));
            let name =
                |cookie, port| asked::<F, _>(&tables, cookie, F::at(backend), Port::new(port));
            assert_eq!(name(ask.cookie, TARGET), Some(to::<F>((VIP, 80))));
            assert_eq!(
                name([2, 7], TARGET),
                None,
                "another socket that talks to the backend itself"
            );
            assert_eq!(name(ask.cookie, TARGET + 1), None, "another port of it");
            assert_eq!(tables.counted(Counter::SocketsDirected), 1);
            assert_eq!(
                tables.peers.borrow().len(),
                if protocol == Protocol::UDP { 2 } else { 1 }
            );
        }
    }
}

/// V8, V11: another node's address is not translated here.
fn process_reaches_its_nodes_node_port_and_not_another_nodes<F: Net>() {
    for protocol in ASKING {
        let tables = Node::<F>::new()
            .with_node_port(0, &[pod::<F>(REMOTE)])
            .tables;
        assert_eq!(
            sent(&tables, &ask::<F>(protocol, 1, (NODE, NODE_PORT))),
            to::<F>((REMOTE, TARGET))
        );
        assert_eq!(
            direct::<F, _>(&tables, &ask::<F>(protocol, 1, (NODE2, NODE_PORT))),
            Ok(None)
        );
    }
}

/// V21: a listener of the host is never hidden; the unspecified address means loopback.
fn loopback_serves_node_ports_where_nobody_listens<F: Net>() {
    for protocol in ASKING {
        let mut tables = Node::<F>::new()
            .with_node_port(0, &[pod::<F>(REMOTE)])
            .with_cluster_ip(0, &[pod::<F>(POD_A)])
            .tables;
        let at = |addr, port| Ask {
            addr,
            port: Port::new(port),
            protocol,
            cookie: [1, 7],
        };
        for addr in [F::Addr::LOOPBACK, F::Addr::ZERO] {
            assert_eq!(
                sent(&tables, &at(addr, NODE_PORT)),
                to::<F>((REMOTE, TARGET))
            );
            assert_eq!(
                direct::<F, _>(&tables, &at(addr, 80)),
                Ok(None),
                "no nodePort"
            );
        }
        tables
            .taken
            .insert((protocol, F::Addr::LOOPBACK, Port::new(NODE_PORT)));
        for addr in [F::Addr::LOOPBACK, F::Addr::ZERO] {
            assert_eq!(direct::<F, _>(&tables, &at(addr, NODE_PORT)), Ok(None));
        }
    }
}

/// V19, V20: ports and addresses of the host are left alone.
fn what_no_service_has_is_left_alone<F: Net>() {
    let mut tables = Node::<F>::new()
        .with_node_port(0, &[pod::<F>(REMOTE)])
        .tables;
    tables
        .addresses
        .insert(F::at(VIP), AddressFlags(AddressFlags::HOST));
    tables.ranges.insert(
        (F::at(VIP), if F::V6 { 112 } else { 16 }),
        RangeKind::SERVICES,
    );
    for end in [
        (NODE, NODE_PORT + 1),
        (NODE, 53),
        (VIP, 53),
        (CLIENT, 443),
        (POD_A, TARGET),
    ] {
        for protocol in ASKING {
            assert_eq!(
                direct::<F, _>(&tables, &ask::<F>(protocol, 1, end)),
                Ok(None),
                "{end:?}"
            );
        }
    }
    assert!(tables.peers.borrow().is_empty());
}

/// Verdict table: a refusal leaves no entry.
fn refusals_have_their_reasons<F: Net>() {
    let here = pod::<F>(POD_A);
    let unassigned = [10, 96, 0, 99];
    for protocol in ASKING {
        let empty = Node::<F>::new().with_cluster_ip(0, &[]).tables;
        assert_eq!(
            direct::<F, _>(&empty, &ask::<F>(protocol, 1, (VIP, 80))),
            Err(Reason::NoBackend)
        );
        assert_eq!(
            direct::<F, _>(&empty, &ask::<F>(protocol, 1, (VIP, 81))),
            Err(Reason::UnknownPort)
        );
        let mut ranges = Node::<F>::new().tables;
        ranges.ranges.insert(
            (F::at(VIP), if F::V6 { 112 } else { 16 }),
            RangeKind::SERVICES,
        );
        assert_eq!(
            direct::<F, _>(&ranges, &ask::<F>(protocol, 1, (unassigned, 80))),
            Err(Reason::NoSuchService)
        );
        let internal = Node::<F>::new()
            .with_cluster_ip(ServiceFlags::LOCAL, &[here])
            .without_local_backends()
            .tables;
        assert_eq!(
            direct::<F, _>(&internal, &ask::<F>(protocol, 1, (VIP, 80))),
            Err(Reason::AwaitLocalBackend)
        );
        assert!(
            [empty, ranges, internal]
                .iter()
                .all(|tables| tables.peers.borrow().is_empty())
        );
    }
}

/// V11: externalTrafficPolicy Local does not bind processes of this node, internalTrafficPolicy
/// Local does.
fn process_has_a_pods_rights_where_the_policy_is_local<F: Net>() {
    let node_port = Node::<F>::new()
        .with_node_port(ServiceFlags::LOCAL, &[pod::<F>(REMOTE)])
        .without_local_backends()
        .tables;
    assert_eq!(
        sent(&node_port, &ask::<F>(Protocol::TCP, 1, (NODE, NODE_PORT))),
        to::<F>((REMOTE, TARGET))
    );
    let mut internal = Node::<F>::new()
        .with_cluster_ip(ServiceFlags::LOCAL, &[pod::<F>(POD_A), pod::<F>(REMOTE)])
        .tables;
    internal
        .services
        .values_mut()
        .for_each(|service| service.local_len = 1);
    for cookie in 0..32 {
        assert_eq!(
            sent(&internal, &ask::<F>(Protocol::TCP, cookie, (VIP, 80))),
            to::<F>((POD_A, TARGET))
        );
    }
}

/// V3: a node with an address in a range may connect; the ranges belong to the load balancer's
/// address.
fn load_balancer_ranges_hold_for_the_node<F: Net>() {
    let mut tables = Node::<F>::new().tables;
    let key = ServiceKey::new(F::at(VIP), Port::new(80), Protocol::TCP);
    tables.serve(
        3,
        &[(
            key,
            ServiceFlags::LOAD_BALANCER | ServiceFlags::SOURCE_RANGES,
        )],
        &[pod::<F>(REMOTE)],
    );
    let ask = ask::<F>(Protocol::TCP, 1, (VIP, 80));
    assert_eq!(direct::<F, _>(&tables, &ask), Err(Reason::SourceNotAllowed));
    tables.sources.insert((
        SourceKey {
            service: 3,
            addr: F::at(VIP),
        },
        if F::V6 { 128 } else { 32 },
    ));
    assert_eq!(sent(&tables, &ask), to::<F>((REMOTE, TARGET)));
}

fn three<F: Net>() -> [Backend<F::Addr>; 3] {
    [POD_A, POD_B, REMOTE].map(|dotted| Backend {
        addr: F::at(dotted),
        port: Port::new(TARGET),
        flags: BackendFlags::POD,
        generation: 0,
    })
}

/// V15: each new socket chooses a backend; a socket that connects again keeps it.
fn sockets_spread<F: Net>() {
    let tables = Node::<F>::new().with_cluster_ip(0, &three::<F>()).tables;
    for protocol in ASKING {
        let all: Vec<_> = (0..300)
            .map(|cookie| sent(&tables, &ask::<F>(protocol, cookie, (VIP, 80))))
            .collect();
        for backend in all.iter().collect::<BTreeSet<_>>() {
            let count = all.iter().filter(|other| *other == backend).count();
            assert!((60..150).contains(&count), "{count} of 300");
        }
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(sent(&tables, &ask::<F>(protocol, 5, (VIP, 80))), all[5]);
    }
}

/// V14, V15: an unconnected UDP socket keeps its backend while that may be used, also if others
/// come and go.
fn datagrams_of_a_socket_keep_their_backend<F: Net>() {
    let [a, b, remote] = three::<F>();
    let mut node = Node::<F>::new().with_cluster_ip(0, &[a]);
    let asks: Vec<_> = (0..32)
        .map(|cookie| ask::<F>(Protocol::UDP, cookie, (VIP, 80)))
        .collect();
    asks.iter()
        .for_each(|ask| assert_eq!(sent(&node.tables, ask), to::<F>((POD_A, TARGET))));
    node = node.with_cluster_ip(0, &[b, remote, a]);
    asks.iter()
        .for_each(|ask| assert_eq!(sent(&node.tables, ask), to::<F>((POD_A, TARGET))));
    assert_eq!(
        node.tables.counted(Counter::SocketsDirected),
        32,
        "what is kept is not counted again"
    );
    node.tables.backends.clear();
    node = node.with_cluster_ip(0, &[b]);
    asks.iter()
        .for_each(|ask| assert_eq!(sent(&node.tables, ask), to::<F>((POD_B, TARGET))));
    // A second frontend of the same backend takes over the reply's name, and the first one takes it
    // back.
    node = node.with_node_port(0, &[b]);
    let (first, second) = (
        asks[0],
        Ask {
            cookie: asks[0].cookie,
            ..ask::<F>(Protocol::UDP, 0, (NODE, NODE_PORT))
        },
    );
    for ask in [second, first, second] {
        assert_eq!(sent(&node.tables, &ask), to::<F>((POD_B, TARGET)));
        assert_eq!(
            asked::<F, _>(&node.tables, ask.cookie, F::at(POD_B), Port::new(TARGET)),
            Some((ask.addr, ask.port))
        );
    }
}

/// V13: all processes of the node are one client, over all frontends of the service port.
fn affinity_is_the_nodes_and_ends_with_its_time_or_its_endpoint<F: Net>() {
    let mut node = Node::<F>::new().with_cluster_ip(0, &three::<F>());
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.affinity = 10);
    let all = |node: &Node<F>, from: u32| -> BTreeSet<(F::Addr, Port)> {
        (from..from + 32)
            .map(|cookie| sent(&node.tables, &ask::<F>(Protocol::TCP, cookie, (VIP, 80))))
            .collect()
    };
    let first = all(&node, 0);
    assert_eq!(first.len(), 1);
    node.later(9);
    assert_eq!(all(&node, 32), first, "each connection renews it");
    node.later(9);
    assert_eq!(all(&node, 64), first);
    let mut seen = BTreeSet::new();
    for round in 0..16 {
        node.later(11);
        seen.extend(all(&node, 100 + 32 * round));
    }
    assert_eq!(seen.len(), 3, "it ends with its time");
    let gone = all(&node, 1000);
    let left: Vec<_> = three::<F>()
        .into_iter()
        .filter(|backend| !gone.contains(&(backend.addr, backend.port)))
        .collect();
    node.tables.backends.clear();
    node = node.with_cluster_ip(0, &left);
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.affinity = 10);
    assert!(
        all(&node, 2000).is_disjoint(&gone),
        "it ends with its endpoint"
    );
}

/// Socket hooks exist for TCP and UDP only.
fn other_protocols_are_nobodys_business<F: Net>() {
    let mut tables = Node::<F>::new().tables;
    tables.serve(
        4,
        &[(
            ServiceKey::new(F::at(VIP), Port::new(80), OTHER),
            ServiceFlags::CLUSTER_IP,
        )],
        &[pod::<F>(POD_A)],
    );
    assert_eq!(
        direct::<F, _>(&tables, &ask::<F>(OTHER, 1, (VIP, 80))),
        Ok(None)
    );
}
