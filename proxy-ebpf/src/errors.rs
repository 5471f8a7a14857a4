//! ICMP errors about translated packets: they go the way of the packets that go where they go, and are translated like these, with the packet
//! that they quote.

use proxy_common::event::{Counter, Reason};
use proxy_common::flow::{Hook, Role, Way};

use crate::parse::Ip;
use crate::parse::others::{Other, others};
use crate::{Action, Origin, Packet, Scratch, Stage, Tables, action, rewrite, way};

/// For an error in the scratch, by the key of the packets that go where it goes.
#[inline(always)]
pub fn meet<F: Ip, T: Tables<F>>(tables: &T, origin: Origin, scratch: &mut Scratch<F>) -> Stage {
    let outside = origin == Origin::Outside;
    if tables.find_flow(&scratch.headers.key, &mut scratch.flow).is_none() {
        return if outside { Stage::Untouched } else { Stage::Plain };
    }
    let translated = scratch.flow.hooks & origin.hook() as u8 != 0 && !scratch.flow.is(Role::PLAIN) && scratch.quoted != 0;
    if !translated {
        return if outside { Stage::Untouched } else { Stage::Judge };
    }
    if scratch.headers.ttl <= 1 && scratch.flow.way != Way::Stack as u8 && origin != Origin::Stack {
        return scratch.refuse(Reason::TtlExceeded);
    }
    scratch.rewrite = 1;
    Stage::Judge
}

/// The last stage: rewrites it and sends it the flow's way; what is on its way through the stack stays there.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    origin: Origin,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let way = if origin == Origin::Stack { Way::Stack } else { way(&scratch.flow) };
    rewrite::error(packet, scratch, way)?;
    tables.count(Counter::ErrorTranslated);
    Ok(action(way, scratch.flow.device))
}

/// Whether a packet on its way out of the stack is an error of this host about a packet of a flow that went through the stack.
#[inline(always)]
pub fn leaves<F: Ip, P: Packet, T: Tables<F>>(packet: &P, tables: &T, scratch: &mut Scratch<F>) -> bool {
    if !matches!(F::read(packet), Ok(Some(network)) if network.protocol == F::ICMP) {
        return false;
    }
    let Scratch { headers, flow, reply, quoted, .. } = scratch;
    let error = matches!(others(packet, tables, headers, reply, quoted), Ok(Other::Error));
    error && *quoted != 0 && tables.find_flow(&headers.key, flow).is_some() && flow.hooks & Hook::ToDevice as u8 != 0
}
