//! Direct server return: this node encapsulates a client's packet and sends it to the node of its
//! backend, which answers the client directly.
//!
//! The outer packet has the backend's address as destination, so that it goes the way of packets to
//! the backend. Its header also has the backend's port, so that the two nodes need not choose the
//! same backend. The inner packet is not translated before it is on the backend's node.

use proxy_common::flow::{Flow, Way};
use proxy_common::net::{Address as _, IfIndex};
use proxy_common::node::{AddressFlags, Device};
use proxy_common::reason::{Counter, Reason};

use crate::parse::others::Other;
use crate::parse::{self, Headers, Ip, LINK};
use crate::{Action, Packet, Scratch, Stage, Tables};

/// Bytes of an ICMP header.
const ICMP: u32 = 8;

/// Encapsulates a packet, with the backend of its flow as destination.
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

/// Returns true if encapsulated packets may leave by `device`: this node's address is known, and
/// the MTU leaves room for the smallest MTU that the inner packet may count on.
#[inline(always)]
pub fn can_encapsulate<F: Ip>(device: &Device) -> bool {
    F::node(device) != F::Addr::ZERO && device.mtu >= F::LEAST_MTU + F::OVERHEAD
}

/// Returns true if a parsed exception is a packet that another node encapsulated for a backend
/// here, or an ICMP error about a packet that this node encapsulated.
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
        // The key of an error is that of the opposite direction.
        Other::Error => tables
            .address(&key.dst)
            .has(AddressFlags::NODE | AddressFlags::HOST),
        Other::Exempt | Other::LostFragment | Other::First | Other::Later => false,
    }
}

/// Replaces a packet by the one that it contains: [`Stage::FindFlow`] for the client's packet; the
/// scratch then has its backend.
///
/// Of an ICMP error only the quoted packet is left, as if it had come now and were too big: its
/// client gets the error.
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
    // The reason if it is not served here: this host's stack must not get the packet.
    scratch.reason = Reason::NotServedHere;
    Stage::FindFlow
}

/// Returns where to send an ICMP error for a packet that another node encapsulated: along the route
/// to the client.
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

/// Handles an ICMP error about a packet that this node encapsulated.
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
