//! New connections that are refused: rejected or dropped, and the form of the ICMP error.

use std::net::SocketAddr;

use proxy_common::net::{IfIndex, Protocol};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::ServiceFlags;
use proxy_ebpf::Action;

use crate::both_families;
use crate::segment::{ACK, Icmp, Segment, TTL, overhead};
use crate::world::*;

both_families!(
    service_without_backends_refuses,
    unknown_port_of_a_cluster_ip_is_refused,
    external_traffic_policy_local_refuses,
    load_balancers_may_wait_for_a_local_backend,
    external_traffic_policy_local_uses_local_backends_only,
    pods_short_circuit_external_traffic_policy_local,
    internal_traffic_policy_local_drops,
    refusals_are_rate_limited,
    options_and_long_packets_are_quoted_right,
    truncated_transport_is_not_answered,
    what_is_larger_than_the_device_takes_is_told_so_and_opens_nothing,
    the_last_hop_is_told_and_opens_nothing,
    sources_that_are_no_host_are_not_answered,
);

const FROM: End = (CLIENT, 40000);
const TO: End = (NODE, NODE_PORT);

/// Asserts every byte of the ICMP error that refuses `packet`, and returns it: to its sender, from
/// the address that was asked, quoting its headers.
#[track_caller]
fn refuses(hop: &Hop, packet: &Segment, device: IfIndex) {
    answers(
        hop,
        packet,
        device,
        if packet.src.is_ipv4() { [3, 3] } else { [1, 4] },
        0,
    );
}

/// Asserts an ICMP error: type and code, and the MTU in it.
#[track_caller]
fn answers(hop: &Hop, packet: &Segment, device: IfIndex, [kind, code]: [u8; 2], mtu: u32) {
    let icmp = hop.refused(device);
    let bytes = packet.bytes();
    let network = if packet.src.is_ipv4() {
        20 + packet.options.len()
    } else {
        40
    };
    let transport = if packet.protocol == Protocol::UDP {
        8
    } else {
        20
    };
    let mut link = [0; 12];
    link[..6].copy_from_slice(&packet.link[6..]);
    link[6..].copy_from_slice(&packet.link[..6]);
    let quote = bytes[14..14 + network + transport].to_vec();
    let rest = mtu.to_be_bytes();
    assert_eq!(
        icmp,
        Icmp {
            link,
            src: packet.dst.ip(),
            dst: packet.src.ip(),
            ttl: TTL,
            kind,
            code,
            rest,
            quote
        }
    );
}

/// Verdict table: without any usable endpoint, clients outside and pods see "connection refused".
fn service_without_backends_refuses<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new()
            .with_node_port(0, &[])
            .with_cluster_ip(0, &[]);
        let syn = opening::<F>(protocol, FROM, TO);
        refuses(&node.from_device(&syn), &syn, ETH);
        let syn = opening::<F>(protocol, (POD_A, 40000), (VIP, 80));
        refuses(&node.from_pod(VETH_A, &syn), &syn, VETH_A);
        assert_eq!(
            (node.flows(), node.tables.counted(Counter::Rejected)),
            ((0, 0), 2)
        );
    }
}

/// Verdict table: a known cluster IP without such a port or protocol.
fn unknown_port_of_a_cluster_ip_is_refused<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new().with_cluster_ip(0, &[pod::<F>(POD_A)]);
        let syn = opening::<F>(protocol, (POD_B, 40000), (VIP, 81));
        refuses(&node.from_pod(VETH_B, &syn), &syn, VETH_B);
    }
}

/// Verdict table: a nodePort with externalTrafficPolicy Local and remote backends only refuses at
/// once.
fn external_traffic_policy_local_refuses<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new()
            .with_node_port(ServiceFlags::LOCAL, &[pod::<F>(REMOTE)])
            .without_local_backends();
        let syn = opening::<F>(protocol, FROM, TO);
        refuses(&node.from_device(&syn), &syn, ETH);
        node.from_device(&packet::<F>(Protocol::TCP, FROM, TO).flags(ACK))
            .untouched();
    }
}

