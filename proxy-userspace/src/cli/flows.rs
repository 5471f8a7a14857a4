//! `portway flows`: the connections in the kernel's tables, one line each: client, frontend,
//! backend.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use proxy_common::flow::{Flow, FlowKey, Role, State, Way};
use proxy_common::net::{Address, Port, Protocol};
use serde_json::{Value, json};

use super::print::{PinArgs, device_name, lines, print, table};
use crate::dataplane::{Clock, FlowTable, Maps, StateDir, hz};
use crate::flows::age;
use crate::place::Actual;

struct Flows(Vec<Line>);

struct Line {
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
    masquerade: Option<SocketAddr>,
    service: Option<Arc<str>>,
    way: String,
    state: &'static str,
    seconds: u32,
}

/// `portway flows`.
pub fn run(args: &PinArgs) -> Result<String> {
    print(args, read, text)
}

fn read(dir: &StateDir) -> Result<Flows> {
    let maps = Maps::from_pins(dir)?;
    let now = Now {
        jiffies: Clock::from_pins(dir)?.now()?,
        hz: hz()?,
        actual: maps.read()?,
    };
    let mut found = Vec::new();
    add(&mut found, &maps.v4.flows, &now)?;
    add(&mut found, &maps.v4.opening, &now)?;
    add(&mut found, &maps.v6.flows, &now)?;
    add(&mut found, &maps.v6.opening, &now)?;
    found.sort_by_key(|line| (line.frontend, line.client));
    Ok(Flows(found))
}

struct Now {
    jiffies: u32,
    hz: u32,
    actual: Actual,
}

fn add<A: Address>(found: &mut Vec<Line>, table: &impl FlowTable<A>, now: &Now) -> Result<()> {
    let flows = table.all()?;
    found.extend(
        flows
            .iter()
            .filter(|(_, flow)| flow.is(Role::FORWARD))
            .map(|(key, flow)| line(key, flow, now)),
    );
    Ok(())
}

fn line<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, now: &Now) -> Line {
    let at = |addr: A, port: Port| SocketAddr::new(addr.ip(), port.number());
    Line {
        protocol: key.protocol,
        client: at(key.src, key.sport),
        frontend: at(key.dst, key.dport),
        backend: at(flow.dst, flow.dport),
        masquerade: flow.is(Role::MASQUERADE).then(|| at(flow.src, flow.sport)),
        service: now.actual.name(flow.service).cloned(),
        way: match Way::from_number(flow.way) {
            Way::Stack => "stack".into(),
            Way::Pod => format!("pod {}", device_name(flow.device)),
            Way::Neighbour => format!("via {}", device_name(flow.device)),
            Way::Dsr => format!("encapsulated via {}", device_name(flow.device)),
            Way::Gate => format!("process by {}", device_name(flow.device)),
        },
        state: state(flow.state),
        seconds: age(now.jiffies, flow.seen) / now.hz.max(1),
    }
}

fn state(state: u8) -> &'static str {
    match state {
        _ if State::closed(state) => "closed",
        _ if state & State::FIN_BOTH != 0 => "closing",
        _ if state & State::REPLIED != 0 => "established",
        _ => "half-open",
    }
}

fn text(flows: &Flows) -> String {
    let mut table = table(&[
        "PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "AS", "SERVICE", "WAY", "STATE", "IDLE",
    ]);
    for line in &flows.0 {
        table.add_row([
            line.protocol.name().into(),
            line.client.to_string(),
            line.frontend.to_string(),
            line.backend.to_string(),
            line.masquerade.map_or("-".into(), |addr| addr.to_string()),
            line.service.as_deref().unwrap_or("<gone>").into(),
            line.way.clone(),
            line.state.into(),
            format!("{}s", line.seconds),
        ]);
    }
    lines(&table)
}

impl From<&Flows> for Value {
    fn from(flows: &Flows) -> Self {
        let flow = |line: &Line| {
            json!({
                "protocol": line.protocol.name(),
                "client": line.client.to_string(),
                "frontend": line.frontend.to_string(),
                "backend": line.backend.to_string(),
                "masquerade": line.masquerade.map(|addr| addr.to_string()),
                "service": line.service.as_deref(),
                "way": line.way,
                "state": line.state,
                "idleSeconds": line.seconds,
            })
        };
        flows.0.iter().map(flow).collect::<Vec<_>>().into()
    }
}
