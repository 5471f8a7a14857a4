//! What happens to a packet: the entry functions, in the order in which a packet meets the rest of this library.
//!
//! Pure and `no_std`. The kernel reaches it through two traits, [`Packet`] and [`Tables`]; tests run the same functions over the host's [`fake`] of
//! both, and `portway explain` those that need only [`Verdicts`] over the maps of an agent.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod crc32c;
pub mod dsr;
pub mod exception;
pub mod flow;
pub mod parse;
pub mod plan;
pub mod policy;
pub mod process;
pub mod rewrite;
pub mod seams;
pub mod service;
pub mod socket;
pub mod stages;
pub mod xdp;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use proxy_common::flow::{Flow, Hook, Role, Way};
use proxy_common::net::{Address, IfIndex, Port};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Config, ServiceFlags};

use parse::Ip;
use parse::others::Other;
pub use seams::{
    Change, Insert, NotPromoted, Packet, Refused, Route, Table, Tables, Verdicts, Wire,
};
use service::Client;
use socket::Sockets;
use stages::InOneGo;
pub use stages::{Scratch, Stage, Stages, serve};
pub use xdp::xdp;

/// What becomes of a packet that is not dropped; a hook's one `match` makes it a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// None of ours, or not to be finished here: as it came, and programs after ours run.
    Untouched,
    /// Rewritten; goes on where it was going.
    Stack,
    /// Rewritten; into the pod behind this device.
    Pod(IfIndex),
    /// Rewritten; to the next hop of the route through this device.
    Neighbour(IfIndex),
    /// Rewritten with its link-layer header; leaves by this device as it is.
    Transmit(IfIndex),
    /// An answer to a packet that was leaving by this device: comes in by it.
    Return(IfIndex),
    /// Comes in by this device, whose programs meet it: into the gate, or by loopback out of it.
    Enter(IfIndex),
}

/// A packet that `device`, a node device or a tunnel, received: tc ingress.
pub fn from_device<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::FromDevice))
}

/// A packet that the pod behind `device` sent: tc ingress of the host side of its veth.
pub fn from_pod<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::FromPod))
}

/// A packet that the stack or a bridge sends to the pod behind `device`: tc egress of the host side of its veth.
pub fn to_pod<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    serve(&mut InOneGo::new(packet, tables, device, Hook::ToPod))
}

/// A packet that this host sends through a node device, or to itself: tc egress.
pub fn to_device<F: Ip, P: Packet, T: Sockets<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    let done = leave(packet, tables, device)?;
    if done != Action::Untouched {
        return Ok(done);
    }
    let mut scratch = Scratch::new();
    match exception::leave(packet, tables, &mut scratch) {
        Stage::SendError => exception::send_error(packet, tables, Hook::ToDevice, &scratch),
        Stage::SendException => exception::send(packet, tables, Hook::ToDevice, &scratch),
        _ => process::enter(packet, tables, &mut scratch),
    }
}

/// The same for whole segments, datagrams and SCTP packets: see [`exception::leave`].
#[inline(always)]
pub fn leave<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    _device: IfIndex,
) -> Result<Action, Reason> {
    restore(packet, tables, Hook::ToDevice)
}

/// Parse, find flow.
#[inline(always)]
pub fn find_flow<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    match parse::headers::<F, P, T>(packet, tables) {
        Ok(Some(headers)) => scratch.headers = headers,
        Ok(None) => return Stage::Exception,
        Err(reason) => return scratch.refuse(reason),
    }
    // What the stack sends to a pod asks for no Service.
    let unknown = if hook.is_egress() {
        Stage::Untranslated
    } else {
        Stage::Open
    };
    if hook == Hook::FromDevice && process::is_martian(scratch) {
        return Stage::Untouched;
    }
    match flow::find(tables, &scratch.headers, hook, &mut scratch.flow) {
        flow::Found::Ours if leads_on(scratch, hook) => {}
        flow::Found::Ours => {
            flow::end(tables, scratch);
            return unknown;
        }
        flow::Found::Elsewhere if hook == Hook::FromDevice => return Stage::Untouched,
        flow::Found::Elsewhere => {
            scratch.rewrite = 0;
            return Stage::Judge;
        }
        flow::Found::Over(table) => {
            scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
            flow::forget(tables, table, &scratch.headers.key, &scratch.reply);
            if table == Table::Opening {
                tables.count(Counter::Replaced);
            }
            return unknown;
        }
        flow::Found::None => {
            scratch.reply.dport = Port::default();
            return unknown;
        }
    }
    if scratch.flow.is(Role::UNTRANSLATED) {
        scratch.rewrite = 0;
        return Stage::Judge;
    }
    scratch.rewrite = 1;
    if hook.is_egress() {
        return Stage::Judge;
    }
    may_leave(
        packet,
        tables,
        scratch,
        way(&scratch.flow),
        scratch.flow.device,
    )
}

