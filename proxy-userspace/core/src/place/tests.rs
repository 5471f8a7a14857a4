//! Random histories against a model of the kernel without ids; numbers and names.

mod history;
mod kernel;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_common::net::Protocol;
use proxy_common::service::Service;

use super::{Actual, Entry, Side, Write, place, place_delta, retire};
use crate::contents::{Backends, Contents, Delta, Endpoint, Frontend, Target};

use self::kernel::{Kernel, address};

/// A newer agent adopts the maps of one that wrote no endpoints.
#[test]
fn endpoints_that_were_never_written_are_added() {
    let mut kernel = Kernel::default();
    place(&one_service(&[1, 2]), &kernel.read())
        .iter()
        .for_each(|write| kernel.apply(write));
    kernel.endpoints.clear();
    place(&one_service(&[1, 2]), &kernel.read())
        .iter()
        .for_each(|write| kernel.apply(write));
    kernel.check();
}

fn one_service(hosts: &[u8]) -> Contents {
    let addr = |host| Endpoint {
        addr: SocketAddr::new(address(Side::V4, host), 80),
        flags: 1,
    };
    let backends = Arc::new(Backends {
        both: hosts.iter().copied().map(addr).collect(),
        ..Backends::default()
    });
    let target = |flags| Target {
        service: "ns/web:http".into(),
        flags,
        affinity: 0,
        backends: backends.clone(),
    };
    let frontend = |host, port| Frontend {
        addr: address(Side::V4, host),
        port,
        protocol: Protocol::TCP,
    };
    Contents {
        frontends: BTreeMap::from([
            (frontend(0, 30080), target(2)),
            (frontend(9, 80), target(1)),
        ]),
        ..Contents::default()
    }
}

#[test]
fn frontends_of_a_service_port_share_one_list_and_a_change_gets_a_list_of_its_own() {
    let mut actual = Actual::default();
    place(&one_service(&[1, 2]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let first: Vec<_> = actual.services().values().copied().collect();
    assert_eq!(
        (first[0].generation, first[0].id),
        (first[1].generation, first[1].id)
    );
    let (before, after) = (one_service(&[1, 2]), one_service(&[1, 2, 3]));
    let writes = place_delta(&Delta::between(&before, &after), &after, &actual);
    let slots = writes
        .iter()
        .filter(|w| matches!(w, Write::Put(Entry::Backend(..))))
        .count();
    let services = writes
        .iter()
        .filter(|w| matches!(w, Write::Put(Entry::Service(..))))
        .count();
    assert_eq!(
        (slots, services, writes.len()),
        (3, 2, 8),
        "three slots once, and how to find them, then both frontends: {writes:?}"
    );
    writes.into_iter().for_each(|write| actual.apply(write));
    assert!(
        actual
            .services()
            .values()
            .all(|s| s.generation != first[0].generation && s.id == first[0].id)
    );
    assert_eq!(
        retire(&actual).len(),
        4,
        "the two slots of the old list, and how they were found"
    );
}

#[test]
fn numbers_that_were_given_back_or_reserved_are_not_given_out_again() {
    let mut actual = Actual::default();
    actual.reserve_id(41);
    for hosts in [&[1][..], &[2], &[3]] {
        place(&one_service(hosts), &actual)
            .into_iter()
            .for_each(|write| actual.apply(write));
        retire(&actual)
            .into_iter()
            .for_each(|write| actual.apply(write));
    }
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (42, 3));
    place(&Contents::default(), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    retire(&actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    place(&one_service(&[3]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (43, 4));
}

#[test]
fn the_counters_go_round_at_the_end_and_skip_what_is_in_use() {
    let frontend = Frontend {
        addr: address(Side::V4, 7),
        port: 1,
        protocol: Protocol::UDP,
    };
    let low = Frontend {
        port: 2,
        ..frontend
    };
    let service = |id, generation| Service {
        id,
        generation,
        ..Service::default()
    };
    let mut actual: Actual = [
        Entry::Service(frontend, service(u32::MAX, u32::MAX)),
        Entry::Service(low, service(1, 1)),
    ]
    .into_iter()
    .collect();
    place(&one_service(&[1]), &actual)
        .into_iter()
        .for_each(|write| actual.apply(write));
    let service = *actual
        .services()
        .values()
        .next()
        .expect("there is a service");
    assert_eq!((service.id, service.generation), (2, 2));
}

#[test]
fn names_too_long_for_the_kernel_stay_apart() {
    let long = |end: &str| format!("{}{end}", "x".repeat(200));
    let (a, b) = (long("a"), long("b"));
    assert_ne!(super::label::label(&a), super::label::label(&b));
    assert!(super::label::label(&a).len() <= 188);
    assert_eq!(super::label::label("ns/web:http"), "ns/web:http");
}
