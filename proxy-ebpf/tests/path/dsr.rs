//! Direct server return: two nodes, a client outside who asks one, and a backend of the other that
//! answers him.

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice};
use proxy_common::config::Config;
use proxy_common::flow::State;
use proxy_common::net::{IfIndex, Protocol, V4, V6};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind};
use proxy_common::policy::Row;
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, ServiceFlags};
use proxy_ebpf::{Action, Route};

use crate::both_families;
use crate::errors::{error_about, error_quoting};
use crate::fragments::{cut, join, long};
use crate::segment::{ACK, FIN, RST, Segment};
use crate::untouched::raw_between;
use crate::world::*;

both_families!(
    the_backend_sees_the_client_and_answers_it,
    of_a_virtual_address_too,
    a_connection_is_established_when_its_client_goes_on,
    it_is_over_when_its_client_closes_it,
    pieces_of_a_larger_packet_count_the_port_up,
    a_refusal_goes_to_the_client_and_not_to_the_asked_node,
    who_expects_an_answer_from_its_own_node_is_masqueraded,
    where_there_is_no_room_it_is_masqueraded,
    a_backend_that_is_no_pod_is_masqueraded,
    what_is_too_big_with_the_carrier_is_told,
    a_first_fragment_that_is_too_big_is_told,
    fragments_arrive,
    p16_the_client_himself_is_judged,
    only_nodes_are_believed,
    p18_nobody_carries_what_claims_to_be_from_here,
    what_no_service_leads_to_is_dropped,
    a_connection_that_was_lost_here_goes_on,
    a_backend_that_was_chosen_anew_is_followed,
    a_firewall_of_the_backends_node_is_passed,
    errors_about_answers_reach_the_backend,
    errors_about_the_carrier_reach_the_client,
    other_errors_about_it_are_left_alone,
    hops_are_counted_once,
    the_class_is_kept_and_no_congestion_is_claimed,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);
const BACKEND: End = (REMOTE, TARGET);
/// Somebody on the way.
const ROUTER: Dotted = [203, 0, 113, 1];
/// Another pod of the backend's node.
const SIBLING: Dotted = [10, 244, 2, 11];
/// A device towards clients only.
const OTHER_ETH: IfIndex = IfIndex(4);
/// A node's own address.
const OWN: AddressFlags =
    AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS | AddressFlags::NODE);

/// The node that clients ask, with such backends of its nodePort and its cluster IP.
fn asked<F: Net>(backends: &[Backend<F::Addr>]) -> Node<F> {
    let mut node = Node::<F>::new()
        .with_node_port(ServiceFlags::DSR, backends)
        .with_cluster_ip(ServiceFlags::DSR, backends);
    node.tables.addresses.insert(F::at(NODE), OWN);
    node.tables
        .addresses
        .insert(F::at(NODE2), AddressFlags(AddressFlags::NODE));
    node.tables.routes.insert(
        F::at(SIBLING),
        Route {
            device: ETH,
            neighbour: Some(LINK),
        },
    );
    node
}

/// Returns the node of the backends, with the same Services. It need not be told that its backends
/// answer clients directly.
fn answering<F: Net>(backends: &[Backend<F::Addr>]) -> Node<F> {
    let mut node = Node::<F>::new()
        .with_node_port(0, backends)
        .with_cluster_ip(0, backends);
    node.tables.addresses.insert(F::at(NODE2), OWN);
    node.tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::NODE));
    node.tables.pods.clear();
    node.tables.pods.insert(
        F::at(REMOTE),
        LocalPod {
            device: VETH_A,
            pod_id: 0,
        },
    );
    node.tables.pods.insert(
        F::at(SIBLING),
        LocalPod {
            device: VETH_B,
            pod_id: 0,
        },
    );
    let (node6, node4) = (V6::at(NODE2), V4::at(NODE2));
    node.tables.devices.insert(
        ETH,
        Device {
            masquerade6: node6,
            masquerade4: node4,
            node6,
            node4,
            mtu: 1500,
            flags: 0,
        },
    );
    node.tables.routes.insert(
        F::at(NODE),
        Route {
            device: ETH,
            neighbour: Some(LINK),
        },
    );
    node
}

