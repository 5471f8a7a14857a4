//! The life of a flow: half-open, established, ended, opened anew (V14 to V18).

use proxy_common::flow::{FlowKey, State};
use proxy_common::net::Protocol;
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::ServiceFlags;
use proxy_ebpf::{Action, Table, Tables};

use crate::both_families;
use crate::segment::{ACK, FIN, RST, SYN, Segment};
use crate::world::*;

mod reopened;

both_families!(
    retransmitted_syn_finds_its_flow,
    half_open_flow_grows_old,
    evicted_reply_entry_opens_the_flow_anew,
    evicted_forward_entry_opens_the_flow_anew,
    reset_by_the_backend_does_not_establish,
    full_table_is_counted_and_the_flow_lives_on,
    established_flow_outlives_its_service,
    packets_in_the_middle_of_nothing,
    flow_is_left_alone_at_other_hooks,
    an_answer_to_a_direct_connection_is_not_taken_for_a_closed_flows,
    nor_is_that_of_a_process_here_and_what_follows_it,
    a_second_first_answer_does_not_undo_the_promotion,
    a_replaced_connections_late_packets_are_no_news_of_the_newcomer,
    fin_and_reset_are_noted_in_both_entries,
    notes_are_taken_once_a_second,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);

fn syn<F: Net>() -> Segment {
    opening::<F>(Protocol::TCP, FROM, TO)
}

fn data<F: Net>() -> Segment {
    packet::<F>(Protocol::TCP, FROM, TO).flags(ACK)
}

/// Returns a node with one remote backend and an established connection, and the packet that the
/// backend saw.
fn connected<F: Net>(protocol: Protocol) -> (Node<F>, Segment) {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let there = node
        .from_device(&opening::<F>(protocol, FROM, TO))
        .goes(Action::Neighbour(ETH));
    node.from_device(&there.answer())
        .goes(Action::Neighbour(ETH));
    assert_eq!(node.flows(), (0, 2));
    (node, there)
}

/// The two keys of the connection that the backend saw as `there`.
fn keys<F: Net>(there: &Segment) -> [FlowKey<F::Addr>; 2] {
    [
        key::<F>(there.protocol, FROM, TO),
        key::<F>(there.protocol, (REMOTE, TARGET), (NODE, there.src.port())),
    ]
}

/// V18: a retransmitted SYN keeps its backend, also if endpoints were added meanwhile.
fn retransmitted_syn_finds_its_flow<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let first = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    node.later(3);
    node = node.with_node_port(0, &[pod::<F>(POD_A), pod::<F>(REMOTE), pod::<F>(POD_B)]);
    assert_eq!(
        node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH)),
        first
    );
    assert_eq!(
        (node.flows(), node.tables.counted(Counter::Opened)),
        ((2, 0), 1)
    );
}

/// V18: after the timeout an unanswered SYN opens a new connection, to a current backend.
fn half_open_flow_grows_old<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    node.later(31);
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    node.from_device(&syn::<F>()).goes(Action::Pod(VETH_A));
    assert_eq!(node.flows(), (2, 0));
}

/// V18: the LRU evicted the reply entry. An answer would not be translated, so the next SYN opens
/// the flow anew.
fn evicted_reply_entry_opens_the_flow_anew<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let there = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    let [_, reply] = keys::<F>(&there);
    node.tables.remove_flow(Table::Opening, &reply);

    let again = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    assert_eq!(node.flows(), (2, 0));
    let answered = node
        .from_device(&again.answer())
        .goes(Action::Neighbour(ETH));
    assert_eq!((answered.src, answered.dst), (end::<F>(TO), end::<F>(FROM)));
    assert_eq!(node.flows(), (0, 2));
}

/// V18: the LRU evicted the forward entry: the answer is still translated but establishes nothing,
/// and the next SYN opens anew.
fn evicted_forward_entry_opens_the_flow_anew<F: Net>() {
    for backend in [POD_A, REMOTE] {
        let node = Node::<F>::new().with_node_port(0, &[pod::<F>(backend)]);
        let hop = node.from_device(&syn::<F>());
        let there = Segment::read(hop.bytes()).expect("a valid packet");
        node.tables
            .remove_flow(Table::Opening, &key::<F>(Protocol::TCP, FROM, TO));
        let answer = |there: &Segment| match backend {
            POD_A => node
                .from_pod(VETH_A, &there.answer())
                .goes(Action::Neighbour(ETH)),
            _ => node
                .from_device(&there.answer())
                .goes(Action::Neighbour(ETH)),
        };
        assert_eq!(answer(&there).dst, end::<F>(FROM));
        assert_eq!(
            (node.flows(), node.tables.counted(Counter::Established)),
            ((1, 0), 0)
        );

        let hop = node.from_device(&syn::<F>());
        assert!(
            matches!(hop.said, Ok(Action::Pod(_) | Action::Neighbour(_))),
            "{:?}",
            hop.said
        );
        let again = Segment::read(hop.bytes()).expect("a valid packet");
        assert_eq!(answer(&again).dst, end::<F>(FROM));
        assert_eq!(node.tables.established.borrow().len(), 2);
    }
}