/// Whether the flow in the scratch leads where the packet is to go: another node may have chosen anew for what it sends here.
///
/// Its word for the port is believed of what opens a connection only: where a larger packet was cut, the pieces count it up (the
/// kernel's `inet_gso_segment`).
#[inline(always)]
fn leads_on<F: Ip>(scratch: &Scratch<F>, hook: Hook) -> bool {
    if hook != Hook::FromDevice || scratch.encapsulated == 0 {
        return true;
    }
    let Scratch { headers, flow, .. } = scratch;
    let begins = headers.key.protocol.has_handshake() && headers.opens();
    flow.dst == scratch.backend && (flow.dport == scratch.port || !begins)
}

/// For a packet without a flow: select service, choose backend, open flow.
#[inline(always)]
pub fn open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    match try_open(packet, tables, device, hook, scratch) {
        Ok(stage) => stage,
        Err(reason) => scratch.refuse(reason),
    }
}

#[inline(always)]
fn try_open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Result<Stage, Reason> {
    let encapsulated = hook == Hook::FromDevice && scratch.encapsulated != 0;
    // V21: a process of this host reaches what its pods reach. P18: pods let it in.
    let process = hook == Hook::FromDevice && scratch.by_gate != 0;
    let selected = match encapsulated {
        true => service::select_elsewhere(tables, &scratch.headers.key),
        false if process => service::select_here(tables, &scratch.headers.key)?,
        false => service::select(tables, &scratch.headers.key)?,
    };
    let Some(service) = selected else {
        return Ok(Stage::Untranslated);
    };
    // Where this node has lost a connection that another one knows, it goes on: its backend is known.
    if !scratch.headers.opens() && (!encapsulated || scratch.headers.reset()) {
        return service::not_opening(&service);
    }
    let config = tables.config().unwrap_or_default();
    scratch.own = u32::from(process && process::has_own_source(tables, &scratch.headers.key));
    let key = &scratch.headers.key;
    let backend = match encapsulated {
        true => service::named(tables, &service, &scratch.backend, scratch.port)?,
        // V13: all processes are one client, whatever address they ask from.
        false if process => {
            service::choose(tables, key, F::Addr::ZERO, &service, Client::Local, &config)?
        }
        false => service::choose(tables, key, key.src, &service, Client::at(hook), &config)?,
    };
    let plan = if process {
        plan::for_process(tables, device, key, &backend)
    } else if encapsulated {
        plan::for_encapsulated(tables, device, key, &backend, &config)
    } else {
        plan::plan(
            tables,
            device,
            key,
            &backend,
            hook,
            service.has(ServiceFlags::DSR),
            &config,
        )
    }?;
    let stage = may_leave(packet, tables, scratch, plan.way(), plan.device());
    if stage == Stage::Judge {
        flow::open(tables, scratch, &service, &backend, &plan, &config)?;
        scratch.rewrite = 1;
        scratch.fresh = 1;
        tables.opened(&scratch.headers.key, &scratch.flow);
        if plan.has_inner() {
            scratch.masquerade = plan.masquerade();
            return Ok(Stage::Inner);
        }
    }
    Ok(stage)
}

/// For a packet whose flow was just opened and leads through the stack to another node: the flow that masquerades it on its way out.
#[inline(always)]
pub fn inner<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    let config = tables.config().unwrap_or_default();
    match flow::open_inner(tables, scratch, &config) {
        Ok(()) => Stage::Judge,
        Err(reason) => scratch.refuse(reason),
    }
}

/// What the stack would check of a packet that we send on in its place: time to live, and the size that `device` takes. What this host's own processes
/// send may be as large as loopback takes, also to pods here, which kernels before 5.12 do not hand over: it goes in packets of the size that any device takes.
#[inline(always)]
fn may_leave<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
    way: Way,
    device: IfIndex,
) -> Stage {
    if !way.is_to_stack() && scratch.headers.ttl <= 1 {
        return scratch.refuse(Reason::TtlExceeded);
    }
    let more = match way {
        Way::Neighbour => 0,
        Way::Dsr => F::OVERHEAD,
        Way::Pod if scratch.by_gate != 0 => 0,
        Way::Stack | Way::Pod | Way::Gate => return Stage::Judge,
    };
    let least = tables.config().map_or(u32::MAX, |config| config.least_mtu);
    if scratch.headers.len + more <= least {
        return Stage::Judge;
    }
    scratch.mtu = if way == Way::Pod {
        least
    } else {
        tables
            .device(device)
            .map_or(u32::MAX, |device| device.mtu.saturating_sub(more))
    };
    if scratch.headers.largest(packet) <= scratch.mtu {
        Stage::Judge
    } else {
        scratch.refuse(Reason::TooBig)
    }
}

