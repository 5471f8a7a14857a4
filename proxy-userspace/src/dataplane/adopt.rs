//! Connections that were there before the programs: their entries in the flow tables (P25).

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapError;
use proxy_common::flow::{Flow, FlowKey, Hook, Role, State, Way};
use proxy_common::net::{Addr4, Addr6, Address, IfIndex, Port};

use super::maps::{FamilyMaps, Hash, Maps};
use crate::tracked::Tracked;

/// `BPF_NOEXIST`: an existing flow is newer.
const NEW: u64 = 1;
/// The hooks that meet packets of an adopted connection. Portway does not translate it; its
/// translator goes on to.
const HOOKS: u8 = Hook::FromDevice as u8 | Hook::FromPod as u8 | Hook::ToPod as u8;

/// Inserts the flow of a connection, unless there is one; returns true if it did. `own`: this host
/// itself began the connection.
///
/// # Errors
/// If the tables have no room.
pub fn adopt(maps: &mut Maps, tracked: &Tracked, own: bool, now: u32) -> Result<bool> {
    match (
        tracked.original.0.ip(),
        tracked.original.1.ip(),
        tracked.reply.0.ip(),
        tracked.reply.1.ip(),
    ) {
        (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V4(c), IpAddr::V4(d)) => insert(
            &mut maps.v4,
            tracked,
            [a, b, c, d].map(Addr4::from),
            own,
            now,
        ),
        (IpAddr::V6(a), IpAddr::V6(b), IpAddr::V6(c), IpAddr::V6(d)) => insert(
            &mut maps.v6,
            tracked,
            [a, b, c, d].map(Addr6::from),
            own,
            now,
        ),
        _ => Ok(false),
    }
}

/// Inserts both directions; first the reply's, as the programs do.
fn insert<A: Address>(
    maps: &mut FamilyMaps<A>,
    tracked: &Tracked,
    ends: [A; 4],
    own: bool,
    now: u32,
) -> Result<bool>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let table = if tracked.answered {
        &mut maps.flows
    } else {
        &mut maps.opening
    };
    let [(reply, back), (forward, there)] = entries(tracked, ends, own, now);
    Ok(put(table, reply, back)? && put(table, forward, there)?)
}

fn put<A: Address>(
    table: &mut Hash<FlowKey<A>, Flow<A>>,
    key: FlowKey<A>,
    flow: Flow<A>,
) -> Result<bool>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    match table.insert(key, flow, NEW) {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).context("record a connection that was there before"),
    }
}

/// Returns the reply's entry, then the client's: each direction as its packets arrive here, with
/// the addresses that the translator of this host gives them.
fn entries<A: Address>(
    tracked: &Tracked,
    ends: [A; 4],
    own: bool,
    now: u32,
) -> [(FlowKey<A>, Flow<A>); 2] {
    let Tracked {
        protocol,
        original,
        reply,
        answered,
    } = tracked;
    let [client, asked, server, answers] = ends;
    let port = |end: &std::net::SocketAddr| Port::new(end.port());
    let role = Role::UNTRANSLATED | if own { Role::OWN_NODE } else { 0 };
    let there = Flow {
        src: answers,
        dst: server,
        sport: port(&reply.1),
        dport: port(&reply.0),
        device: IfIndex::NONE,
        seen: now,
        service: 0,
        way: Way::Stack as u8,
        hooks: HOOKS,
        state: if *answered { State::REPLIED } else { 0 },
        role: role | Role::FORWARD,
    };
    let back = Flow {
        src: asked,
        dst: client,
        sport: port(&original.1),
        dport: port(&original.0),
        role: role | Role::REPLY,
        ..there
    };
    [
        (
            FlowKey::new(*protocol, server, port(&reply.0), answers, port(&reply.1)),
            back,
        ),
        (
            FlowKey::new(
                *protocol,
                client,
                port(&original.0),
                asked,
                port(&original.1),
            ),
            there,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use proxy_common::net::Protocol;

    use super::*;

    #[test]
    fn p25_both_entries_name_each_other() {
        let end = |text: &str| text.parse().expect("an end");
        let tracked = Tracked {
            protocol: Protocol::TCP,
            original: (end("198.51.100.7:40000"), end("192.0.2.1:30080")),
            reply: (end("10.244.1.2:8080"), end("192.0.2.1:50000")),
            answered: true,
        };
        let ends = [
            [198, 51, 100, 7],
            [192, 0, 2, 1],
            [10, 244, 1, 2],
            [192, 0, 2, 1],
        ]
        .map(Addr4::from_bytes);
        let [(reply, back), (forward, there)] = entries(&tracked, ends, false, 7);
        assert_eq!(
            (there.mate(Protocol::TCP), back.mate(Protocol::TCP)),
            (reply, forward)
        );
        assert_eq!(
            (forward.src, forward.dport, there.dst, there.dport),
            (ends[0], Port::new(30080), ends[2], Port::new(8080))
        );
        assert_eq!(
            (there.role, back.role, there.state),
            (
                Role::UNTRANSLATED | Role::FORWARD,
                Role::UNTRANSLATED | Role::REPLY,
                State::REPLIED
            )
        );
    }
}