fn both<F: Net>() -> (Node<F>, Node<F>) {
    (asked(&[pod::<F>(REMOTE)]), answering(&[pod::<F>(REMOTE)]))
}

/// Bytes of the carrying header.
fn overhead<F: Net>() -> usize {
    if F::V6 { 40 } else { 20 }
}

/// Returns the packet that a node encapsulated for a backend of the other.
#[track_caller]
fn carried<F: Net>(hop: &Hop, (backend, port): End) -> Vec<u8> {
    assert_eq!(hop.said, Ok(Action::Neighbour(ETH)));
    let bytes = hop.bytes();
    let (carrier, inner) = bytes[14..].split_at(overhead::<F>());
    if F::V6 {
        let header = Ipv6HeaderSlice::from_slice(carrier).expect("a header");
        assert_eq!(
            (header.next_header(), usize::from(header.payload_length())),
            (IpNumber::IPV6, inner.len())
        );
        assert_eq!(
            (F::ip(NODE), F::ip(backend)),
            (
                header.source_addr().into(),
                header.destination_addr().into()
            )
        );
        assert_eq!(
            (header.flow_label().value(), header.hop_limit()),
            (port.into(), 64)
        );
    } else {
        let header = Ipv4HeaderSlice::from_slice(carrier).expect("a header");
        assert_eq!(
            (header.protocol(), usize::from(header.total_len())),
            (IpNumber::IPV4, 20 + inner.len())
        );
        assert_eq!(
            (F::ip(NODE), F::ip(backend)),
            (
                header.source_addr().into(),
                header.destination_addr().into()
            )
        );
        assert_eq!(
            (
                header.identification(),
                header.ttl(),
                header.dont_fragment()
            ),
            (port, 64, true)
        );
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
    }
    [&bytes[..14], inner].concat()
}

/// A packet of a client comes to the asked node, and to the backend by the other one.
#[track_caller]
fn through<F: Net>((asked, answering): (&Node<F>, &Node<F>), sent: &Segment) -> Segment {
    let hop = asked.from_device(sent);
    assert_eq!(carried::<F>(&hop, BACKEND), sent.bytes(), "as it came");
    answering
        .raw_from_device(hop.bytes())
        .goes(Action::Pod(VETH_A))
}

fn the_backend_sees_the_client_and_answers_it<F: Net>() {
    for protocol in PROTOCOLS {
        let (asked, answering) = both::<F>();
        let sent = opening::<F>(protocol, FROM, TO);
        for _ in 0..2 {
            let met = through((&asked, &answering), &sent);
            assert_eq!(
                met,
                sent.clone().to(end::<F>(BACKEND)).hop(),
                "again, a retransmission leads nowhere else"
            );
        }
        assert_eq!(answering.flows(), (2, 0));
        let answer = sent.clone().to(end::<F>(BACKEND)).answer();
        let told = answering
            .from_pod(VETH_A, &answer)
            .goes(Action::Neighbour(ETH));
        assert_eq!(told, answer.from(end::<F>(TO)).hop());
        assert_eq!(answering.flows(), (0, 2));
        let data = packet::<F>(protocol, FROM, TO).flags(ACK);
        assert_eq!(
            through((&asked, &answering), &data),
            data.to(end::<F>(BACKEND)).hop()
        );
        assert_eq!(
            (
                asked.tables.counted(Counter::Encapsulated),
                answering.tables.counted(Counter::Decapsulated)
            ),
            (3, 3)
        );
    }
}

fn of_a_virtual_address_too<F: Net>() {
    let (asked, answering) = both::<F>();
    let sent = opening::<F>(Protocol::TCP, FROM, (VIP, 80));
    let met = through((&asked, &answering), &sent);
    let told = answering
        .from_pod(VETH_A, &met.answer())
        .goes(Action::Neighbour(ETH));
    assert_eq!((told.src, told.dst), (end::<F>((VIP, 80)), end::<F>(FROM)));
}

