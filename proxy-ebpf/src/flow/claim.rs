//! The claim of a reply's key, which makes a masquerade port unique per backend (V12).

use proxy_common::checksum::hash3;
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, Role, State};
use proxy_common::net::{Address as _, Family, Port};
use proxy_common::reason::{Counter, Reason};

use crate::{Insert, Refused, Table, Tables};

/// Number of attempts with the next port in turn of the same backend.
const IN_TURN: u32 = 8;

/// Number of attempts in all: with 25,000 of 28,976 ports in use, one flow in 10^8 finds none
/// (V12).
const PORT_ATTEMPTS: u32 = 128;

/// Claims a free key for the reply: with the client's port if the source is kept, else with a port
/// of the masquerade range.
///
/// The range's ports are used in turn, from a keyed start for each backend (RFC 6056, 3.3.4): a
/// backend that closed a connection keeps its port in TIME_WAIT for a minute, and would not answer
/// another's SYN. It answers the same client's next SYN on the same tuple, with later timestamps,
/// so that client keeps its port. If most ports are taken, ports are tried at random, also those of
/// closed connections.
#[inline(always)]
pub(super) fn claim<F: Family, T: Tables<F>>(
    tables: &T,
    key: &mut FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    forward: &FlowKey<F::Addr>,
    before: Port,
    config: &Config,
) -> Result<(), Reason> {
    if !flow.is(Role::MASQUERADE)
        && (claim_key(tables, key, flow, Closed::Keep) || claim_own(tables, key, flow, forward))
    {
        return Ok(());
    }
    if config.masquerade_len == 0 {
        return Err(Reason::NoMasqueradePort);
    }
    if before.number().wrapping_sub(config.masquerade_first) < config.masquerade_len {
        key.dport = before;
        if claim_key(tables, key, flow, Closed::Keep) {
            return Ok(());
        }
    }
    let start = hash3(
        key.src.fold(),
        key.sport.word(),
        u32::from(key.protocol.0),
        config.secret,
    );
    let mut random = tables.random();
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        let closed;
        (key.dport, closed) = if attempt < IN_TURN {
            // The next in turn has been closed longest: it is replaced before any other.
            let closed = if attempt < IN_TURN / 2 {
                Closed::Keep
            } else {
                Closed::Replace
            };
            (port_in_turn(config, start, tables.turn(start)), closed)
        } else {
            // Multiplied, not incremented: two flows that meet at one port must part again, or
            // taken ports cluster (the generator of Numerical Recipes).
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (port_by(config, random), Closed::Replace)
        };
        if claim_key(tables, key, flow, closed) {
            return Ok(());
        }
        attempt += 1;
    }
    Err(Reason::NoMasqueradePort)
}

/// Claims the reply's key back if it belongs to the same connection, and the LRU evicted its mate.
#[inline(always)]
fn claim_own<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    forward: &FlowKey<F::Addr>,
) -> bool {
    match tables.flow(key) {
        Some((Table::Opening, there))
            if there.is(Role::REPLY) && there.mate(forward.protocol) == *forward =>
        {
            tables
                .insert_flow(Table::Opening, key, flow, Insert::Any)
                .is_ok()
        }
        Some(_) | None => false,
    }
}

/// Returns the port of the masquerade range that is `turn` steps after the start.
#[inline(always)]
fn port_in_turn(config: &Config, start: u32, turn: u32) -> Port {
    let step = start.wrapping_add(turn) % u32::from(config.masquerade_len);
    Port::new(config.masquerade_first.wrapping_add(step as u16))
}

/// Returns a port of the masquerade range by a random number.
#[inline(always)]
fn port_by(config: &Config, random: u32) -> Port {
    let step = (u64::from(random) * u64::from(config.masquerade_len)) >> 32;
    Port::new(config.masquerade_first.wrapping_add(step as u16))
}

/// Claims a reply's key if neither table has it. `Opening` comes first: promotion inserts into
/// `Established` before it removes from `Opening`, so a key that moves meanwhile is in one of them.
#[inline(always)]
pub(super) fn claim_key<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    reply: &Flow<F::Addr>,
    closed: Closed,
) -> bool {
    match tables.insert_flow(Table::Opening, key, reply, Insert::New) {
        Ok(()) => {}
        Err(Refused::Exists | Refused::Full) => return false,
    }
    let Some(state) = tables.state(key) else {
        return true;
    };
    let replace = closed == Closed::Replace && key.protocol.has_handshake() && State::closed(state);
    // The forward entry of the replaced flow stays until the sweep, or the client's next SYN: it is
    // closed.
    tables.remove_flow(
        if replace {
            Table::Established
        } else {
            Table::Opening
        },
        key,
    );
    if replace {
        tables.count(Counter::ClosedReplaced);
    }
    replace
}

/// The treatment of a port of a closed connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// Leave it.
    Keep,
    /// Take it.
    Replace,
}
