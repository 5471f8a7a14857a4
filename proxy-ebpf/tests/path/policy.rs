//! NetworkPolicy on packets: the end and the hook that decide, and the exemptions.

use etherparse::IpNumber;
use proxy_common::config::Config;
use proxy_common::flow::Role;
use proxy_common::net::Protocol;
use proxy_common::node::{AddressFlags, Device, Veth};
use proxy_common::policy::{PodRows, Row};
use proxy_common::reason::{Counter, Reason};
use proxy_ebpf::Action;

use crate::both_families;
use crate::errors::error_about;
use crate::segment::{ACK, Icmp, SYN, Segment};
use crate::untouched::{fragment, raw_between};
use crate::world::*;

both_families!(
    p1_p28_redirects_do_not_go_around_the_ingress_check,
    p1_both_ends_of_one_node_are_judged_after_translation,
    p18_the_own_node_is_who_made_the_packet_here,
    p18_forged_sources_are_dropped_at_the_device,
    p19_a_pod_reaches_itself_by_its_service,
    p25_replies_pass_and_p30_stop_at_once_when_their_connection_is_not_allowed_any_more,
    p25_errors_about_a_connection_pass_and_others_do_not,
    p16_p26_other_protocols_are_in_the_set_of_everything_only,
    p26_neighbours_are_discovered,
    p27_later_fragments_follow_the_first,
    p31_pods_that_are_not_known_are_denied,
    p33_a_pod_sends_with_its_own_addresses,
    a_denial_can_be_answered,
    a_service_that_comes_later_is_used_by_the_next_syn,
);

const A: End = (POD_A, TARGET);

fn from_client<F: Net>(protocol: Protocol, to: End) -> Segment {
    opening::<F>(protocol, (CLIENT, 40000), to)
}

/// P1, P28, P29: through a nodePort, ingress is decided by the client's own address and the pod's
/// port.
fn p1_p28_redirects_do_not_go_around_the_ingress_check<F: Net>() {
    for protocol in PROTOCOLS {
        let syn = from_client::<F>(protocol, (NODE, NODE_PORT));
        let node = Node::<F>::new()
            .with_node_port(0, &[pod::<F>(POD_A)])
            .isolated();
        node.from_device(&syn).dropped(Reason::DeniedIngress);
        assert_eq!(node.flows(), (0, 0), "a denied connection leaves nothing");
        let node = node
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(CLIENT, port_of(TARGET));
        node.from_device(&syn).goes(Action::Pod(VETH_A));
        node.from_device(&opening::<F>(protocol, (REMOTE, 40000), (NODE, NODE_PORT)))
            .dropped(Reason::DeniedIngress);
        // P14: the nodePort's number is no port of the pod.
        let node = Node::<F>::new()
            .with_node_port(0, &[pod::<F>(POD_A)])
            .isolated();
        let node = node
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(CLIENT, port_of(NODE_PORT));
        node.from_device(&syn).dropped(Reason::DeniedIngress);
        assert_eq!(node.tables.denied.borrow().len(), 1);
        let (key, _) = node.tables.denied.borrow()[0];
        assert_eq!(
            key,
            crate::world::key::<F>(protocol, (CLIENT, 40000), A),
            "both ends are named"
        );
    }
}

/// P1, P28: a packet that is redirected past the destination's hook is judged for both ends.
fn p1_both_ends_of_one_node_are_judged_after_translation<F: Net>() {
    for protocol in PROTOCOLS {
        let syn = opening::<F>(protocol, (POD_B, 40000), (VIP, 80));
        let node = Node::<F>::new()
            .with_cluster_ip(0, &[pod::<F>(POD_A)])
            .isolated();
        node.from_pod(VETH_B, &syn).dropped(Reason::DeniedIngress);
        let node = node
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(POD_B, port_of(TARGET));
        node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
        // In the other direction egress decides.
        let node = Node::<F>::new()
            .with_cluster_ip(0, &[pod::<F>(POD_B)])
            .isolated();
        let syn = opening::<F>(protocol, (POD_A, 40000), (VIP, 80));
        node.from_pod(VETH_A, &syn).dropped(Reason::DeniedEgress);
        node.isolate(Row::CLOSED, ALLOWING)
            .allowing(POD_B, port_of(TARGET))
            .from_pod(VETH_A, &syn)
            .goes(Action::Pod(VETH_B));
    }
}