/// V18: nobody but the client can tell the asked node that he was answered. A datagram that comes
/// again is enough, a SYN is not.
fn a_connection_is_established_when_its_client_goes_on<F: Net>() {
    for protocol in PROTOCOLS {
        let (asked, _) = both::<F>();
        let sent = opening::<F>(protocol, FROM, TO);
        carried::<F>(&asked.from_device(&sent), BACKEND);
        assert_eq!(asked.flows(), (2, 0));
        carried::<F>(&asked.from_device(&sent), BACKEND);
        assert_eq!(
            asked.flows(),
            if protocol == Protocol::UDP {
                (0, 2)
            } else {
                (2, 0)
            }
        );
        carried::<F>(
            &asked.from_device(&packet::<F>(protocol, FROM, TO).flags(ACK)),
            BACKEND,
        );
        assert_eq!(asked.flows(), (0, 2));
    }
}

/// V17, V18: the backend's last word is not seen here. What it still sends is acknowledged by a
/// client that has closed.
fn it_is_over_when_its_client_closes_it<F: Net>() {
    for (protocol, flags, state) in [
        (Protocol::TCP, FIN | ACK, State::FIN_FORWARD),
        (Protocol::TCP, RST, State::RESET),
        (Protocol::SCTP, FIN | ACK, State::FIN_FORWARD),
        (Protocol::SCTP, RST, State::RESET),
    ] {
        let (asked, _) = both::<F>();
        let sent = |flags| packet::<F>(protocol, FROM, TO).flags(flags);
        for flags in [crate::segment::SYN, ACK] {
            carried::<F>(&asked.from_device(&sent(flags)), BACKEND);
        }
        let mut last = sent(flags).bytes();
        if protocol == Protocol::SCTP && flags != RST {
            // SHUTDOWN ACK: the backend has begun the end.
            last[14 + overhead::<F>() + 12] = 8;
        }
        carried::<F>(&asked.raw_from_device(&last), BACKEND);
        let key = key::<F>(protocol, FROM, TO);
        assert_eq!(
            asked.flow(&asked.tables.established, &key).state,
            State::REPLIED | state
        );
        carried::<F>(&asked.from_device(&sent(ACK)), BACKEND);
        carried::<F>(
            &asked.from_device(&opening::<F>(protocol, FROM, TO)),
            BACKEND,
        );
        assert_eq!(asked.flows(), (2, 0), "the next connection");
    }
}

/// The kernel numbers what it cuts: 8080 is followed by 8081 (`inet_gso_segment`).
fn pieces_of_a_larger_packet_count_the_port_up<F: Net>() {
    for protocol in PROTOCOLS {
        let (asked, answering) = both::<F>();
        through((&asked, &answering), &opening::<F>(protocol, FROM, TO));
        let sent = sized::<F>(protocol, ACK, 1000);
        let mut piece = asked.from_device(&sent).bytes().to_vec();
        piece[if F::V6 { 17 } else { 19 }] += 3;
        let met = answering.raw_from_device(&piece).goes(Action::Pod(VETH_A));
        assert_eq!(met, sent.to(end::<F>(BACKEND)).hop());
        assert_eq!(answering.flows(), (2, 0));
        // Of a connection that is not known here it is no word to go by: its sender tries again.
        answering.tables.opening.borrow_mut().clear();
        answering
            .raw_from_device(&piece)
            .dropped(Reason::NotServedHere);
    }
}

/// By the route to him: he is not behind the node that has carried his packet here.
fn a_refusal_goes_to_the_client_and_not_to_the_asked_node<F: Net>() {
    let (asked, answering) = both::<F>();
    let mut answering = answering.isolate(Row::CLOSED, Row::CLOSED);
    answering.tables.pods.insert(
        F::at(REMOTE),
        LocalPod {
            device: VETH_A,
            pod_id: 1,
        },
    );
    answering.tables.config.flags |= Config::POLICY | Config::REJECT_DENIED;
    let sent = opening::<F>(Protocol::TCP, FROM, TO);
    let hop = asked.from_device(&sent);
    answering.tables.routes.insert(
        F::at(CLIENT),
        Route {
            device: OTHER_ETH,
            neighbour: None,
        },
    );
    let told = answering
        .raw_from_device(hop.bytes())
        .tells(Action::Neighbour(OTHER_ETH));
    assert_eq!((told.src, told.dst), (F::ip(NODE), F::ip(CLIENT)));
    assert_eq!((told.kind, told.code), if F::V6 { (1, 1) } else { (3, 13) });
    assert_eq!(
        told.quote[..overhead::<F>() + 20],
        sent.bytes()[14..14 + overhead::<F>() + 20]
    );
}