/// Packets to load balancers are dropped without an error: a retry may find a backend after a
/// roll-out.
fn load_balancers_may_wait_for_a_local_backend<F: Net>() {
    for protocol in PROTOCOLS {
        let flags = ServiceFlags::LOCAL | ServiceFlags::LOCAL_DROP;
        let node = Node::<F>::new()
            .with_node_port(flags, &[pod::<F>(REMOTE)])
            .without_local_backends();
        node.from_device(&opening::<F>(protocol, FROM, TO))
            .dropped(Reason::AwaitLocalBackend);
        let node = Node::<F>::new().with_node_port(flags, &[]);
        let syn = opening::<F>(protocol, FROM, TO);
        refuses(&node.from_device(&syn), &syn, ETH);
    }
}

/// V5, V7: policy Local chooses from the first slots only.
fn external_traffic_policy_local_uses_local_backends_only<F: Net>() {
    let mut node = Node::<F>::new().with_node_port(
        ServiceFlags::LOCAL,
        &[pod::<F>(POD_A), pod::<F>(REMOTE), pod::<F>(NODE2)],
    );
    node.tables
        .services
        .values_mut()
        .for_each(|service| service.local_len = 1);
    for port in 40000..40030 {
        node.from_device(&opening::<F>(Protocol::TCP, (CLIENT, port), TO))
            .goes(Action::Pod(VETH_A));
    }
    // The Cluster set without the local backend (V6, hints) is an interval that does not begin at
    // the first slot.
    node.tables.services.values_mut().for_each(|service| {
        (service.flags, service.cluster_first, service.cluster_len) =
            (ServiceFlags::NODE_PORT, 1, 2);
    });
    for port in 41000..41030 {
        node.from_device(&opening::<F>(Protocol::TCP, (CLIENT, port), TO))
            .goes(Action::Neighbour(ETH));
    }
}

/// V11: pods of this node reach all endpoints through its nodePorts, regardless of
/// externalTrafficPolicy.
fn pods_short_circuit_external_traffic_policy_local<F: Net>() {
    for protocol in PROTOCOLS {
        let flags = ServiceFlags::LOCAL | ServiceFlags::LOCAL_DROP;
        let node = Node::<F>::new()
            .with_node_port(flags, &[pod::<F>(REMOTE)])
            .without_local_backends();
        let syn = opening::<F>(protocol, (POD_A, 40000), TO);
        assert_eq!(
            node.from_pod(VETH_A, &syn).goes(Action::Neighbour(ETH)),
            syn.to(end::<F>((REMOTE, TARGET))).hop()
        );
    }
}

/// Verdict table: internalTrafficPolicy Local with remote endpoints only drops, for pods too.
fn internal_traffic_policy_local_drops<F: Net>() {
    for protocol in PROTOCOLS {
        let node = Node::<F>::new()
            .with_cluster_ip(ServiceFlags::LOCAL, &[pod::<F>(REMOTE)])
            .without_local_backends();
        node.from_pod(VETH_A, &opening::<F>(protocol, (POD_A, 40000), (VIP, 80)))
            .dropped(Reason::AwaitLocalBackend);
        node.from_device(&opening::<F>(protocol, FROM, (VIP, 80)))
            .dropped(Reason::AwaitLocalBackend);
    }
}

/// ICMP errors are rate-limited; packets beyond the limit are dropped and counted.
fn refusals_are_rate_limited<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[]);
    node.tables.refusals.set(2);
    let syn = opening::<F>(Protocol::TCP, FROM, TO);
    refuses(&node.from_device(&syn), &syn, ETH);
    refuses(&node.from_device(&syn), &syn, ETH);
    node.from_device(&syn).dropped(Reason::RejectRateLimited);
    assert_eq!(node.tables.counted(Counter::Rejected), 2);
}

/// The quote ends after the transport header.
fn options_and_long_packets_are_quoted_right<F: Net>() {
    // An INIT has 16 more bytes at least.
    let least = |protocol| if protocol == Protocol::SCTP { 16 } else { 0 };
    for (protocol, len) in PROTOCOLS
        .into_iter()
        .flat_map(|p| [0, 1, 7, 11, 12, 13, 600, 1400].map(|len| (p, len + least(p))))
    {
        let node = Node::<F>::new().with_node_port(0, &[]);
        let mut syn = opening::<F>(protocol, FROM, TO).payload(&vec![0xa5; len]);
        refuses(&node.from_device(&syn), &syn, ETH);
        if !F::V6 {
            syn.options = [[148, 4, 0, 0]; 3].concat();
            refuses(&node.from_device(&syn), &syn, ETH);
        }
    }
}