fn p18_the_own_node_is_who_made_the_packet_here<F: Net>() {
    let node = Node::<F>::new().isolated();
    for protocol in PROTOCOLS {
        let probe = opening::<F>(protocol, (NODE, 40000), A);
        node.to_pod(VETH_A, &probe).dropped(Reason::DeniedIngress);
        node.own_to_pod(VETH_A, &probe).untouched();
        node.from_pod(VETH_A, &probe.answer()).untouched();
        // Another node's address is not this node's, also if a local process sends from it.
        node.own_to_pod(VETH_A, &opening::<F>(protocol, (NODE2, 40000), A))
            .dropped(Reason::DeniedIngress);
        // P18: egress to the own node is judged.
        node.from_pod(VETH_A, &opening::<F>(protocol, A, (NODE, 10250)))
            .dropped(Reason::DeniedEgress);
    }
}

fn p18_forged_sources_are_dropped_at_the_device<F: Net>() {
    let mut node = Node::<F>::new()
        .with_node_port(0, &[pod::<F>(POD_A)])
        .isolated();
    for source in [NODE, POD_B] {
        let forged = opening::<F>(Protocol::TCP, (source, 40000), (NODE, NODE_PORT));
        node.from_device(&forged).dropped(Reason::ForgedSource);
        node.from_device(&forged.clone().to(end::<F>(A)))
            .dropped(Reason::ForgedSource);
    }
    // A bridge receives the packets that its pods send.
    node.tables.devices.get_mut(&ETH).expect("the device").flags |= Device::HAS_PODS;
    node.from_device(&opening::<F>(Protocol::TCP, (POD_B, 40000), A))
        .untouched();
}

fn p19_a_pod_reaches_itself_by_its_service<F: Net>() {
    let node = Node::<F>::new()
        .with_cluster_ip(0, &[pod::<F>(POD_A)])
        .isolated();
    let syn = opening::<F>(Protocol::TCP, (POD_A, 40000), (VIP, 80));
    node.from_pod(VETH_A, &syn).goes(Action::Pod(VETH_A));
}

fn p25_replies_pass_and_p30_stop_at_once_when_their_connection_is_not_allowed_any_more<F: Net>() {
    for protocol in PROTOCOLS {
        // A pod as destination: ingress by the client's address, no egress.
        let node = Node::<F>::new()
            .isolated()
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(CLIENT, port_of(TARGET));
        let syn = from_client::<F>(protocol, A);
        let answer = syn.answer().flags(SYN | ACK);
        node.to_pod(VETH_A, &syn).untouched();
        node.from_pod(VETH_A, &answer).untouched();
        node.to_pod(VETH_A, &syn.clone().flags(ACK)).untouched();
        let node = node.isolate(Row::CLOSED, Row::CLOSED);
        node.to_pod(VETH_A, &syn.clone().flags(ACK))
            .dropped(Reason::DeniedIngress);
        node.from_pod(VETH_A, &answer)
            .dropped(Reason::DeniedIngress);
        // A pod as source: egress to the client's address, no ingress.
        let node = Node::<F>::new()
            .isolated()
            .isolate(Row::CLOSED, ALLOWING)
            .allowing(CLIENT, port_of(443));
        let syn = opening::<F>(protocol, (POD_A, 40000), (CLIENT, 443));
        node.from_pod(VETH_A, &syn).untouched();
        node.to_pod(VETH_A, &syn.answer().flags(SYN | ACK))
            .untouched();
        assert!(
            node.tables
                .established
                .borrow()
                .values()
                .all(|flow| flow.is(Role::UNTRANSLATED))
        );
        assert_eq!(node.tables.counted(Counter::Followed), 1);
        let node = node.isolate(Row::CLOSED, Row::CLOSED);
        node.to_pod(VETH_A, &syn.answer().flags(ACK))
            .dropped(Reason::DeniedEgress);
        // Without a flow, a packet that looks like an answer is none.
        node.to_pod(
            VETH_A,
            &packet::<F>(protocol, (CLIENT, 444), (POD_A, 40000)).flags(ACK),
        )
        .dropped(Reason::DeniedIngress);
    }
}

