//! UDP flows that end after a change of their Service (V14).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use portway::compile::compile;
use portway::contents::Frontend;
use portway::flows::SweepRules;
use portway::model::{Snapshot, Timeouts};
use portway::place::{Actual, place};
use portway::serving::Serving;
use portway::sync::serving_endpoints;
use proxy_common::flow::{Flow, Role, State};
use proxy_common::net::{Addr4, Addr6, Address, IfIndex, Port, Protocol};

use crate::cases::{Fate, UdpCase, UdpFile, UdpFlow};
use crate::cluster;
use crate::packet::protocol;
use crate::report::{Tally, Weight};
use crate::rules::Rule;

/// Checks a file.
pub fn check(file: &UdpFile, tally: &mut Tally) -> Result<()> {
    file.cases
        .iter()
        .try_for_each(|case| check_case(case, tally))
}

fn check_case(case: &UdpCase, tally: &mut Tally) -> Result<()> {
    let mut snapshot = Snapshot {
        state: cluster::of(&case.objects)?,
        ..Snapshot::default()
    };
    snapshot.settings.node_name = case.config.node_name.as_str().into();
    let mut actual = Actual::default();
    place(&compile(&snapshot), &actual.clone())
        .into_iter()
        .for_each(|write| actual.apply(write));
    let by_id = |(name, endpoints): (Arc<str>, BTreeSet<SocketAddr>)| {
        Some((actual.id_of(&name)?, endpoints))
    };
    let endpoints: BTreeMap<_, _> = serving_endpoints(&snapshot.state)
        .into_iter()
        .filter_map(by_id)
        .collect();
    let serving = Arc::new(Serving {
        endpoints,
        unknown_from: actual.next_id(),
    });
    let rules = SweepRules {
        timeouts: Timeouts::default(),
        hz: 1000,
        serving: Some(serving.clone()),
        dsr: SweepRules::DSR,
    };
    for flow in &case.flows {
        let protocol = protocol(&flow.protocol)?;
        let service = service_of(flow, protocol, &actual);
        let mut owed = flow.expect;
        let forsaken = serving
            .endpoints
            .get(&service)
            .is_some_and(|endpoints| endpoints.is_empty());
        if owed == Fate::Keep && protocol == Protocol::UDP && forsaken {
            owed = Fate::Delete;
            tally.otherwise(Rule::UdpEndsWithBackend);
        }
        tally.compare(
            &format!("{}: {flow:?}", case.name),
            Weight::Binding,
            &owed,
            &judge(&rules, protocol, flow, service),
        );
    }
    Ok(())
}

/// Returns the id of the service port that opened a flow to this destination, or 0.
fn service_of(flow: &UdpFlow, protocol: Protocol, actual: &Actual) -> u32 {
    let every: IpAddr = if flow.reply_src.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let frontend = Frontend {
        addr: flow.orig_dst.unwrap_or(every),
        port: flow.orig_dst_port,
        protocol,
    };
    actual
        .services()
        .get(&frontend)
        .map_or(0, |service| service.id)
}

/// Returns the sweep's decision on the flow just after a packet.
fn judge(rules: &SweepRules, protocol: Protocol, flow: &UdpFlow, service: u32) -> Fate {
    let backend = SocketAddr::new(
        flow.reply_src,
        flow.reply_src_port.unwrap_or(flow.orig_dst_port),
    );
    let ended = match backend.ip() {
        IpAddr::V4(ip) => rules.judge(
            protocol,
            &entry(Addr4::from(ip), backend.port(), service),
            0,
        ),
        IpAddr::V6(ip) => rules.judge(
            protocol,
            &entry(Addr6::from(ip), backend.port(), service),
            0,
        ),
    };
    if ended.is_some() {
        Fate::Delete
    } else {
        Fate::Keep
    }
}

/// The forward entry of an answered flow.
fn entry<A: Address>(dst: A, port: u16, service: u32) -> Flow<A> {
    Flow {
        src: A::ZERO,
        dst,
        sport: Port::new(40000),
        dport: Port::new(port),
        device: IfIndex(1),
        seen: 0,
        service,
        way: 0,
        hooks: 1,
        state: State::REPLIED,
        role: Role::FORWARD,
    }
}
