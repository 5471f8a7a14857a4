//! Packets of processes that stay outside the gate, and packets that are dropped in it.

use super::*;

both_families!(
    what_asks_for_no_service_leaves_as_it_was,
    v21_who_listens_on_loopback_is_not_hidden,
    where_sockets_serve_nothing_is_caught,
    who_has_no_address_of_this_host_is_no_process,
    pods_here_get_no_larger_packets_than_any_device_takes,
    what_cannot_be_translated_goes_no_further_than_the_gate,
);

fn what_asks_for_no_service_leaves_as_it_was<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    for (device, to) in [
        (IfIndex::LOOPBACK, (NODE, 22)),
        (IfIndex::LOOPBACK, (LOOPBACK, 631)),
        (ETH, (CLIENT, 443)),
    ] {
        for protocol in PROTOCOLS {
            node.sends(device, &opening::<F>(protocol, FROM, to))
                .untouched();
        }
    }
    // V16: the connection is older than the nodePort.
    node.sends(
        IfIndex::LOOPBACK,
        &packet::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    node.sends(
        IfIndex::LOOPBACK,
        &packet::<F>(Protocol::TCP, BY_NODE, FROM),
    )
    .untouched();
    // V8: nodePorts are served on the selected addresses only.
    let mut node = node;
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::HOST));
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    assert_eq!(node.flows(), (0, 0));
}

/// The kernel does not show SCTP listeners to programs, so SCTP by loopback is never taken.
fn v21_who_listens_on_loopback_is_not_hidden<F: Net>() {
    let mut node = node::<F>(pod::<F>(POD_A));
    let (from, to) = ((LOOPBACK, 40000), (LOOPBACK, NODE_PORT));
    node.tables
        .taken
        .insert((Protocol::TCP, F::at(LOOPBACK), Port::new(NODE_PORT)));
    node.sends(IfIndex::LOOPBACK, &opening::<F>(Protocol::TCP, from, to))
        .untouched();
    node.sends(IfIndex::LOOPBACK, &opening::<F>(Protocol::SCTP, from, to))
        .untouched();
    let question = opening::<F>(Protocol::UDP, from, to);
    through(&node, IfIndex::LOOPBACK, &question).goes(Action::Pod(VETH_A));
    // A listener that appears later gets the next datagram.
    node.tables
        .taken
        .insert((Protocol::UDP, F::at(LOOPBACK), Port::new(NODE_PORT)));
    node.sends(IfIndex::LOOPBACK, &question).untouched();
}

fn where_sockets_serve_nothing_is_caught<F: Net>() {
    let mut node = with_elsewhere::<F>(pod::<F>(POD_A));
    node.tables.config.gate = IfIndex::NONE;
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .untouched();
    node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, (ELSEWHERE, 443)))
        .untouched();
}

/// A container with a device on top of [`ETH`], or a transparent proxy, sends by [`ETH`] too;
/// answers would not reach them.
fn who_has_no_address_of_this_host_is_no_process<F: Net>() {
    let node = with_elsewhere::<F>(pod::<F>(POD_A));
    for to in [(ELSEWHERE, 443), (VIP, 81)] {
        node.sends(ETH, &opening::<F>(Protocol::TCP, (CLIENT, 40000), to))
            .untouched();
        node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, to))
            .goes(Action::Enter(GATE));
    }
    // The node's address is on the loopback device.
    let mut node = node;
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::NODE_PORTS));
    node.sends(ETH, &opening::<F>(Protocol::TCP, FROM, (ELSEWHERE, 443)))
        .goes(Action::Enter(GATE));
    node.sends(
        IfIndex::LOOPBACK,
        &opening::<F>(Protocol::TCP, FROM, BY_NODE),
    )
    .goes(Action::Enter(GATE));
}

/// Loopback's MTU is larger than the packets that kernels before 5.12 redirect to a pod.
fn pods_here_get_no_larger_packets_than_any_device_takes<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let datagram = |len| packet::<F>(Protocol::UDP, FROM, BY_NODE).payload(&vec![7; len]);
    for _ in 0..2 {
        node.from_gate(&datagram(1400)).goes(Action::Pod(VETH_A));
        let told = node
            .from_gate(&datagram(1500))
            .tells(Action::Enter(IfIndex::LOOPBACK));
        assert_eq!(
            u32::from_be_bytes(told.rest),
            if F::V6 { 1499 } else { 1500 }
        );
    }
    // Packets from outside fit, since a device has received them.
    let client = packet::<F>(Protocol::UDP, (CLIENT, 40000), BY_NODE).payload(&[7; 1500]);
    node.from_device(&client).goes(Action::Pod(VETH_A));
}

/// Given back to the stack, such a packet would enter the gate again.
fn what_cannot_be_translated_goes_no_further_than_the_gate<F: Net>() {
    let node = node::<F>(pod::<F>(POD_A));
    let mut other = packet::<F>(Protocol::UDP, FROM, TO).bytes();
    other[if F::V6 { 20 } else { 23 }] = 47;
    node.raw_from_gate(&other).dropped(Reason::LeftInGate);
    node.raw_from_device(&other).untouched();
    node.from_gate(&packet::<F>(Protocol::TCP, FROM, BY_NODE))
        .dropped(Reason::LeftInGate);
}
