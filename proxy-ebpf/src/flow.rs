//! The life of a connection: found, opened, promoted when the backend answers, ended.

use proxy_common::checksum::hash3;
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, Hook, Role, State, Way};
use proxy_common::net::{Address, Family, Port};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, Service};

use crate::parse::{Headers, Ip};
use crate::plan::Plan;
use crate::service;
use crate::{Insert, NotPromoted, Refused, Scratch, Table, Tables};

/// How many of the tries go on from the last port that was given to a connection with the same backend.
const IN_TURN: u32 = 8;

/// How many source ports are tried before a new flow is given up: with 25,000 of 28,976 in use, one in 10^8 finds none (V12).
const PORT_ATTEMPTS: u32 = 128;

/// What the flow tables say of a packet.
pub enum Found {
    /// A flow that is rewritten at this hook.
    Ours,
    /// A flow that is rewritten at another hook: hands off.
    Elsewhere,
    /// One that is over (V17), in this table.
    Over(Table),
    /// None.
    None,
}

/// Looks a packet up and leaves its flow in `flow`: one lookup for an established flow, a second one while it is half-open.
#[inline(always)]
pub fn find<F: Ip, T: Tables<F>>(
    tables: &T,
    headers: &Headers<F>,
    hook: Hook,
    flow: &mut Flow<F::Addr>,
) -> Found {
    let Some(table) = tables.copy_flow(&headers.key, flow) else {
        return Found::None;
    };
    if flow.hooks & hook as u8 == 0 {
        return Found::Elsewhere;
    }
    let mate = flow.mate(headers.key.protocol);
    let now = tables.now();
    let age = now.wrapping_sub(flow.seen);
    if flow.is(Role::FORWARD)
        && !flow.is(Role::INNER)
        && headers.opens()
        && over(tables, table, headers, flow, &mate, age)
    {
        return Found::Over(table);
    }
    // The client has connected to the backend itself, from the port that it asked the Service from before.
    if table == Table::Established
        && flow.is(Role::REPLY)
        && headers.accepts()
        && State::closed(flow.state)
    {
        return Found::Over(table);
    }
    match table {
        Table::Established => note(tables, headers, flow, &mate, now),
        Table::Opening if flow.is(Role::REPLY) && !headers.reset() => {
            promote(tables, &headers.key, &mate, now)
        }
        // The backend answers past this node: that the client goes on tells of it.
        Table::Opening if flow.way == Way::Dsr as u8 && goes_on(headers) => {
            promote(tables, &mate, &headers.key, now)
        }
        // A client that is never answered (syslog, metrics) keeps its backend for as long as it goes on.
        Table::Opening
            if !headers.key.protocol.has_handshake()
                && age >= tables.config().unwrap_or_default().hz =>
        {
            tables.touch_flow(Table::Opening, &headers.key, now, 0);
            tables.touch_flow(Table::Opening, &mate, now, 0);
        }
        Table::Opening => {}
    }
    Found::Ours
}

/// Whether a packet of a flow that is open already is its client's second word.
#[inline(always)]
fn goes_on<F: Ip>(headers: &Headers<F>) -> bool {
    !headers.key.protocol.has_handshake() || !headers.opens() && !headers.reset()
}

/// Ends the flow in the scratch, whichever table has it.
#[inline(always)]
pub fn end<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) {
    scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
    forget(tables, Table::Opening, &scratch.headers.key, &scratch.reply);
    tables.remove_flow(Table::Established, &scratch.headers.key);
}

/// Removes both entries of a flow: the other one only if it is this flow's, for the LRU may have evicted it and another taken its key.
#[inline(always)]
pub fn forget<F: Family, T: Tables<F>>(
    tables: &T,
    table: Table,
    key: &FlowKey<F::Addr>,
    mate: &FlowKey<F::Addr>,
) {
    tables.remove_flow(table, key);
    if let Some(there) = tables.table_of_mate(key, mate) {
        tables.remove_flow(there, mate);
    }
}

/// V17: whether a packet that may open a flow begins a new connection on the tuple of one that is over, or whose backend has left. A
/// half-open one is over too where the LRU has evicted its other half.
#[inline(always)]
fn over<F: Ip, T: Tables<F>>(
    tables: &T,
    table: Table,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
    mate: &FlowKey<F::Addr>,
    age: u32,
) -> bool {
    let config = tables.config().unwrap_or_default();
    let over = match table {
        Table::Opening => {
            age > config.opening_timeout.wrapping_mul(config.hz)
                || tables.table_of_mate(&headers.key, mate).is_none()
        }
        Table::Established if !headers.key.protocol.has_handshake() => {
            age > config.udp_timeout.wrapping_mul(config.hz)
        }
        // Of a backend that answers past this node the end is never seen.
        Table::Established if flow.way == Way::Dsr as u8 => {
            flow.state & (State::FIN_BOTH | State::RESET) != 0
        }
        Table::Established => State::closed(flow.state),
    };
    // What other nodes send here they have looked after themselves.
    if flow.is(Role::ENCAPSULATED) {
        return over;
    }
    if over || flow.is(Role::UNTRANSLATED) {
        // A Service may have come since, whose clients ask again.
        let asks = headers.key.protocol.has_handshake() || table == Table::Opening;
        return over || asks && !matches!(service::select(tables, &headers.key), Ok(None));
    }
    // UDP flows whose backend has left are ended by the agent, at once (V14).
    headers.key.protocol.has_handshake() && !service::still_leads_to(tables, &headers.key, flow)
}

