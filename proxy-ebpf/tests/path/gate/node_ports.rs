//! nodePorts and addresses of load balancers: packets of processes to them enter the gate on their
//! way out.

use super::*;

both_families!(
    its_node_ports_go_into_the_gate_and_come_back_by_loopback,
    node_ports_by_loopback_reach_pods_by_the_nodes_address,
    a_process_of_its_node_is_reached_by_a_node_port,
    addresses_that_are_elsewhere_are_caught_on_the_way_out,
    v21_only_a_process_asks_by_loopback,
    v17_a_new_connection_by_loopback_leads_where_pods_serve,
    fragments_go_into_the_gate_after_their_first,
    errors_about_its_node_ports_go_the_same_way,
    a_node_port_without_pods_is_refused_by_loopback,
    what_does_not_fit_is_told_by_loopback,
    what_comes_from_elsewhere_to_loopback_belongs_to_no_flow,
);

fn its_node_ports_go_into_the_gate_and_come_back_by_loopback<F: Net>() {
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(POD_A)).isolated();
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Pod(VETH_A));
        assert_eq!(
            (met.src, met.dst),
            (end::<F>(FROM), end::<F>((POD_A, TARGET))),
            "P18: the own node is let in, as itself"
        );
        let told = node
            .from_pod(VETH_A, &met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(BY_NODE), end::<F>(FROM)));
        through(
            &node,
            IfIndex::LOOPBACK,
            &packet::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Pod(VETH_A));
    }
    for protocol in PROTOCOLS {
        let node = node::<F>(pod::<F>(REMOTE));
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(protocol, FROM, BY_NODE),
        )
        .goes(Action::Neighbour(ETH));
        assert_eq!(met.src.ip(), F::ip(NODE));
        // Packets that went through the gate do not enter it again.
        node.to_device(&met).untouched();
        node.xdp(&met.answer()).untouched();
        let told = node
            .from_device(&met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(BY_NODE), end::<F>(FROM)));
    }
}

/// Pods cannot answer a loopback address, so the source becomes the node's address.
fn node_ports_by_loopback_reach_pods_by_the_nodes_address<F: Net>() {
    let (from, to) = ((LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    for protocol in PROCESS_PROTOCOLS {
        for (backend, way) in [
            (POD_A, Action::Pod(VETH_A)),
            (REMOTE, Action::Neighbour(ETH)),
        ] {
            let node = node::<F>(pod::<F>(backend));
            let met =
                through(&node, IfIndex::LOOPBACK, &opening::<F>(protocol, from, to)).goes(way);
            assert_eq!(
                (met.src.ip(), met.dst),
                (F::ip(NODE), end::<F>((backend, TARGET)))
            );
            let back = if backend == POD_A {
                node.from_pod(VETH_A, &met.answer())
            } else {
                node.from_device(&met.answer())
            };
            let told = back.goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(from)));
            through(&node, IfIndex::LOOPBACK, &packet::<F>(protocol, from, to)).goes(way);
        }
    }
    let mut node = node::<F>(pod::<F>(POD_A));
    node.tables.devices.insert(
        GATE,
        Device {
            mtu: 65535,
            ..Device::default()
        },
    );
    through(
        &node,
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, from, to),
    )
    .dropped(Reason::NoMasqueradeAddress);
}

/// The backend sees the node's address as its client; its answers enter the gate like the requests.
fn a_process_of_its_node_is_reached_by_a_node_port<F: Net>() {
    for protocol in PROCESS_PROTOCOLS {
        for at in [NODE, LOOPBACK] {
            let node = node::<F>(process::<F>(NODE));
            let (from, to) = ((at, 40000), (at, NODE_PORT));
            let question = opening::<F>(protocol, from, to);
            let met =
                through(&node, IfIndex::LOOPBACK, &question).goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!(
                (met.src.ip(), met.dst),
                (F::ip(NODE), end::<F>((NODE, TARGET)))
            );
            assert!((1024..30_000).contains(&met.src.port()), "{met:?}");
            let told = through(&node, IfIndex::LOOPBACK, &met.answer())
                .goes(Action::Enter(IfIndex::LOOPBACK));
            assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(from)));
        }
    }
}

/// Answers from such an address reach the process by loopback, where the kernel accepts them.
fn addresses_that_are_elsewhere_are_caught_on_the_way_out<F: Net>() {
    let to = (ELSEWHERE, 443);
    for protocol in PROTOCOLS {
        let node = with_elsewhere::<F>(pod::<F>(POD_A));
        let met = through(&node, ETH, &opening::<F>(protocol, FROM, to)).goes(Action::Pod(VETH_A));
        let told = node
            .from_pod(VETH_A, &met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(FROM)));
        // Other ports of the address belong to whoever has it.
        node.sends(ETH, &opening::<F>(protocol, FROM, (ELSEWHERE, 22)))
            .untouched();
        // Forwarded packets of others stay as they are.
        node.to_device(&opening::<F>(protocol, FROM, to))
            .untouched();
        let node = with_elsewhere::<F>(process::<F>(NODE));
        let met = through(&node, ETH, &opening::<F>(protocol, FROM, to))
            .goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!(met.src.ip(), F::ip(ELSEWHERE));
        let told = through(&node, ETH, &met.answer()).goes(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (end::<F>(to), end::<F>(FROM)));
    }
}

fn v21_only_a_process_asks_by_loopback<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let question = opening::<F>(Protocol::TCP, (CLIENT, 40000), (LOOPBACK, NODE_PORT));
    node.from_device(&question).untouched();
    node.from_pod(VETH_A, &question).untouched();
}