/// V11: pods and nodes are masqueraded, since they match replies with their own tables.
fn who_expects_an_answer_from_its_own_node_is_masqueraded<F: Net>() {
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    node.tables.ranges.insert(
        (F::at(SIBLING), if F::V6 { 128 } else { 32 }),
        RangeKind::PODS,
    );
    for client in [SIBLING, NODE2] {
        node.tables.routes.insert(
            F::at(client),
            Route {
                device: ETH,
                neighbour: Some(LINK),
            },
        );
        let left = node
            .from_device(&opening::<F>(Protocol::TCP, (client, 40000), TO))
            .goes(Action::Neighbour(ETH));
        assert_eq!((left.src.ip(), left.dst), (F::ip(NODE), end::<F>(BACKEND)));
    }
}

fn where_there_is_no_room_it_is_masqueraded<F: Net>() {
    let narrow = if F::V6 { 1319 } else { 87 };
    let changes: [fn(&mut Device, u32); 2] = [
        |device, mtu| device.mtu = mtu,
        |device, _| (device.node4, device.node6) = Default::default(),
    ];
    for change in changes {
        let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
        change(node.tables.devices.get_mut(&ETH).expect("there"), narrow);
        let left = node
            .from_device(&opening::<F>(Protocol::UDP, FROM, TO))
            .goes(Action::Neighbour(ETH));
        assert_eq!(left.src.ip(), F::ip(NODE));
    }
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    node.tables.config.flags |= Config::THROUGH_STACK;
    node.from_device(&opening::<F>(Protocol::TCP, FROM, TO))
        .goes(Action::Stack);
}

fn a_backend_that_is_no_pod_is_masqueraded<F: Net>() {
    let node = asked::<F>(&[process::<F>(NODE2)]);
    let left = node
        .from_device(&opening::<F>(Protocol::TCP, FROM, TO))
        .goes(Action::Neighbour(ETH));
    assert_eq!(
        (left.src.ip(), left.dst),
        (F::ip(NODE), end::<F>((NODE2, TARGET)))
    );
}

/// A packet that takes so many bytes without the link-layer header.
fn sized<F: Net>(protocol: Protocol, flags: u8, bytes: usize) -> Segment {
    let headers = overhead::<F>() + crate::segment::overhead(protocol);
    packet::<F>(protocol, FROM, TO)
        .flags(flags)
        .payload(&vec![7; bytes - headers])
}

fn what_is_too_big_with_the_carrier_is_told<F: Net>() {
    let room = 1500 - overhead::<F>();
    for protocol in PROTOCOLS {
        let (asked, answering) = both::<F>();
        through((&asked, &answering), &opening::<F>(protocol, FROM, TO));
        through((&asked, &answering), &sized::<F>(protocol, ACK, room));
        let told = asked
            .from_device(&sized::<F>(protocol, ACK, room + 4))
            .refused(ETH);
        assert_eq!((told.src, told.dst), (F::ip(NODE), F::ip(CLIENT)));
        assert_eq!(
            (told.kind, u32::from_be_bytes(told.rest)),
            (if F::V6 { 2 } else { 3 }, room as u32)
        );
        assert_eq!(asked.tables.answered(Reason::TooBig), 1);
    }
}

/// A host that cuts its datagrams makes the next ones smaller.
fn a_first_fragment_that_is_too_big_is_told<F: Net>() {
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    // Fragments have 1,280 bytes behind their headers.
    let mtu = if F::V6 { 1320 } else { 1310 };
    node.tables.devices.get_mut(&ETH).expect("there").mtu = mtu;
    let frames = cut::<F>(&long::<F>(Protocol::UDP, FROM, TO), (CLIENT, NODE));
    let told = node.raw_from_device(&frames[0]).refused(ETH);
    assert_eq!(
        (told.dst, u32::from_be_bytes(told.rest)),
        (F::ip(CLIENT), mtu - overhead::<F>() as u32)
    );
    assert_eq!(told.quote[..8], frames[0][14..22]);
    // The rest waits in vain for its first.
    node.raw_from_device(&frames[1]).untouched();
    assert_eq!(node.flows(), (0, 0));
}