/// Keeps both entries of an established flow alive (V18), at most once a second, and records FIN and RST in them.
#[inline(always)]
fn note<F: Ip, T: Tables<F>>(
    tables: &T,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
    mate: &FlowKey<F::Addr>,
    now: u32,
) {
    let mut state = 0;
    if headers.reset() {
        state |= State::RESET;
    }
    if headers.fin() || flow.way == Way::Dsr as u8 && headers.closes() {
        state |= if flow.is(Role::FORWARD) {
            State::FIN_FORWARD
        } else {
            State::FIN_REPLY
        };
    }
    // A closed flow has no news: its other half may be another's by now, who needed its port.
    let news = !State::closed(flow.state) && state & !flow.state != 0;
    if news || now.wrapping_sub(flow.seen) >= tables.config().unwrap_or_default().hz {
        tables.touch_flow(Table::Established, &headers.key, now, state);
        tables.touch_flow(Table::Established, mate, now, state);
    }
}

/// The backend has answered: both entries move to the table that no flood can evict. The reply's goes first, so that no forward
/// packet finds an established flow whose replies nobody knows.
#[inline(always)]
fn promote<F: Family, T: Tables<F>>(
    tables: &T,
    reply: &FlowKey<F::Addr>,
    forward: &FlowKey<F::Addr>,
    now: u32,
) {
    let both = tables
        .promote_flow(reply, now, State::REPLIED)
        .and_then(|()| tables.promote_flow(forward, now, State::REPLIED));
    if let Err(why) = both {
        // Two answers at once: the other one has moved both, and only then was this one's gone.
        if why == NotPromoted::Gone && tables.state(forward).is_some() {
            return;
        }
        tables.remove_flow(Table::Established, reply);
        if why == NotPromoted::Full {
            tables.count(Counter::TableFull);
        }
        return;
    }
    tables.remove_flow(Table::Opening, reply);
    tables.remove_flow(Table::Opening, forward);
    tables.count(Counter::Established);
}

/// Opens a flow: claims the reply's key, which makes the source port unique per backend (V12), then records the forward direction.
///
/// The client's own port is kept where the source is not masqueraded and no other connection has the same reply.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F>,
    service: &Service,
    backend: &Backend<F::Addr>,
    plan: &Plan<F::Addr>,
    config: &Config,
) -> Result<(), Reason> {
    let masquerades = !plan.later && plan.masquerade != F::Addr::ZERO;
    let role = if masquerades { Role::MASQUERADE } else { 0 }
        | if scratch.own != 0 { Role::OWN_NODE } else { 0 }
        | if scratch.encapsulated != 0 {
            Role::ENCAPSULATED
        } else {
            0
        };
    let Scratch {
        headers,
        flow,
        reply,
        ..
    } = scratch;
    let key = &headers.key;
    let src = if masquerades {
        plan.masquerade
    } else {
        key.src
    };
    let same_ends = reply.src == backend.addr && reply.sport == backend.port && reply.dst == src;
    let before = if same_ends {
        reply.dport
    } else {
        Port::default()
    };
    *reply = FlowKey::new(key.protocol, backend.addr, backend.port, src, key.sport);
    *flow = Flow {
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        device: plan.reply.device,
        seen: tables.now(),
        service: service.id,
        way: plan.reply.way as u8,
        hooks: plan.reply.hooks,
        state: 0,
        role: role | Role::REPLY,
    };
    claim(tables, reply, flow, key, before, config)?;
    flow.src = src;
    flow.dst = backend.addr;
    flow.sport = reply.dport;
    flow.dport = backend.port;
    flow.device = plan.forward.device;
    flow.way = plan.forward.way as u8;
    flow.hooks = plan.forward.hooks;
    flow.role = role | Role::FORWARD;
    tables
        .insert_flow(Table::Opening, key, flow, Insert::Any)
        .map_err(|_| Reason::FlowTableFull)?;
    tables.count(Counter::Opened);
    Ok(())
}

