//! What is no whole TCP segment, UDP datagram or SCTP packet right behind the IP header: fragments, what has extension headers, ICMP, other protocols.
//!
//! A datagram's first fragment says which connection the others belong to. ICMP errors go the way of the packets that go where they go, and are
//! translated like these, with the packet that they quote.

use proxy_common::flow::{Hook, Role, Way, fragment_ports};
use proxy_common::net::{Address as _, AddressFlags, Port, Protocol, hash3};
use proxy_common::policy::PodRows;
use proxy_common::reason::{Counter, Reason};

use crate::parse::Ip;
use crate::parse::others::{Other, others};
use crate::{
    Action, Packet, Scratch, Stage, Tables, dsr, flow, go, leads_on, may_encapsulate, may_leave,
    onward, policy, process, rewrite, way,
};

/// Finds out what it is, and the flow that it belongs to.
#[inline(always)]
pub fn find_flow<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    let kind = match others(packet, tables, scratch) {
        Ok(kind) => kind,
        Err(_) if hook == Hook::FromDevice => return Stage::Untouched,
        Err(reason) => return scratch.refuse(reason),
    };
    scratch.kind = kind as u32;
    scratch.exception = 1;
    if hook == Hook::FromDevice && scratch.encapsulated == 0 && dsr::is_ours(tables, scratch, kind)
    {
        return Stage::Decapsulate;
    }
    if hook == Hook::FromDevice && process::is_martian(scratch) {
        return Stage::Untouched;
    }
    match kind {
        Other::Error => error(tables, hook, scratch),
        Other::Exempt => Stage::Untouched,
        Other::LostFragment => lost(tables, hook, scratch),
        Other::Packet | Other::First | Other::Later => part(packet, tables, hook, scratch, kind),
    }
}

/// Whether such packets are translated: what a later fragment of SCTP holds its checksum in the first would have to know.
#[inline(always)]
fn is_translated(protocol: Protocol, kind: Other) -> bool {
    match protocol {
        Protocol::TCP | Protocol::UDP => true,
        Protocol::SCTP => kind == Other::Packet,
        _ => false,
    }
}

/// For a packet of a connection, or of something like it.
#[inline(always)]
fn part<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
    kind: Other,
) -> Stage {
    let outside = hook == Hook::FromDevice;
    let translated = is_translated(scratch.headers.key.protocol, kind);
    let opens = translated && kind != Other::Later && !hook.is_egress();
    let unknown = match (opens, outside) {
        (true, _) => Stage::Open,
        (false, true) => Stage::Untouched,
        (false, false) => Stage::Untranslated,
    };
    match flow::find(tables, &scratch.headers, hook, &mut scratch.flow) {
        flow::Found::Ours if translated && kind != Other::Later && !leads_on(scratch, hook) => {
            flow::end(tables, scratch);
            return unknown;
        }
        flow::Found::Ours if translated && !scratch.flow.is(Role::UNTRANSLATED) => {}
        flow::Found::Ours | flow::Found::Elsewhere if outside => return Stage::Untouched,
        flow::Found::Ours | flow::Found::Elsewhere => return Stage::Judge,
        flow::Found::Over(table) => {
            scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
            flow::forget(tables, table, &scratch.headers.key, &scratch.reply);
            return unknown;
        }
        flow::Found::None => {
            scratch.reply.dport = Port::default();
            return unknown;
        }
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

/// For an error, by the key of the packets that go where it goes.
#[inline(always)]
fn error<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, scratch: &mut Scratch<F>) -> Stage {
    let outside = hook == Hook::FromDevice;
    if tables
        .copy_flow(&scratch.headers.key, &mut scratch.flow)
        .is_none()
    {
        return if outside {
            Stage::Untouched
        } else {
            Stage::Untranslated
        };
    }
    let translated = scratch.flow.hooks & hook as u8 != 0
        && !scratch.flow.is(Role::UNTRANSLATED)
        && scratch.quoted != 0;
    if !translated {
        return if outside {
            Stage::Untouched
        } else {
            Stage::Judge
        };
    }
    if scratch.headers.ttl <= 1
        && !Way::from_number(scratch.flow.way).is_to_stack()
        && !hook.is_egress()
    {
        return scratch.refuse(Reason::TtlExceeded);
    }
    scratch.rewrite = 1;
    Stage::Judge
}

/// P27: a fragment whose first one was not seen is dropped where only we could know whom it is for, and where the pod is isolated. What is for this
/// host's own address is left to its stack, which waits for the first.
#[inline(always)]
fn lost<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, scratch: &mut Scratch<F>) -> Stage {
    let for_service = !hook.is_egress()
        && tables
            .address(&scratch.headers.key.dst)
            .has(AddressFlags::CLUSTER_IP);
    let isolated = hook != Hook::FromDevice
        && scratch.own == 0
        && policy::rows(tables, scratch.pod_id) != PodRows::default();
    if for_service || isolated {
        return scratch.refuse(Reason::FragmentUnknown);
    }
    tables.count(Counter::FragmentLeft);
    Stage::Untouched
}