/// V18: the client gets the RST of a port that refuses, and the established table gets no entry.
fn reset_by_the_backend_does_not_establish<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
    let there = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    let reset = there.answer().flags(RST | ACK);
    let answered = node.from_device(&reset).goes(Action::Neighbour(ETH));
    assert_eq!(answered, reset.from(end::<F>(TO)).to(end::<F>(FROM)).hop());
    assert_eq!(
        (node.flows(), node.tables.counted(Counter::Established)),
        ((2, 0), 0)
    );
}

/// V18: while the table of established flows is full, connections work from the half-open one, and
/// a counter increments.
fn full_table_is_counted_and_the_flow_lives_on<F: Net>() {
    for capacity in [0, 1] {
        let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        node.tables.capacity = capacity;
        let there = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
        for round in 1..=2 {
            node.from_device(&there.answer())
                .goes(Action::Neighbour(ETH));
            assert_eq!(
                node.from_device(&data::<F>())
                    .goes(Action::Neighbour(ETH))
                    .src,
                there.src
            );
            assert_eq!(node.flows(), (2, 0));
            assert_eq!(node.tables.counted(Counter::TableFull), round);
        }
        node.tables.capacity = 2;
        node.from_device(&there.answer())
            .goes(Action::Neighbour(ETH));
        assert_eq!(
            (node.flows(), node.tables.counted(Counter::Established)),
            ((0, 2), 1)
        );
    }
}

/// V14, V15: an established connection stays with its backend when the Service changes, and when it
/// goes.
fn established_flow_outlives_its_service<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::TCP);
    node = node.with_node_port(0, &[pod::<F>(POD_A)]);
    assert_eq!(
        node.from_device(&data::<F>())
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
    node.tables.services.clear();
    node.tables.backends.clear();
    assert_eq!(
        node.from_device(&data::<F>())
            .goes(Action::Neighbour(ETH))
            .dst,
        there.dst
    );
    assert_eq!(
        node.from_device(&there.answer())
            .goes(Action::Neighbour(ETH))
            .dst,
        end::<F>(FROM)
    );
}

/// V16: TCP that is no SYN and has no flow is left alone on a nodePort, dropped on a cluster IP.
fn packets_in_the_middle_of_nothing<F: Net>() {
    let backends = [pod::<F>(POD_A)];
    let node = Node::<F>::new()
        .with_node_port(0, &backends)
        .with_cluster_ip(0, &backends);
    for flags in [
        ACK,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        SYN | FIN,
        SYN | RST,
        0,
    ] {
        node.from_device(&data::<F>().flags(flags)).untouched();
        let to_vip = data::<F>().to(end::<F>((VIP, 80))).flags(flags);
        node.from_device(&to_vip).dropped(Reason::NotSyn);
        node.from_pod(VETH_B, &to_vip.from(end::<F>((POD_B, 1))))
            .dropped(Reason::NotSyn);
    }
    assert_eq!(node.flows(), (0, 0));
}

/// V25: the hooks of a flow are chosen when it opens, for both directions; other hooks leave its
/// packets alone.
fn flow_is_left_alone_at_other_hooks<F: Net>() {
    let (node, there) = connected::<F>(Protocol::TCP);
    node.from_pod(VETH_A, &data::<F>()).untouched();
    node.to_pod(VETH_A, &data::<F>()).untouched();
    node.to_device(&data::<F>()).untouched();
    node.from_pod(VETH_A, &there.answer()).untouched();
    node.to_pod(VETH_A, &there.answer()).untouched();
    node.to_device(&there.answer()).untouched();
}

/// A pod's earlier connection through a Service is closed; an answer to its direct connection from
/// the same port is not translated.
fn an_answer_to_a_direct_connection_is_not_taken_for_a_closed_flows<F: Net>() {
    let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
    let syn = opening::<F>(Protocol::TCP, (POD_B, 40000), (VIP, 80));
    let there = node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
    for flags in [SYN | ACK, FIN | ACK] {
        node.from_pod(VETH_A, &there.answer().flags(flags))
            .goes(Action::Pod(VETH_B));
    }
    node.from_pod(VETH_B, &syn.clone().flags(FIN | ACK))
        .goes(Action::Pod(VETH_A));
    node.from_pod(VETH_A, &there.answer().flags(ACK))
        .goes(Action::Pod(VETH_B));
    assert_eq!(node.flows(), (0, 2));
    node.from_pod(VETH_A, &there.answer().flags(SYN | ACK))
        .untouched();
    assert_eq!(node.flows(), (0, 0));
}