/// Follows a connection that is not translated. Where its reply's key is another's, or the table full, it goes unfollowed: its packets are
/// judged each by itself.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) {
    let Scratch {
        headers,
        flow,
        reply,
        ..
    } = scratch;
    let key = &headers.key;
    *reply = key.reversed();
    let forward = flow.role;
    flow.seen = tables.now();
    flow.role = forward & !Role::FORWARD | Role::REPLY;
    (flow.src, flow.dst, flow.sport, flow.dport) = (key.dst, key.src, key.dport, key.sport);
    if !claim_key(tables, reply, flow, Closed::Replace) {
        return;
    }
    (flow.src, flow.dst, flow.sport, flow.dport) = (key.src, key.dst, key.sport, key.dport);
    flow.role = forward;
    if tables
        .insert_flow(Table::Opening, key, flow, Insert::Any)
        .is_ok()
    {
        tables.count(Counter::Opened);
        tables.count(Counter::Followed);
    }
}

/// Opens the flow that begins where the one in the scratch ends, which leads through the stack: on its way out the packet gets the address
/// in the scratch as its source, and the reply loses it on its way in. If that cannot be, both are forgotten.
#[inline(always)]
pub fn open_inner<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F>,
    config: &Config,
) -> Result<(), Reason> {
    let Scratch {
        headers,
        flow: outer,
        reply,
        masquerade,
        ..
    } = scratch;
    let protocol = headers.key.protocol;
    let key = FlowKey::new(protocol, outer.src, outer.sport, outer.dst, outer.dport);
    let before = outgoing_port(tables, &key);
    *reply = FlowKey::new(protocol, outer.dst, outer.dport, *masquerade, before);
    let mut flow = Flow {
        src: outer.dst,
        dst: outer.src,
        sport: outer.dport,
        dport: outer.sport,
        hooks: Hook::FromDevice as u8,
        role: Role::MASQUERADE | Role::INNER | Role::REPLY,
        ..*outer
    };
    if let Err(why) = claim(tables, reply, &flow, &key, before, config) {
        tables.remove_flow(Table::Opening, &headers.key);
        tables.remove_flow(Table::Opening, &outer.mate(protocol));
        return Err(why);
    }
    flow.src = *masquerade;
    flow.dst = outer.dst;
    flow.sport = reply.dport;
    flow.dport = outer.dport;
    flow.hooks = Hook::ToDevice as u8;
    flow.role = Role::MASQUERADE | Role::INNER | Role::FORWARD;
    tables
        .insert_flow(Table::Opening, &key, &flow, Insert::Any)
        .map_err(|_| Reason::FlowTableFull)?;
    tables.count(Counter::Opened);
    Ok(())
}

/// The port that an inner flow of this key had until now: it is over, since the one before it is opened anew. 0 if there was none.
#[inline(always)]
fn outgoing_port<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>) -> Port {
    match tables.flow(key) {
        Some((table, flow)) if flow.is(Role::INNER) => {
            forget(tables, table, key, &flow.mate(key.protocol));
            flow.sport
        }
        _ => Port::default(),
    }
}

/// Takes a key for the reply that no connection has: with the client's own port where the source is kept, else with one of the
/// masquerade range.
///
/// Its ports are given out in turn, from a keyed start for each backend (RFC 6056, 3.3.4): a backend that closed a connection keeps its
/// port in TIME_WAIT for a minute, and would not answer the SYN of another. It does answer the same client's next one on the same tuple, whose
/// timestamps go on, so that keeps its port. Where most are taken, at random, also those of closed connections.
#[inline(always)]
fn claim<F: Family, T: Tables<F>>(
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
            // The next in turn has rested longest: where all still rest, it is taken before any other.
            let closed = if attempt < IN_TURN / 2 {
                Closed::Keep
            } else {
                Closed::Replace
            };
            (port_in_turn(config, start, tables.turn(start)), closed)
        } else {
            // Multiplied, not stepped: two that meet at one port must part again, or the taken ports grow together (Numerical Recipes' generator).
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

/// Takes the reply's key back where it was the same connection's, whose other half the LRU has evicted.
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
        _ => false,
    }
}

/// The port of the masquerade range that is `turn` after the start.
#[inline(always)]
fn port_in_turn(config: &Config, start: u32, turn: u32) -> Port {
    let step = start.wrapping_add(turn) % u32::from(config.masquerade_len);
    Port::new(config.masquerade_first.wrapping_add(step as u16))
}

/// A port of the masquerade range, chosen by a random number.
#[inline(always)]
fn port_by(config: &Config, random: u32) -> Port {
    let step = (u64::from(random) * u64::from(config.masquerade_len)) >> 32;
    Port::new(config.masquerade_first.wrapping_add(step as u16))
}

/// Takes a reply's key if neither table has it. `Opening` comes first: promotion inserts into `Established` before it removes from
/// `Opening`, so a key that moves meanwhile is seen in one of them.
#[inline(always)]
fn claim_key<F: Family, T: Tables<F>>(
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
    // The forward half of a replaced connection stays until it is swept, or its client comes again: it is closed, and leads nowhere else.
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

/// What a connection that both ends have closed is to one that needs a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// As good as any other.
    Keep,
    /// Nothing.
    Replace,
}