fn fragments_arrive<F: Net>() {
    for protocol in [Protocol::UDP, Protocol::TCP] {
        let (asked, answering) = both::<F>();
        through((&asked, &answering), &opening::<F>(protocol, FROM, TO));
        let sent = long::<F>(protocol, FROM, TO);
        let arrived = cut::<F>(&sent, (CLIENT, NODE)).into_iter().map(|frame| {
            let hop = asked.raw_from_device(&frame);
            assert_eq!(carried::<F>(&hop, BACKEND), frame);
            let hop = answering.raw_from_device(hop.bytes());
            assert_eq!(hop.said, Ok(Action::Pod(VETH_A)));
            hop.bytes().to_vec()
        });
        let met = join::<F>(&arrived.collect::<Vec<_>>()).0;
        assert_eq!(met, sent.to(end::<F>(BACKEND)).hop());
    }
}

/// P16: an ipBlock speaks of clients, who keep their addresses here.
fn p16_the_client_himself_is_judged<F: Net>() {
    for (allowed, goes) in [(CLIENT, true), (NODE, false)] {
        let (asked, answering) = both::<F>();
        let mut answering = answering
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(allowed, port_of(TARGET));
        answering.tables.pods.insert(
            F::at(REMOTE),
            LocalPod {
                device: VETH_A,
                pod_id: 1,
            },
        );
        answering.tables.config.flags |= Config::POLICY;
        let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
        let hop = answering.raw_from_device(hop.bytes());
        if goes {
            let met = hop.goes(Action::Pod(VETH_A));
            answering
                .from_pod(VETH_A, &met.answer())
                .goes(Action::Neighbour(ETH));
        } else {
            hop.dropped(Reason::DeniedIngress);
            assert_eq!(answering.flows(), (0, 0));
        }
    }
}

/// An encapsulated packet that another host sends to a pod is the pod's own business.
fn only_nodes_are_believed<F: Net>() {
    let (asked, mut answering) = both::<F>();
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    answering.tables.addresses.remove(&F::at(NODE));
    answering.raw_from_device(hop.bytes()).untouched();
    assert_eq!(answering.flows(), (0, 0));
    // Nor is it met where the packet is not for a pod of this node.
    let (asked, mut answering) = both::<F>();
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    answering.tables.pods.remove(&F::at(REMOTE));
    answering.raw_from_device(hop.bytes()).untouched();
}

fn p18_nobody_carries_what_claims_to_be_from_here<F: Net>() {
    let (mut asked, mut answering) = both::<F>();
    // Of a node that does not know of these.
    asked.tables.addresses.remove(&F::at(NODE2));
    asked.tables.addresses.remove(&F::at(NODE));
    answering.tables.ranges.insert(
        (F::at(POD_A), if F::V6 { 128 } else { 32 }),
        RangeKind::PODS,
    );
    asked
        .tables
        .addresses
        .insert(F::at(NODE), AddressFlags(AddressFlags::NODE_PORTS));
    for client in [NODE2, SIBLING, POD_A, NODE] {
        let hop = asked.from_device(&opening::<F>(Protocol::TCP, (client, 40000), TO));
        carried::<F>(&hop, BACKEND);
        answering
            .raw_from_device(hop.bytes())
            .dropped(Reason::ForgedSource);
    }
}

