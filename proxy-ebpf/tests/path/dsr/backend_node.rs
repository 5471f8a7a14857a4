//! The backend's node: which encapsulated packets it accepts, and where it delivers them.

use super::*;

both_families!(
    a_refusal_goes_to_the_client_and_not_to_the_asked_node,
    p16_the_client_himself_is_judged,
    only_nodes_are_believed,
    p18_nobody_carries_what_claims_to_be_from_here,
    what_no_service_leads_to_is_dropped,
    a_connection_that_was_lost_here_goes_on,
    a_backend_that_was_chosen_anew_is_followed,
    a_firewall_of_the_backends_node_is_passed,
);

/// The error follows the route to the client, who is not behind the asked node.
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

/// P16: an ipBlock matches the client's own address, which encapsulation preserves.
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

/// Packets that other hosts encapsulate for a pod are left to the pod.
fn only_nodes_are_believed<F: Net>() {
    let (asked, mut answering) = both::<F>();
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    answering.tables.addresses.remove(&F::at(NODE));
    answering.raw_from_device(hop.bytes()).untouched();
    assert_eq!(answering.flows(), (0, 0));
    // Neither are packets for addresses that are no pod of this node.
    let (asked, mut answering) = both::<F>();
    let hop = asked.from_device(&opening::<F>(Protocol::TCP, FROM, TO));
    answering.tables.pods.remove(&F::at(REMOTE));
    answering.raw_from_device(hop.bytes()).untouched();
}

fn p18_nobody_carries_what_claims_to_be_from_here<F: Net>() {
    let (mut asked, mut answering) = both::<F>();
    // The asked node does not have these addresses in its tables.
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

/// Forwarded again, such a packet would circle between the nodes.
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
    // Protocols that are never translated are dropped too.
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

/// V16: the asked node forwards packets that open nothing only if they belong to a flow of its
/// table.
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

/// V14: the asked node has ended the flow of a datagram, and has chosen another backend on the same
/// node.
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
