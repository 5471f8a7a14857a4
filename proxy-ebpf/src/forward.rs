//! From a packet to its flow, and on the flow's way.

use proxy_common::flow::{Flow, Hook, Role, Way};
use proxy_common::net::{Address, IfIndex, Port};
use proxy_common::reason::{Counter, Reason};

use crate::parse::{self, Ip};
use crate::{Packet, Scratch, Stage, Table, Tables, dsr, flow, process, rewrite};

/// The fate of a packet that is not dropped; one `match` of the hook turns it into a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Passes as it came, and programs after ours run.
    Untouched,
    /// Rewritten; goes on where it was going.
    Stack,
    /// Rewritten; goes into the pod behind this device.
    Pod(IfIndex),
    /// Rewritten; goes to the next hop of the route through this device.
    Neighbour(IfIndex),
    /// Rewritten with its link-layer header; leaves by this device as it is.
    Transmit(IfIndex),
    /// An answer to a packet that was leaving by this device; arrives from it.
    Return(IfIndex),
    /// Arrives from this device, and passes its hooks: into the gate, or from it by loopback.
    Enter(IfIndex),
}

/// Parses the packet and finds its flow.
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
    // A packet that the stack sends to a pod is not a request to a Service.
    let unknown = if hook.is_egress() {
        Stage::Untranslated
    } else {
        Stage::Open
    };
    if hook == Hook::FromDevice && process::is_martian(scratch) {
        return Stage::Untouched;
    }
    match flow::find(tables, &scratch.headers, hook, &mut scratch.flow) {
        flow::Found::Ours if leads_to_backend(scratch, hook) => {}
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
    may_forward(
        packet,
        tables,
        scratch,
        way(&scratch.flow),
        scratch.flow.device,
    )
}

/// Returns true if the flow in the scratch leads to the backend that the packet names: another
/// node may have chosen anew for the packets that it encapsulates.
///
/// The named port counts only in a packet that opens a connection: where a larger packet was
/// segmented, the segments' identifications count up (the kernel's `inet_gso_segment`).
#[inline(always)]
pub(crate) fn leads_to_backend<F: Ip>(scratch: &Scratch<F>, hook: Hook) -> bool {
    if hook != Hook::FromDevice || scratch.encapsulated == 0 {
        return true;
    }
    let Scratch { headers, flow, .. } = scratch;
    let begins = headers.key.protocol.has_handshake() && headers.opens();
    flow.dst == scratch.backend && (flow.dport == scratch.port || !begins)
}

/// Checks TTL and MTU, as the kernel does when it forwards.
///
/// Packets from this host's own processes may be as large as loopback's MTU, also those to local
/// pods, and kernels before 5.12 do not deliver such: they are limited to the smallest MTU.
#[inline(always)]
pub(crate) fn may_forward<F: Ip, P: Packet, T: Tables<F>>(
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

/// Rewrites a packet of the flow in the scratch and sends it the flow's way.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let flow = &scratch.flow;
    let way = way_from(tables, hook, flow);
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, &scratch.headers, flow)?;
    } else {
        rewrite::apply(packet, &scratch.headers, flow, way)?;
    }
    tables.count(Counter::Forwarded);
    go(packet, way, flow.device)
}

/// Returns the way of a flow's packets from this hook on: a packet that the stack has routed stays
/// with the stack.
#[inline(always)]
pub(crate) fn way_from<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, flow: &Flow<F::Addr>) -> Way {
    let way = way(flow);
    if !hook.is_egress() {
        return way;
    }
    if way != Way::Stack {
        tables.count(Counter::Fallback);
    }
    Way::Stack
}

/// Returns true if packets go on encapsulated: only those of clients outside the node.
#[inline(always)]
pub(crate) fn may_encapsulate(hook: Hook, way: Way) -> bool {
    hook == Hook::FromDevice && way == Way::Dsr
}

/// Returns the action for a rewritten packet.
#[inline(always)]
pub(crate) fn go<P: Packet>(packet: &mut P, way: Way, device: IfIndex) -> Result<Action, Reason> {
    Ok(match way {
        Way::Stack => Action::Stack,
        Way::Pod => Action::Pod(device),
        Way::Neighbour | Way::Dsr => Action::Neighbour(device),
        Way::Gate => {
            process::address_link(packet, device)?;
            process::to_process(device)
        }
    })
}

/// Rewrites a packet on its way out of the stack. Only flows that went through the stack have an
/// entry for this hook; exceptions are left to [`crate::exception::on_egress`].
#[inline(always)]
pub fn restore<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else {
        return Ok(Action::Untouched);
    };
    let mut flow = Scratch::<F>::NO_FLOW;
    match flow::find(tables, &headers, Hook::ToDevice, &mut flow) {
        flow::Found::Ours => {}
        flow::Found::Over(table) => {
            // Else the next packets of the new connection would be taken for the old one's.
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

/// Returns the way of a flow.
#[inline(always)]
pub(crate) fn way<A: Address>(flow: &Flow<A>) -> Way {
    Way::from_number(flow.way)
}
