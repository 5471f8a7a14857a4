//! Sizes, fragments, ICMP errors and header fields of encapsulated packets.

use super::*;

both_families!(
    pieces_of_a_larger_packet_count_the_port_up,
    what_is_too_big_with_the_carrier_is_told,
    a_first_fragment_that_is_too_big_is_told,
    fragments_arrive,
    errors_about_answers_reach_the_backend,
    errors_about_the_carrier_reach_the_client,
    other_errors_about_it_are_left_alone,
    hops_are_counted_once,
    the_class_is_kept_and_no_congestion_is_claimed,
);

/// A router between client and node.
const ROUTER: Dotted = [203, 0, 113, 1];

/// GSO increments the IPv4 identification of each segment: 8080 becomes 8081 (`inet_gso_segment`).
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
        // Without a flow the number is no valid port: the packet is dropped, and its sender
        // retransmits.
        answering.tables.opening.borrow_mut().clear();
        answering
            .raw_from_device(&piece)
            .dropped(Reason::NotServedHere);
    }
}

/// Returns a packet of `bytes` bytes, without the link-layer header.
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

/// The error carries an MTU, so that the client sends smaller fragments.
fn a_first_fragment_that_is_too_big_is_told<F: Net>() {
    let mut node = asked::<F>(&[pod::<F>(REMOTE)]);
    // Fragments have 1,280 bytes after their headers.
    let mtu = if F::V6 { 1320 } else { 1310 };
    node.tables.devices.get_mut(&ETH).expect("there").mtu = mtu;
    let frames = cut::<F>(&long::<F>(Protocol::UDP, FROM, TO), (CLIENT, NODE));
    let told = node.raw_from_device(&frames[0]).refused(ETH);
    assert_eq!(
        (told.dst, u32::from_be_bytes(told.rest)),
        (F::ip(CLIENT), mtu - overhead::<F>() as u32)
    );
    assert_eq!(told.quote[..8], frames[0][14..22]);
    // Later fragments without their first one are left to the stack.
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

/// Errors about answers arrive at the asked node, whose address is their source; it forwards them
/// like the client's packets.
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

/// A link between the nodes has a smaller MTU: the client gets an error with the size that is left
/// for it.
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
        // The router quotes 548 bytes at most.
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
    // The quoted packet was not sent by this node.
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
    // Type and code of "host unreachable". The checksum is wrong then; the stack verifies it, not
    // the packet path.
    error[14 + overhead::<F>()..][..2].copy_from_slice(if F::V6 { &[1, 3] } else { &[3, 1] });
    asked.raw_from_device(&error).untouched();
}

/// Both nodes together decrement the TTL once, as for a backend of the asked node.
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

/// RFC 6040: the outer header is not ECN-capable, since marks on it would be lost at decapsulation.
fn the_class_is_kept_and_no_congestion_is_claimed<F: Net>() {
    let asked = asked::<F>(&[pod::<F>(REMOTE)]);
    // Expedited forwarding, ECN-capable.
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