/// The last stage: rewrites a packet of the flow in the scratch and sends it the flow's way; what is on its way through the stack stays there.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let flow = &scratch.flow;
    let way = onward(tables, hook, flow);
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, &scratch.headers, flow)?;
    } else {
        rewrite::apply(packet, &scratch.headers, flow, way)?;
    }
    tables.count(Counter::Forwarded);
    go(packet, way, flow.device)
}

/// How packets of a flow go on from here: what is on its way through the stack stays there.
#[inline(always)]
fn onward<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, flow: &Flow<F::Addr>) -> Way {
    let way = way(flow);
    if !hook.is_egress() {
        return way;
    }
    if way != Way::Stack {
        tables.count(Counter::Fallback);
    }
    Way::Stack
}

/// Whether packets go on encapsulated: those of clients outside only.
#[inline(always)]
fn may_encapsulate(hook: Hook, way: Way) -> bool {
    hook == Hook::FromDevice && way == Way::Dsr
}

/// What is to become of a packet that was rewritten.
#[inline(always)]
fn go<P: Packet>(packet: &mut P, way: Way, device: IfIndex) -> Result<Action, Reason> {
    Ok(match way {
        Way::Stack => Action::Stack,
        Way::Pod => Action::Pod(device),
        Way::Neighbour | Way::Dsr => Action::Neighbour(device),
        Way::Gate => {
            process::address_link(packet, device)?;
            process::out(device)
        }
    })
}

/// The last stage of a packet that is not sent on: its sender is told, or it is dropped.
#[inline(always)]
pub fn stop<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Result<Action, Reason> {
    let reason = scratch.reason;
    let denied = matches!(reason, Reason::DeniedIngress | Reason::DeniedEgress);
    if denied {
        tables.denied(&policy::denied(scratch), reason);
    }
    // What is truncated has no headers that could be named.
    if reason != Reason::Truncated {
        tables.stopped(&scratch.headers.key, reason);
    }
    let exception = scratch.exception != 0
        && !(scratch.kind == Other::First as u32 && reason == Reason::TooBig);
    let silent = exception
        || denied
            && !tables
                .config()
                .unwrap_or_default()
                .has(Config::REJECT_DENIED);
    match reason.answer() {
        Some(answer) if !silent => {
            let back = match hook {
                Hook::ToPod | Hook::ToDevice => Action::Return(device),
                Hook::FromDevice if scratch.encapsulated != 0 => {
                    dsr::way_back(tables, device, scratch)
                }
                Hook::FromDevice if scratch.by_gate != 0 => {
                    process::way_back(tables, device, scratch)
                }
                Hook::FromDevice | Hook::FromPod => Action::Transmit(device),
            };
            let done = rewrite::answer(packet, tables, scratch, answer, back)?;
            if let Action::Enter(loopback) = done {
                process::address_link(packet, loopback)?;
            }
            Ok(done)
        }
        _ => Err(reason),
    }
}

/// A packet on its way out of the stack: only the flows that went through the stack have an entry for these hooks.
#[inline(always)]
fn restore<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else {
        return Ok(Action::Untouched);
    };
    let mut flow = Scratch::<F>::NO_FLOW;
    match flow::find(tables, &headers, hook, &mut flow) {
        flow::Found::Ours => {}
        flow::Found::Over(table) => {
            // Or the next packets of what has begun would be taken for its.
            flow::forget(
                tables,
                table,
                &headers.key,
                &flow.mate(headers.key.protocol),
            );
            return Ok(Action::Untouched);
        }
        flow::Found::Elsewhere | flow::Found::None => return Ok(Action::Untouched),
    }
    if way(&flow) != Way::Stack {
        tables.count(Counter::Fallback);
    }
    rewrite::apply(packet, &headers, &flow, Way::Stack)?;
    tables.count(Counter::Forwarded);
    Ok(Action::Stack)
}

#[inline(always)]
fn way<A: Address>(flow: &Flow<A>) -> Way {
    Way::from_number(flow.way)
}