/// The last stage of an error: rewrites it and sends it the flow's way; what is on its way through the stack stays there.
#[inline(always)]
pub fn send_error<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let way = onward(tables, hook, &scratch.flow);
    // A router keeps its own address, which the host does not expect out of the gate. Loopback's it expects by no other device.
    let router = scratch.reply.src != scratch.headers.key.src && !scratch.flow.dst.is_loopback();
    let way = if way == Way::Gate && router {
        Way::Stack
    } else {
        way
    };
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, &scratch.headers, &scratch.flow)?;
    } else {
        rewrite::error(packet, scratch, way)?;
        tables.count(Counter::ErrorTranslated);
    }
    go(packet, way, scratch.flow.device)
}

/// The last stage of anything else: a later fragment has no ports that could be rewritten.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let Scratch { headers, flow, .. } = scratch;
    let key = &headers.key;
    let way = onward(tables, hook, flow);
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, headers, flow)?;
    } else if scratch.kind == Other::Later as u32 {
        rewrite::addresses(packet, headers, flow, way)?;
    } else {
        rewrite::apply(packet, headers, flow, way)?;
    }
    // Its own number may be in use there by what somebody else sends to the same receiver; its sender's all move by as much.
    if scratch.kind != Other::Packet as u32 && flow.src != key.src {
        let secret = tables.config().unwrap_or_default().secret;
        let move_by = hash3(
            key.src.fold(),
            fragment_ports(key.sport, key.dport),
            key.protocol.0.into(),
            secret,
        );
        rewrite::renumber::<F, P>(packet, move_by as u16)?;
    }
    tables.count(Counter::Forwarded);
    go(packet, way, flow.device)
}

/// What a packet on its way out of the stack is, that belongs to a flow that went through the stack: [`Stage::SendError`], [`Stage::SendException`], or
/// nothing.
#[inline(always)]
pub fn leave<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Stage {
    let Ok(Some(network)) = F::read(packet) else {
        return Stage::Untouched;
    };
    if !network.fragment
        && matches!(
            network.protocol,
            Protocol::TCP | Protocol::UDP | Protocol::SCTP
        )
    {
        return Stage::Untouched;
    }
    let Ok(kind) = others(packet, tables, scratch) else {
        return Stage::Untouched;
    };
    scratch.kind = kind as u32;
    match kind {
        Other::Error
            if scratch.quoted != 0
                && tables
                    .copy_flow(&scratch.headers.key, &mut scratch.flow)
                    .is_some() =>
        {
            if scratch.flow.hooks & Hook::ToDevice as u8 != 0 {
                Stage::SendError
            } else {
                Stage::Untouched
            }
        }
        Other::Packet | Other::First | Other::Later
            if is_translated(scratch.headers.key.protocol, kind) =>
        {
            match flow::find(tables, &scratch.headers, Hook::ToDevice, &mut scratch.flow) {
                flow::Found::Ours => Stage::SendException,
                _ => Stage::Untouched,
            }
        }
        _ => Stage::Untouched,
    }
}
