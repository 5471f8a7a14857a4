//! The life of a flow: it is found, opened, promoted when the backend answers, and ended.

mod claim;

use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, Hook, Role, State, Way};
use proxy_common::net::{Address, Family, Port};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Backend, Service};

use claim::{Closed, claim, claim_key};

use crate::parse::{Headers, Ip};
use crate::plan::Plan;
use crate::service;
use crate::{Insert, NotPromoted, Scratch, Table, Tables};

/// The result of a lookup.
pub enum Found {
    /// The packet has a flow that is rewritten at this hook.
    Ours,
    /// The packet has a flow that is rewritten at another hook.
    Elsewhere,
    /// The packet has a flow that is over (V17), in this table.
    Over(Table),
    /// The packet has no flow.
    None,
}

/// Finds the flow of a packet and copies it into `flow`: one lookup for an established flow, two
/// for a half-open one. Promotes and touches the flow as the packet demands.
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
        && is_over(tables, table, headers, flow, &mate, age)
    {
        return Found::Over(table);
    }
    // The client connects to the backend itself, from the port of an earlier connection to the
    // Service.
    if table == Table::Established
        && flow.is(Role::REPLY)
        && headers.accepts()
        && State::closed(flow.state)
    {
        return Found::Over(table);
    }
    match table {
        Table::Established => touch(tables, headers, flow, &mate, now),
        Table::Opening if flow.is(Role::REPLY) && !headers.reset() => {
            promote(tables, &headers.key, &mate, now)
        }
        // Replies do not pass this node: that the client goes on shows that the backend answered.
        Table::Opening if flow.way == Way::Dsr as u8 && confirms_answer(headers) => {
            promote(tables, &mate, &headers.key, now)
        }
        // A client that is never answered (syslog, metrics) keeps its backend while it sends.
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

/// Returns true if the client's packet shows that the backend answered: it is not the first one.
#[inline(always)]
fn confirms_answer<F: Ip>(headers: &Headers<F>) -> bool {
    !headers.key.protocol.has_handshake() || !headers.opens() && !headers.reset()
}

/// Removes the flow in the scratch from both tables.
#[inline(always)]
pub fn end<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) {
    scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
    forget(tables, Table::Opening, &scratch.headers.key, &scratch.reply);
    tables.remove_flow(Table::Established, &scratch.headers.key);
}

/// Removes both entries of a flow. The mate is removed only if it is this flow's: the LRU may have
/// evicted it, and another flow taken its key.
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

/// V17: returns true if a packet that may open a flow opens a new connection on the tuple of a flow
/// that is over, or that has lost its backend. A half-open flow is over, too, if the LRU evicted
/// its mate.
#[inline(always)]
fn is_over<F: Ip, T: Tables<F>>(
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
        // The backend's FIN does not pass this node.
        Table::Established if flow.way == Way::Dsr as u8 => {
            flow.state & (State::FIN_BOTH | State::RESET) != 0
        }
        Table::Established => State::closed(flow.state),
    };
    // The node that encapsulates has checked the backend.
    if flow.is(Role::ENCAPSULATED) {
        return over;
    }
    if over || flow.is(Role::UNTRANSLATED) {
        // A Service for the destination may have been created since.
        let asks = headers.key.protocol.has_handshake() || table == Table::Opening;
        return over || asks && !matches!(service::select(tables, &headers.key), Ok(None));
    }
    // UDP flows that lost their backend are ended by the agent, at once (V14).
    headers.key.protocol.has_handshake() && !service::still_leads_to(tables, &headers.key, flow)
}

/// Touches both entries of an established flow, at most once a second (V18), and records FIN and
/// RST in them.
#[inline(always)]
fn touch<F: Ip, T: Tables<F>>(
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
    // A closed flow is left alone: another flow may have taken its mate's port by now.
    let changed = !State::closed(flow.state) && state & !flow.state != 0;
    if changed || now.wrapping_sub(flow.seen) >= tables.config().unwrap_or_default().hz {
        tables.touch_flow(Table::Established, &headers.key, now, state);
        tables.touch_flow(Table::Established, mate, now, state);
    }
}

/// Moves both entries to the table of established flows, which no flood can evict: the backend has
/// answered. The reply's goes first, so that no established flow is without its reply's entry.
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
        // Two replies at once: the other packet has moved both entries.
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

/// Opens a flow: claims the reply's key, which makes the source port unique per backend (V12), then
/// inserts the forward entry.
///
/// The client's port is kept if the source is not masqueraded, and no other flow has the reply's
/// key.
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

/// Opens a flow for a connection that is not translated. If another flow has the reply's key, or
/// the table is full, the connection is not followed: each packet is judged by itself.
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

/// Opens the flow that masquerades after the stack, where the flow in the scratch ends: on the way
/// out the packet gets the scratch's address as source, and on the way in the reply loses it. If
/// that fails, both flows are removed.
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

/// Removes the inner flow of this key, whose outer flow is opened anew, and returns its port; 0 if
/// there is none.
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