/// It would go round between the nodes for ever.
fn what_no_service_leads_to_is_dropped<F: Net>() {
    let asked = asked::<F>(&[pod::<F>(REMOTE)]);
    let opening = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    answering::<F>(&[pod::<F>(SIBLING)])
        .raw_from_device(opening.bytes())
        .dropped(Reason::NotServedHere);
    let other_port = Backend {
        port: proxy_common::net::Port::new(TARGET + 1),
        ..pod::<F>(REMOTE)
    };
    answering::<F>(&[other_port])
        .raw_from_device(opening.bytes())
        .dropped(Reason::NotServedHere);
    let mut without = answering::<F>(&[pod::<F>(REMOTE)]);
    without.tables.services.clear();
    without
        .raw_from_device(opening.bytes())
        .dropped(Reason::NotServedHere);
    let reset = asked.from_device(&packet::<F>(Protocol::TCP, FROM, TO).flags(RST));
    answering::<F>(&[pod::<F>(REMOTE)])
        .raw_from_device(reset.bytes())
        .dropped(Reason::NotServedHere);
    // Nor what nobody translates.
    let mut echo = opening.bytes()[..14 + overhead::<F>()].to_vec();
    let number = if F::V6 {
        IpNumber::IPV6_ICMP
    } else {
        IpNumber::ICMP
    };
    echo.extend(
        &raw_between::<F>(
            CLIENT,
            NODE,
            number,
            &[if F::V6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4],
        )[14..],
    );
    answering::<F>(&[pod::<F>(REMOTE)])
        .raw_from_device(&echo)
        .dropped(Reason::NotServedHere);
}

/// V16: the asked node sends no packet on that opens nothing, except of connections that it has.
fn a_connection_that_was_lost_here_goes_on<F: Net>() {
    for protocol in [Protocol::TCP, Protocol::SCTP] {
        let (asked, answering) = both::<F>();
        asked
            .from_device(&packet::<F>(protocol, FROM, TO).flags(ACK))
            .untouched();
        carried::<F>(
            &asked.from_device(&opening::<F>(protocol, FROM, TO)),
            BACKEND,
        );
        let data = packet::<F>(protocol, FROM, TO).flags(ACK);
        assert_eq!(
            through((&asked, &answering), &data),
            data.clone().to(end::<F>(BACKEND)).hop()
        );
        assert_eq!(answering.flows(), (2, 0));
    }
}

/// V14: the asked node has ended a datagram's flow, and chosen another backend of the same node.
fn a_backend_that_was_chosen_anew_is_followed<F: Net>() {
    for protocol in PROTOCOLS {
        let both = [pod::<F>(REMOTE), pod::<F>(SIBLING)];
        let answering = answering::<F>(&both);
        let sent = opening::<F>(protocol, FROM, TO);
        for (backend, device) in [(REMOTE, VETH_A), (SIBLING, VETH_B), (REMOTE, VETH_A)] {
            let hop = asked::<F>(&[pod::<F>(backend)]).from_device(&sent);
            carried::<F>(&hop, (backend, TARGET));
            let met = answering
                .raw_from_device(hop.bytes())
                .goes(Action::Pod(device));
            assert_eq!(met, sent.clone().to(end::<F>((backend, TARGET))).hop());
            answering
                .from_pod(device, &met.answer())
                .goes(Action::Neighbour(ETH));
            assert_eq!(
                answering.flows(),
                (0, 2),
                "nothing is left of the other one"
            );
        }
    }
}

fn a_firewall_of_the_backends_node_is_passed<F: Net>() {
    let (asked, mut answering) = both::<F>();
    answering.tables.config.flags |= Config::THROUGH_STACK;
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    let met = answering.raw_from_device(hop.bytes()).goes(Action::Stack);
    assert_eq!((met.src, met.dst), (end::<F>(FROM), end::<F>(BACKEND)));
    let told = answering.to_device(&met.answer()).goes(Action::Stack);
    assert_eq!((told.src, told.dst), (end::<F>(TO), end::<F>(FROM)));
}

/// The client, or a router before it, sends an error to the address that the answer came from; that
/// node forwards it like the client's packets.
fn errors_about_answers_reach_the_backend<F: Net>() {
    for (protocol, teller) in PROTOCOLS
        .into_iter()
        .flat_map(|protocol| [(protocol, CLIENT), (protocol, ROUTER)])
    {
        let (asked, answering) = both::<F>();
        let met = through((&asked, &answering), &opening::<F>(protocol, FROM, TO));
        let answer = met.answer();
        let told = answering
            .from_pod(VETH_A, &answer)
            .goes(Action::Neighbour(ETH));
        let error = error_about::<F>((teller, NODE), &told);
        let hop = asked.raw_from_device(&error);
        assert_eq!(carried::<F>(&hop, BACKEND), error);
        let icmp = answering
            .raw_from_device(hop.bytes())
            .tells(Action::Pod(VETH_A));
        assert_eq!((icmp.src, icmp.dst), (F::ip(teller), F::ip(REMOTE)));
        let transport = overhead::<F>();
        let owed = answer.ttl(told.ttl).bytes();
        assert_eq!(
            icmp.quote[transport - 8..transport + 8],
            owed[14 + transport - 8..14 + transport + 8]
        );
    }
}