fn p25_errors_about_a_connection_pass_and_others_do_not<F: Net>() {
    let node = Node::<F>::new()
        .isolated()
        .isolate(Row::CLOSED, ALLOWING)
        .allowing(CLIENT, port_of(443));
    let asks = opening::<F>(Protocol::UDP, (POD_A, 40000), (CLIENT, 443));
    node.from_pod(VETH_A, &asks).untouched();
    node.raw_at_pod(VETH_A, false, &error_about::<F>((CLIENT, POD_A), &asks))
        .untouched();
    node.raw_at_pod(VETH_A, false, &error_about::<F>((NODE2, POD_A), &asks))
        .untouched();
    let stranger = opening::<F>(Protocol::UDP, (POD_A, 40001), (CLIENT, 443));
    node.raw_at_pod(VETH_A, false, &error_about::<F>((CLIENT, POD_A), &stranger))
        .dropped(Reason::DeniedIngress);
    let node = node.isolate(Row::CLOSED, Row::CLOSED);
    node.raw_at_pod(VETH_A, false, &error_about::<F>((CLIENT, POD_A), &asks))
        .dropped(Reason::DeniedEgress);
}

fn p16_p26_other_protocols_are_in_the_set_of_everything_only<F: Net>() {
    for number in [IpNumber::GRE, IpNumber(200)] {
        let ports = [[0x9c, 0x40], TARGET.to_be_bytes()].concat();
        let bytes = raw_between::<F>(CLIENT, POD_A, number, &[&ports[..], &[1; 40]].concat());
        let node = Node::<F>::new()
            .isolated()
            .isolate(ALLOWING, Row::CLOSED)
            .allowing(CLIENT, port_of(TARGET));
        node.raw_at_pod(VETH_A, false, &bytes)
            .dropped(Reason::DeniedIngress);
        node.allowing(CLIENT, everything())
            .raw_at_pod(VETH_A, false, &bytes)
            .untouched();
    }
}

/// P26 for IPv6. ARP is no IPv4, and not judged either.
fn p26_neighbours_are_discovered<F: Net>() {
    if !F::V6 {
        return;
    }
    let node = Node::<F>::new().isolated();
    for kind in 133..=137 {
        let mut bytes = raw_between::<F>(
            CLIENT,
            POD_A,
            IpNumber::IPV6_ICMP,
            &[&[kind, 0, 0, 0][..], &[0; 20]].concat(),
        );
        node.raw_at_pod(VETH_A, false, &bytes)
            .dropped(Reason::DeniedIngress);
        bytes[21] = 255;
        node.raw_at_pod(VETH_A, false, &bytes).untouched();
    }
}

fn p27_later_fragments_follow_the_first<F: Net>() {
    let transport = &from_client::<F>(Protocol::UDP, A).bytes()[if F::V6 { 54 } else { 34 }..];
    let first = fragment::<F>(CLIENT, POD_A, IpNumber::UDP, true, 0, transport);
    let later = fragment::<F>(CLIENT, POD_A, IpNumber::UDP, false, 100, &[7; 16]);
    let node = Node::<F>::new()
        .isolated()
        .isolate(ALLOWING, Row::CLOSED)
        .allowing(CLIENT, port_of(TARGET));
    node.raw_at_pod(VETH_A, false, &later)
        .dropped(Reason::FragmentUnknown);
    node.raw_at_pod(VETH_A, false, &first).untouched();
    node.raw_at_pod(VETH_A, false, &later).untouched();
    let node = node.isolate(Row::CLOSED, Row::CLOSED);
    node.raw_at_pod(VETH_A, false, &later)
        .dropped(Reason::DeniedIngress);
    let free = Node::<F>::new().isolated().isolate(Row::OPEN, Row::OPEN);
    free.raw_at_pod(VETH_A, false, &later).untouched();
}