/// A frame that ends within the header to quote is dropped without an error.
fn truncated_transport_is_not_answered<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[]);
    let network = if F::V6 { 40 } else { 20 };
    for (protocol, parsed, whole) in [(Protocol::TCP, 18, 20), (Protocol::UDP, 8, 8)] {
        let bytes = opening::<F>(protocol, FROM, TO).bytes();
        let [_, hop, ..] = node.everywhere(&bytes[..14 + network + parsed - 1]);
        hop.dropped(Reason::Truncated);
        if whole > parsed {
            let [_, hop, ..] = node.everywhere(&bytes[..14 + network + whole - 1]);
            hop.dropped(Reason::RewriteFailed);
        }
        let node = Node::<F>::new().with_node_port(0, &[]);
        let [_, hop, ..] = node.everywhere(&bytes[..14 + network + whole]);
        assert_eq!(hop.said, Ok(Action::Transmit(ETH)));
    }
}

/// Redirects bypass the stack's check of the size, so the packet path checks it, before and after a
/// flow opens.
fn what_is_larger_than_the_device_takes_is_told_so_and_opens_nothing<F: Net>() {
    let too_big = if F::V6 { [2, 0] } else { [3, 4] };
    for protocol in PROTOCOLS {
        let mut node = Node::<F>::new().with_node_port(0, &[pod::<F>(REMOTE)]);
        node.tables.devices.get_mut(&ETH).expect("the device").mtu = 1280;
        node.tables.config.least_mtu = 1280;
        let headers = if F::V6 { 40 } else { 20 } + overhead(protocol);
        let sized =
            |bytes: usize| opening::<F>(protocol, FROM, TO).payload(&vec![7; bytes - headers]);
        answers(
            &node.from_device(&sized(1281)),
            &sized(1281),
            ETH,
            too_big,
            1280,
        );
        assert_eq!(
            (node.flows(), node.tables.answered(Reason::TooBig)),
            ((0, 0), 1)
        );
        node.from_device(&sized(1280)).goes(Action::Neighbour(ETH));
        answers(
            &node.from_device(&sized(1281)),
            &sized(1281),
            ETH,
            too_big,
            1280,
        );
        // A packet to a pod of this node fits, since a device has received it.
        let node = Node::<F> {
            tables: node.tables,
        }
        .with_node_port(0, &[pod::<F>(POD_A)]);
        let other = opening::<F>(protocol, (CLIENT, 40001), TO).payload(&[7; 1400]);
        node.from_device(&other).goes(Action::Pod(VETH_A));
    }
}

/// Redirects bypass the stack's TTL, so the packet path decrements it and sends an error at the
/// last hop; no flow opens.
fn the_last_hop_is_told_and_opens_nothing<F: Net>() {
    for (ttl, protocol) in [0, 1]
        .into_iter()
        .flat_map(|ttl| PROTOCOLS.map(|p| (ttl, p)))
    {
        for backend in [POD_A, REMOTE] {
            let node = Node::<F>::new().with_node_port(0, &[pod::<F>(backend)]);
            let syn = opening::<F>(protocol, FROM, TO).ttl(ttl);
            answers(
                &node.from_device(&syn),
                &syn,
                ETH,
                if F::V6 { [3, 0] } else { [11, 0] },
                0,
            );
            assert_eq!(
                (node.flows(), node.tables.answered(Reason::TtlExceeded)),
                ((0, 0), 1)
            );
        }
    }
}

/// Verdict table: ICMP errors are never sent to multicast, broadcast or unspecified addresses.
fn sources_that_are_no_host_are_not_answered<F: Net>() {
    let node = Node::<F>::new().with_node_port(0, &[]);
    let sources: &[&str] = if F::V6 {
        &["::", "::1", "ff02::1", "ffff::1"]
    } else {
        &[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
        ]
    };
    for source in sources {
        let source = SocketAddr::new(source.parse().expect("an address"), 9);
        node.from_device(&opening::<F>(Protocol::UDP, FROM, TO).from(source))
            .dropped(Reason::NotAnswerable);
    }
    assert_eq!(node.tables.counted(Counter::Rejected), 0);
}