/// A router between the nodes has a next link with a smaller MTU: the client gets an error as if
/// the node had sent it.
fn errors_about_the_carrier_reach_the_client<F: Net>() {
    for protocol in PROTOCOLS {
        let (mut asked, answering) = both::<F>();
        through((&asked, &answering), &opening::<F>(protocol, FROM, TO));
        asked.tables.routes.insert(
            F::at(CLIENT),
            Route {
                device: OTHER_ETH,
                neighbour: None,
            },
        );
        let sent = sized::<F>(protocol, ACK, 1400);
        let hop = asked.from_device(&sent);
        // It quotes 548 bytes at most.
        let told = asked.raw_from_device(&error_quoting::<F>(
            (ROUTER, NODE),
            &hop.bytes()[14..14 + 500],
        ));
        let icmp = told.tells(Action::Neighbour(OTHER_ETH));
        assert_eq!((icmp.src, icmp.dst), (F::ip(NODE), F::ip(CLIENT)));
        let room = if F::V6 { 1280 } else { 1280 - 20 };
        assert_eq!(
            (icmp.kind, u32::from_be_bytes(icmp.rest)),
            (if F::V6 { 2 } else { 3 }, room)
        );
        assert_eq!(
            icmp.quote[..overhead::<F>() + 8],
            sent.bytes()[14..14 + overhead::<F>() + 8]
        );
    }
    // About a packet that this node has not sent.
    let (asked, _) = both::<F>();
    let (other, _) = both::<F>();
    let hop = other.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    let error = error_quoting::<F>((ROUTER, NODE), &hop.bytes()[14..]);
    asked.raw_from_device(&error).dropped(Reason::NotServedHere);
}

fn other_errors_about_it_are_left_alone<F: Net>() {
    let (asked, _) = both::<F>();
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    let mut error = error_quoting::<F>((ROUTER, NODE), &hop.bytes()[14..]);
    // A host that cannot be reached; the stack verifies the checksum, not we.
    error[14 + overhead::<F>()..][..2].copy_from_slice(if F::V6 { &[1, 3] } else { &[3, 1] });
    asked.raw_from_device(&error).untouched();
}

/// One router, as for a backend of the asked node.
fn hops_are_counted_once<F: Net>() {
    let (asked, answering) = both::<F>();
    let met = through(
        (&asked, &answering),
        &opening::<F>(Protocol::UDP, FROM, TO).ttl(2),
    );
    assert_eq!(met.ttl, 1);
    asked
        .from_device(&opening::<F>(Protocol::UDP, FROM, TO).ttl(1))
        .refused(ETH);
    assert_eq!(asked.tables.answered(Reason::TtlExceeded), 1);
}

/// RFC 6040: congestion marks would be lost where the carrier ends, so it says that it cannot be
/// marked.
fn the_class_is_kept_and_no_congestion_is_claimed<F: Net>() {
    let asked = asked::<F>(&[pod::<F>(REMOTE)]);
    // Expedited forwarding, and able to be marked.
    const CLASS: u8 = 46 << 2 | 2;
    let mut bytes = opening::<F>(Protocol::UDP, FROM, TO).bytes();
    if F::V6 {
        bytes[14] |= CLASS >> 4;
        bytes[15] |= CLASS << 4;
    } else {
        bytes[15] = CLASS;
        let checksum = Ipv4HeaderSlice::from_slice(&bytes[14..])
            .expect("a header")
            .to_header()
            .calc_header_checksum();
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    let hop = asked.raw_from_device(&bytes);
    assert_eq!(carried::<F>(&hop, BACKEND), bytes);
    let [a, b] = [hop.bytes()[14], hop.bytes()[15]];
    assert_eq!(if F::V6 { a << 4 | b >> 4 } else { b }, 46 << 2);
}