fn nor_is_that_of_a_process_here_and_what_follows_it<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[process::<F>(NODE)]);
    let there = node.from_device(&syn::<F>()).goes(Action::Stack);
    for flags in [SYN | ACK, FIN | ACK] {
        node.to_device(&there.answer().flags(flags))
            .goes(Action::Stack);
    }
    node.from_device(&data::<F>().flags(FIN | ACK))
        .goes(Action::Stack);
    assert_eq!(node.flows(), (0, 2));
    // The client connects to the process directly, from the same port.
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        node.to_device(&there.answer().flags(flags)).untouched();
    }
    assert_eq!(node.flows(), (0, 0));
}

/// The client of a closed connection sends RST, and its masquerade port belongs to another
/// connection now.
fn a_replaced_connections_late_packets_are_no_news_of_the_newcomer<F: Net>() {
    let node = Node::<F>::new()
        .with_masquerade_port(2000)
        .with_node_port(0, &[pod::<F>(REMOTE)]);
    let left = node.from_device(&syn::<F>()).goes(Action::Neighbour(ETH));
    node.from_device(&left.answer())
        .goes(Action::Neighbour(ETH));
    node.from_device(&left.answer().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    node.from_device(&data::<F>().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    let newcomer = opening::<F>(Protocol::TCP, (CLIENT, 40001), TO);
    let left = node.from_device(&newcomer).goes(Action::Neighbour(ETH));
    node.from_device(&left.answer())
        .goes(Action::Neighbour(ETH));
    node.from_device(&data::<F>().flags(RST));
    let [_, reply] = keys::<F>(&left);
    assert_eq!(
        node.flow(&node.tables.established, &reply).state,
        State::REPLIED
    );
}

/// Two CPUs promote the same flow: the second finds both entries moved, and leaves them.
fn a_second_first_answer_does_not_undo_the_promotion<F: Net>() {
    for protocol in PROTOCOLS {
        let (node, there) = connected::<F>(protocol);
        let [forward, reply] = keys::<F>(&there);
        let flow = node.flow(&node.tables.established, &reply);
        // The state that the second CPU read before.
        node.tables
            .opening
            .borrow_mut()
            .insert(reply, proxy_common::flow::Flow { state: 0, ..flow });
        node.tables.established.borrow_mut().remove(&reply);
        node.from_device(&there.answer())
            .goes(Action::Neighbour(ETH));
        assert!(node.tables.established.borrow().contains_key(&forward));
        assert!(node.tables.established.borrow().contains_key(&reply));
    }
}

/// Both entries have the same state, so that the sweep and V17 may read either.
fn fin_and_reset_are_noted_in_both_entries<F: Net>() {
    let (node, there) = connected::<F>(Protocol::TCP);
    let states = || keys::<F>(&there).map(|key| node.flow(&node.tables.established, &key).state);
    assert_eq!(states(), [State::REPLIED; 2]);
    node.from_device(&data::<F>().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    assert_eq!(states(), [State::REPLIED | State::FIN_FORWARD; 2]);
    node.from_device(&there.answer().flags(FIN | ACK))
        .goes(Action::Neighbour(ETH));
    assert_eq!(states(), [State::REPLIED | State::FIN_BOTH; 2]);
    node.from_device(&there.answer().flags(RST))
        .goes(Action::Neighbour(ETH));
    assert_eq!(
        states(),
        [State::REPLIED | State::FIN_BOTH; 2],
        "a closed flow has no news"
    );

    let (node, there) = connected::<F>(Protocol::TCP);
    node.from_device(&there.answer().flags(RST))
        .goes(Action::Neighbour(ETH));
    let states = keys::<F>(&there).map(|key| node.flow(&node.tables.established, &key).state);
    assert_eq!(states, [State::REPLIED | State::RESET; 2]);
}

/// The time of the last packet is written at most once a second.
fn notes_are_taken_once_a_second<F: Net>() {
    let (mut node, there) = connected::<F>(Protocol::TCP);
    let [forward, _] = keys::<F>(&there);
    let opened = node.tables.now;
    let seen = |node: &Node<F>| node.flow(&node.tables.established, &forward).seen;
    node.tables.now += node.tables.config.hz - 1;
    node.from_device(&data::<F>()).goes(Action::Neighbour(ETH));
    assert_eq!(seen(&node), opened);
    node.tables.now += 1;
    node.from_device(&data::<F>()).goes(Action::Neighbour(ETH));
    assert_eq!(seen(&node), node.tables.now);
}
