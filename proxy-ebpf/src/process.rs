//! Processes of this host where no hooks of sockets serve them (V21): which of their packets, on the way out by loopback or a node device, go into
//! the gate, and by which device comes what goes back to them.

use proxy_common::flow::{FlowKey, Hook};
use proxy_common::net::{Address as _, Family, IfIndex, Protocol};
use proxy_common::node::{AddressFlags, Device, RangeKind};
use proxy_common::reason::Reason;

use crate::parse::others::{Other, others};
use crate::parse::{self, Ip};
use crate::socket::Sockets;
use crate::{Action, Packet, Scratch, Tables, rewrite, service};

/// A packet that this host sends goes into the gate where it asks for a Service, or belongs to who did.
#[inline(always)]
pub fn enter<F: Ip, P: Packet, T: Sockets<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Result<Action, Reason> {
    let gate = tables.config().unwrap_or_default().gate;
    // What was received is on its way to somebody else, or comes out of the gate.
    if gate == IfIndex::NONE || packet.was_received() || !is_for_service(packet, tables, scratch) {
        return Ok(Action::Untouched);
    }
    address_link(packet, gate)?;
    Ok(Action::Enter(gate))
}

#[inline(always)]
fn is_for_service<F: Ip, P: Packet, T: Sockets<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> bool {
    scratch.begin();
    let may_ask = match parse::headers::<F, P, T>(packet, tables) {
        Ok(Some(headers)) => {
            scratch.headers = headers;
            true
        }
        Ok(None) => match others(packet, tables, scratch) {
            // In the gate the first fragment may still wait.
            Ok(Other::Packet | Other::First | Other::Later) => true,
            Ok(Other::Error) => false,
            Ok(Other::Exempt | Other::LostFragment) | Err(_) => return false,
        },
        Err(_) => return false,
    };
    let opens = may_ask && scratch.headers.opens();
    // Whoever listens there by now is not hidden by what was before.
    if opens && scratch.headers.key.dst.is_loopback() {
        return is_service_request(tables, &scratch.headers.key);
    }
    let known = tables
        .copy_flow(&scratch.headers.key, &mut scratch.flow)
        .is_some();
    known && scratch.flow.hooks & Hook::FromDevice as u8 != 0
        || opens && is_service_request(tables, &scratch.headers.key)
}

/// Whether a process of this host asks for what is a Service's to answer, if only by a refusal. By loopback addresses nodePorts are served where nobody listens; of SCTP the kernel
/// does not tell whether somebody does.
#[inline(always)]
fn is_service_request<F: Family, T: Sockets<F>>(tables: &T, key: &FlowKey<F::Addr>) -> bool {
    match service::select_here(tables, key) {
        Ok(Some(_)) if key.dst.is_loopback() => {
            key.protocol != Protocol::SCTP && !tables.is_taken(key)
        }
        Ok(None) => false,
        Ok(Some(_)) | Err(_) => has_own_source(tables, key),
    }
}

/// Whether a process of this host has sent it, with an address of this host: who has a device on top of a node device (macvlan), a proxy that
/// plays its client, and who has this host for a router, have others.
#[inline(always)]
pub fn has_own_source<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>) -> bool {
    // An address of loopback itself is not known, but nobody else could ask it by loopback.
    let known =
        || tables.address(&key.src).0 & (AddressFlags::HOST | AddressFlags::NODE_PORTS) != 0;
    key.src.is_loopback() || key.src == key.dst || known()
}

/// What becomes of a packet that nothing was to be done with: out of the gate the stack would send it there again and again.
#[inline(always)]
pub fn pass<F: Family>(scratch: &Scratch<F>) -> Result<Action, Reason> {
    if scratch.by_gate != 0 {
        Err(Reason::LeftInGate)
    } else {
        Ok(Action::Untouched)
    }
}

/// Whether a packet from outside plays one of this host to itself, as none can be that comes from elsewhere: the kernel calls it a martian.
#[inline(always)]
pub fn is_martian<F: Family>(scratch: &Scratch<F>) -> bool {
    scratch.headers.key.dst.is_loopback() && scratch.by_gate == 0
}

/// By which device what answers comes to a process that asked an address. The Service ranges are routed by the gate, and the kernel takes what has
/// these addresses by no other device where it filters strictly. The host's own addresses it takes by loopback only; those that are elsewhere
/// by loopback too.
#[inline(always)]
pub fn reply_device<F: Family, T: Tables<F>>(
    tables: &T,
    gate: IfIndex,
    asked: &F::Addr,
) -> IfIndex {
    let routed = tables.range(asked) == RangeKind::SERVICES
        && !tables.address(asked).has(AddressFlags::HOST);
    if routed { gate } else { IfIndex::LOOPBACK }
}

/// How a process is told that its packet is not sent on.
///
/// Of IPv6 the kernel heeds what a packet to an own address may have only where that is less than the MTU of the device that has the address
/// (`rt6_insert_exception`); one byte less makes fragments of the same size.
#[inline(always)]
pub fn answer_way<F: Ip, T: Tables<F>>(
    tables: &T,
    gate: IfIndex,
    scratch: &mut Scratch<F>,
) -> Action {
    let device = reply_device(tables, gate, &scratch.headers.key.dst);
    if F::V6 && device == IfIndex::LOOPBACK {
        scratch.mtu = scratch.mtu.saturating_sub(1).max(F::LEAST_MTU);
    }
    to_process(device)
}

/// The way to a process by this device.
#[inline(always)]
pub fn to_process(device: IfIndex) -> Action {
    if device == IfIndex::LOOPBACK {
        Action::Enter(device)
    } else {
        Action::Transmit(device)
    }
}

/// Gives a frame the link-layer address that the gate or loopback has.
#[inline(always)]
pub fn address_link<P: Packet>(packet: &mut P, device: IfIndex) -> Result<(), Reason> {
    let [a, b, c, d, e, f] = if device == IfIndex::LOOPBACK {
        [0; 6]
    } else {
        Device::GATE_MAC
    };
    rewrite::link(packet, &[a, b, c, d, e, f, a, b, c, d, e, f])
}