fn p31_pods_that_are_not_known_are_denied<F: Net>() {
    let mut node = Node::<F>::new().isolated();
    node.tables.pods.clear();
    node.tables.veths.clear();
    let (out, into) = (
        opening::<F>(Protocol::TCP, A, (CLIENT, 443)),
        from_client::<F>(Protocol::TCP, A),
    );
    node.from_pod(VETH_A, &out).untouched();
    node.to_pod(VETH_A, &into).untouched();
    node.tables.config.flags |= Config::DENY_UNKNOWN;
    node.from_pod(VETH_A, &out).dropped(Reason::PodUnknown);
    node.to_pod(VETH_A, &into).dropped(Reason::PodUnknown);
    // The own node reaches it and gets answers; nothing else passes.
    let own = opening::<F>(Protocol::TCP, (NODE, 40000), A);
    node.own_to_pod(VETH_A, &own).untouched();
    node.from_pod(VETH_A, &own.answer()).untouched();
    node.from_pod(VETH_A, &opening::<F>(Protocol::TCP, A, (NODE, 40001)))
        .dropped(Reason::PodUnknown);
}

fn p33_a_pod_sends_with_its_own_addresses<F: Net>() {
    let mut node = Node::<F>::new().isolated();
    node.tables.rows.insert(2, PodRows::default());
    for source in [POD_A, CLIENT, NODE] {
        node.from_pod(
            VETH_B,
            &opening::<F>(Protocol::UDP, (source, 40000), (CLIENT, 443)),
        )
        .dropped(Reason::SpoofedSource);
    }
    // The unspecified source: DHCP, and IPv6's duplicate address detection.
    let mut bytes = opening::<F>(Protocol::UDP, (POD_B, 68), (CLIENT, 67)).bytes();
    let source = if F::V6 { 22..38 } else { 26..30 };
    bytes[source].fill(0);
    node.raw_at_pod(VETH_B, true, &bytes).untouched();
    node.tables.veths.insert(
        VETH_B,
        Veth {
            pod_id: 2,
            flags: Veth::ANY_SOURCE,
        },
    );
    node.from_pod(
        VETH_B,
        &opening::<F>(Protocol::UDP, (CLIENT, 40000), (REMOTE, 443)),
    )
    .untouched();
}

/// `--policy-deny reject`: the client gets an error at once, by the device that its packet arrived
/// at.
fn a_denial_can_be_answered<F: Net>() {
    let prohibited = if F::V6 { [1, 1] } else { [3, 13] };
    let mut node = Node::<F>::new().isolated();
    node.tables.config.flags |= Config::REJECT_DENIED;
    for protocol in PROTOCOLS {
        let hop = node.from_pod(VETH_A, &opening::<F>(protocol, A, (CLIENT, 443)));
        let icmp = hop.refused(VETH_A);
        assert_eq!([icmp.kind, icmp.code], prohibited);
        let hop = node.to_pod(VETH_A, &from_client::<F>(protocol, A));
        assert_eq!(hop.said, Ok(Action::Return(VETH_A)));
        let icmp = Icmp::read(hop.bytes()).expect("a valid ICMP message");
        assert_eq!([icmp.kind, icmp.code], prohibited);
    }
    let gre = raw_between::<F>(CLIENT, POD_A, IpNumber::GRE, &[1; 40]);
    node.raw_at_pod(VETH_A, false, &gre)
        .dropped(Reason::DeniedIngress);
}

/// The flow of a pod that asked before the Service existed is replaced at its next SYN.
fn a_service_that_comes_later_is_used_by_the_next_syn<F: Net>() {
    let syn = opening::<F>(Protocol::TCP, (POD_B, 40000), (VIP, 80));
    let node = Node::<F>::new().isolated().isolate(Row::OPEN, Row::OPEN);
    node.from_pod(VETH_B, &syn).untouched();
    let mut node = node.with_cluster_ip(0, &[pod::<F>(POD_A)]);
    node.tables
        .addresses
        .insert(F::at(VIP), AddressFlags(AddressFlags::CLUSTER_IP));
    node.from_pod(VETH_B, &syn).goes(Action::Pod(VETH_A));
}