fn v17_a_new_connection_by_loopback_leads_where_pods_serve<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    let question = opening::<F>(Protocol::TCP, (LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    let first = node.from_gate(&question).goes(Action::Pod(VETH_A));
    node.from_pod(VETH_A, &first.answer())
        .goes(Action::Enter(IfIndex::LOOPBACK));
    assert_eq!(
        node.from_gate(&question).goes(Action::Pod(VETH_A)),
        first,
        "it is sent again"
    );
    node = node.with_node_port(0, &[pod::<F>(POD_B)]);
    let second = node.from_gate(&question).goes(Action::Pod(VETH_B));
    assert_eq!(second.dst, end::<F>((POD_B, TARGET)));
}

fn fragments_go_into_the_gate_after_their_first<F: Net>() {
    let node = with_elsewhere::<F>(pod::<F>(POD_A));
    let datagram = packet::<F>(Protocol::UDP, FROM, (ELSEWHERE, 443)).payload(&[7; 3000]);
    let frames = cut::<F>(&datagram, (NODE, ELSEWHERE));
    let entered: Vec<_> = frames
        .iter()
        .map(|frame| node.raw_sends(ETH, frame))
        .collect();
    let met = entered.iter().map(|hop| {
        assert_eq!(hop.said, Ok(Action::Enter(GATE)));
        let met = node.raw_from_gate(hop.bytes());
        assert_eq!(met.said, Ok(Action::Pod(VETH_A)));
        met.bytes().to_vec()
    });
    assert_eq!(
        join::<F>(&met.collect::<Vec<_>>()).0.dst,
        end::<F>((POD_A, TARGET))
    );
    // Later fragments of a datagram that is not translated are left alone.
    let other = cut::<F>(
        &packet::<F>(Protocol::UDP, FROM, (CLIENT, 443)).payload(&[7; 3000]),
        (NODE, CLIENT),
    );
    other
        .iter()
        .for_each(|frame| node.raw_sends(ETH, frame).untouched());
}

/// The client has closed its port before the answer arrives.
fn errors_about_its_node_ports_go_the_same_way<F: Net>() {
    for (at, home) in [
        (NODE, Action::Stack),
        (LOOPBACK, Action::Enter(IfIndex::LOOPBACK)),
    ] {
        let node = node::<F>(pod::<F>(REMOTE));
        let (from, to) = ((at, 40000), (at, NODE_PORT));
        let met = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(Protocol::UDP, from, to),
        )
        .goes(Action::Neighbour(ETH));
        let told = node
            .from_device(&met.answer())
            .goes(Action::Enter(IfIndex::LOOPBACK));
        let error = error_about::<F>((at, at), &told);
        let entered = node.raw_sends(IfIndex::LOOPBACK, &error);
        assert_eq!(entered.said, Ok(Action::Enter(GATE)));
        let told = node
            .raw_from_gate(entered.bytes())
            .tells(Action::Neighbour(ETH));
        assert_eq!((told.src, told.dst), (F::ip(NODE), F::ip(REMOTE)));
        // Errors from the pod, and from a router.
        let told = node
            .raw_from_device(&error_about::<F>((REMOTE, NODE), &met))
            .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(at)));
        let told = node
            .raw_from_device(&error_about::<F>((NODE2, NODE), &met))
            .tells(home);
        assert_eq!((told.src, told.dst), (F::ip(NODE2), F::ip(at)));
    }
}

fn a_node_port_without_pods_is_refused_by_loopback<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    node.tables
        .services
        .values_mut()
        .for_each(|service| (service.cluster_len, service.local_len) = (0, 0));
    for at in [NODE, LOOPBACK] {
        let told = through(
            &node,
            IfIndex::LOOPBACK,
            &opening::<F>(Protocol::TCP, (at, 40000), (at, NODE_PORT)),
        )
        .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(at)));
    }
}

/// The kernel heeds an ICMPv6 MTU only if it is less than that of the device with the address.
fn what_does_not_fit_is_told_by_loopback<F: Net>() {
    let node = node::<F>(pod::<F>(REMOTE));
    for (at, port) in [(NODE, NODE_PORT), (LOOPBACK, NODE_PORT), (VIP, 80)] {
        let from = if at == VIP { NODE } else { at };
        let datagram = opening::<F>(Protocol::UDP, (from, 40000), (at, port)).payload(&[7; 2000]);
        let back = if at == VIP {
            Action::Transmit(GATE)
        } else {
            Action::Enter(IfIndex::LOOPBACK)
        };
        let told = node.from_gate(&datagram).tells(back);
        assert_eq!((told.src, told.dst), (F::ip(at), F::ip(from)));
        assert_eq!(
            u32::from_be_bytes(told.rest),
            if F::V6 && at != VIP { 1499 } else { 1500 }
        );
    }
}

/// The kernel drops such a packet as a martian.
fn what_comes_from_elsewhere_to_loopback_belongs_to_no_flow<F: Net>() {
    for (backend, way) in [
        (POD_A, Action::Pod(VETH_A)),
        (REMOTE, Action::Neighbour(ETH)),
    ] {
        let node = node::<F>(pod::<F>(backend));
        let question = opening::<F>(Protocol::UDP, (LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
        let met = node.from_gate(&question).goes(way);
        node.from_device(&question).untouched();
        node.xdp(&question).untouched();
        node.raw_from_device(&error_about::<F>((CLIENT, NODE), &question.answer()))
            .untouched();
        let told = if backend == POD_A {
            node.from_pod(VETH_A, &met.answer())
        } else {
            node.from_device(&met.answer())
        };
        told.goes(Action::Enter(IfIndex::LOOPBACK));
        node.from_device(&question).untouched();
        node.xdp(&question).untouched();
    }
}
