//! `--host-firewall respect`: translated packets go through the stack; its forward hooks see the
//! addresses of client and backend.

use proxy_common::config::Config;
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{ACK, FIN};
use crate::world::*;

both_families!(
    a_local_backend_is_reached_through_the_stack,
    a_pod_reaches_backends_through_the_stack,
    a_remote_backend_is_masqueraded_on_the_way_out_of_the_stack,
    a_connection_that_is_over_is_opened_anew_both_times,
    without_a_port_nothing_stays_behind,
    a_pod_that_reaches_itself_does_not_meet_the_stack,
);

/// Returns a node with `--host-firewall respect`.
fn node<F: Net>() -> Node<F> {
    let mut node = Node::<F>::new();
    node.tables.config.flags = Config::THROUGH_STACK;
    node
}

/// V9: the client's address is kept, there and back.
fn a_local_backend_is_reached_through_the_stack<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>().with_node_port(0, &[pod::<F>(POD_A)]);
        let (client, frontend) = ((CLIENT, 40000), (NODE, NODE_PORT));
        let forwarded = node
            .from_device(&opening::<F>(protocol, client, frontend))
            .goes(Action::Stack);
        assert_eq!(
            (forwarded.src, forwarded.dst),
            (end::<F>(client), end::<F>((POD_A, TARGET)))
        );
        node.to_pod(VETH_A, &forwarded).untouched();
        node.from_pod(VETH_A, &forwarded.answer()).untouched();
        let answered = node.to_device(&forwarded.answer()).goes(Action::Stack);
        assert_eq!(
            (answered.src, answered.dst),
            (end::<F>(frontend), end::<F>(client))
        );
        assert_eq!(
            (node.flows(), node.tables.counted(Counter::Fallback)),
            ((0, 2), 0)
        );
    }
}

fn a_pod_reaches_backends_through_the_stack<F: Net>() {
    for backend in [POD_A, REMOTE] {
        let node = node::<F>().with_cluster_ip(0, &[pod::<F>(backend)]);
        let (client, frontend) = ((POD_B, 40000), (VIP, 80));
        for protocol in PROTOCOLS {
            let forwarded = node
                .from_pod(VETH_B, &opening::<F>(protocol, client, frontend))
                .goes(Action::Stack);
            assert_eq!(
                (forwarded.src, forwarded.dst),
                (end::<F>(client), end::<F>((backend, TARGET)))
            );
            node.to_device(&forwarded).untouched();
            node.from_device(&forwarded.answer()).untouched();
            let answered = node.to_pod(VETH_B, &forwarded.answer()).goes(Action::Stack);
            assert_eq!(
                (answered.src, answered.dst),
                (end::<F>(frontend), end::<F>(client))
            );
        }
    }
}

/// V9, V12: the forward hooks see client and backend both ways; the wire sees the node.
fn a_remote_backend_is_masqueraded_on_the_way_out_of_the_stack<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>().with_node_port(0, &[pod::<F>(REMOTE)]);
        let (client, frontend, backend) = ((CLIENT, 40000), (NODE, NODE_PORT), (REMOTE, TARGET));
        let syn = opening::<F>(protocol, client, frontend);
        for _ in 0..2 {
            let forwarded = node.from_device(&syn).goes(Action::Stack);
            assert_eq!(
                (forwarded.src, forwarded.dst),
                (end::<F>(client), end::<F>(backend))
            );
            let left = node.to_device(&forwarded).goes(Action::Stack);
            assert_eq!(
                (left.src.ip(), left.dst),
                (end::<F>((NODE, 0)).ip(), end::<F>(backend))
            );
            assert!((1024..30000).contains(&left.src.port()));
        }
        assert_eq!(node.flows(), (4, 0), "a second SYN opens nothing");
        let left = node
            .to_device(&node.from_device(&syn).goes(Action::Stack))
            .goes(Action::Stack);
        let back = node.from_device(&left.answer()).goes(Action::Stack);
        assert_eq!((back.src, back.dst), (end::<F>(backend), end::<F>(client)));
        let answered = node.to_device(&back).goes(Action::Stack);
        assert_eq!(
            (answered.src, answered.dst),
            (end::<F>(frontend), end::<F>(client))
        );
        assert_eq!(node.flows(), (0, 4));
        node.xdp(&left.answer()).untouched();
    }
}

/// V17: the second flow keeps its port, for the backend's TIME_WAIT.
fn a_connection_that_is_over_is_opened_anew_both_times<F: Net>() {
    let node = node::<F>().with_node_port(0, &[pod::<F>(REMOTE)]);
    let syn = opening::<F>(PROTOCOLS[0], (CLIENT, 40000), (NODE, NODE_PORT));
    let out = |packet: &crate::segment::Segment| {
        node.to_device(&node.from_device(packet).goes(Action::Stack))
            .goes(Action::Stack)
    };
    let left = out(&syn);
    out(&left.answer());
    out(&left.answer().flags(FIN | ACK));
    out(&syn.clone().flags(FIN | ACK));
    assert_eq!(node.flows(), (0, 4));
    assert_eq!(out(&syn).src, left.src);
    assert_eq!(node.flows(), (4, 0), "nothing is left of the old ones");
}

/// V12: if no port is free, the first rewrite leaves no flow behind.
fn without_a_port_nothing_stays_behind<F: Net>() {
    let node = node::<F>()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE)]);
    let open = |port| {
        node.from_device(&opening::<F>(
            PROTOCOLS[0],
            (CLIENT, port),
            (NODE, NODE_PORT),
        ))
    };
    open(1).goes(Action::Stack);
    open(2).dropped(Reason::NoMasqueradePort);
    assert_eq!(node.flows(), (4, 0));
}

/// V10: masqueraded as without `respect`, since the stack would drop such a packet as forged.
fn a_pod_that_reaches_itself_does_not_meet_the_stack<F: Net>() {
    let node = node::<F>().with_cluster_ip(0, &[pod::<F>(POD_A)]);
    let syn = opening::<F>(PROTOCOLS[0], (POD_A, 40000), (VIP, 80));
    assert_eq!(
        node.from_pod(VETH_A, &syn)
            .goes(Action::Pod(VETH_A))
            .src
            .ip(),
        end::<F>((VIP, 0)).ip()
    );
}
