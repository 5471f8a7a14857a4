//! Direct server return: what a client outside sends to this node goes as it came to the node of its backend, in a packet of this node's own, and is
//! answered from there.
//!
//! The carrying packet is for the backend itself, so that it goes the way that packets to the backend go, and names its port: the two nodes need not
//! choose alike. An established connection's packets are not touched before the node that has the backend.

use proxy_common::flow::{Flow, Way};
use proxy_common::net::{Address as _, IfIndex};
use proxy_common::node::{AddressFlags, Device};
use proxy_common::reason::{Counter, Reason};

use crate::parse::others::Other;
use crate::parse::{self, Headers, Ip, LINK};
use crate::{Action, Packet, Scratch, Stage, Tables};

/// Bytes of an ICMP header.
const ICMP: u32 = 8;

/// Sends a packet on its way to the node of its flow's backend.
#[inline(always)]
pub fn encapsulate<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Result<(), Reason> {
    let node = tables
        .device(flow.device)
        .map_or(F::Addr::ZERO, |device| F::node(&device));
    F::encapsulate(packet, headers.len, node, flow.dst, flow.dport).ok_or(Reason::RewriteFailed)?;
    tables.count(Counter::Encapsulated);
    Ok(())
}

/// Whether packets that leave by `device` may carry others: this node needs an address that is known, and the others room that they may count on.
#[inline(always)]
pub fn can_encapsulate<F: Ip>(device: &Device) -> bool {
    F::node(device) != F::Addr::ZERO && device.mtu >= F::LEAST_MTU + F::OVERHEAD
}

/// Whether what was found behind an IP header is a packet of another node for a backend here, or an error about one of this node's.
#[inline(always)]
pub fn is_for_us<F: Ip, T: Tables<F>>(tables: &T, scratch: &Scratch<F>, kind: Other) -> bool {
    let key = &scratch.headers.key;
    if key.protocol != F::ENCAPSULATION || scratch.headers.transport != LINK + F::OVERHEAD {
        return false;
    }
    match kind {
        Other::Packet => {
            tables.address(&key.src).has(AddressFlags::NODE) && tables.pod(&key.dst).is_some()
        }
        // The key is turned round.
        Other::Error => tables
            .address(&key.dst)
            .has(AddressFlags::NODE | AddressFlags::HOST),
        Other::Exempt | Other::LostFragment | Other::First | Other::Later => false,
    }
}

/// Takes what a packet carries out of it: [`Stage::FindFlow`] for the client's packet, whose backend is in the scratch.
///
/// Of an error only the quoted packet is left, as if it had come now and did not fit: its client is told.
#[inline(always)]
pub fn decapsulate<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Stage {
    if scratch.kind == Other::Error as u32 {
        return too_big(packet, tables, scratch);
    }
    let Some(port) = F::encapsulated_port(packet) else {
        return scratch.refuse(Reason::Truncated);
    };
    if packet.decapsulate(F::OVERHEAD).is_none() {
        return scratch.refuse(Reason::RewriteFailed);
    }
    tables.count(Counter::Decapsulated);
    scratch.backend = scratch.headers.key.dst;
    scratch.port = port;
    scratch.encapsulated = 1;
    scratch.exception = 0;
    // What becomes of it if nobody here wants it: it was for no other node's stack than that of its sender.
    scratch.reason = Reason::NotServedHere;
    Stage::FindFlow
}

/// How the client of a packet that was carried here is told: he is not behind who carried it.
#[inline(always)]
pub fn answer_way<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    scratch: &Scratch<F>,
) -> Action {
    let key = &scratch.headers.key;
    tables
        .route(device, &key.dst, &key.src)
        .map_or(Action::Transmit(device), |route| {
            Action::Neighbour(route.device)
        })
}

#[inline(always)]
fn too_big<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Stage {
    let Some(mtu) = packet.load(scratch.headers.transport).and_then(F::too_big) else {
        return Stage::Untouched;
    };
    if packet
        .decapsulate(F::OVERHEAD + ICMP + F::OVERHEAD)
        .is_none()
    {
        return Stage::Untouched;
    }
    match parse::headers::<F, P, T>(packet, tables) {
        Ok(Some(headers)) => scratch.headers = headers,
        Ok(None) | Err(_) => return scratch.refuse(Reason::Truncated),
    }
    let known = tables
        .copy_flow(&scratch.headers.key, &mut scratch.flow)
        .is_some();
    if !known || scratch.flow.way != Way::Dsr as u8 {
        return scratch.refuse(Reason::NotServedHere);
    }
    scratch.exception = 0;
    scratch.encapsulated = 1;
    scratch.mtu = mtu.saturating_sub(F::OVERHEAD).max(F::LEAST_MTU);
    scratch.refuse(Reason::TooBig)
}
