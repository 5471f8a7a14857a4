//! Processes of this host, if sockets have no hooks (V21): the packets that go into the gate on
//! their way out by loopback or a node device, and the way of replies to the process.

use proxy_common::flow::{FlowKey, Hook};
use proxy_common::net::{Address as _, Family, IfIndex, Protocol};
use proxy_common::node::{AddressFlags, Device, RangeKind};
use proxy_common::reason::Reason;

use crate::parse::others::{Other, others};
use crate::parse::{self, Ip};
use crate::socket::Sockets;
use crate::{Action, Packet, Scratch, Tables, rewrite, service};

/// Sends a packet of this host into the gate if it is for a Service, or belongs to a flow of such.
#[inline(always)]
pub fn enter<F: Ip, P: Packet, T: Sockets<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Result<Action, Reason> {
    let gate = tables.config().unwrap_or_default().gate;
    // A received packet is being forwarded, or comes from the gate.
    if gate == IfIndex::NONE || packet.was_received() || !is_for_service(packet, tables, scratch) {
        return Ok(Action::Untouched);
    }
    address_link(packet, gate)?;
    Ok(Action::Enter(gate))
}

/// Parses a packet into the scratch, and returns true if it is for the gate.
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
            // The first fragment may not have passed the gate yet.
            Ok(Other::Packet | Other::First | Other::Later) => true,
            Ok(Other::Error) => false,
            Ok(Other::Exempt | Other::LostFragment) | Err(_) => return false,
        },
        Err(_) => return false,
    };
    let opens = may_ask && scratch.headers.opens();
    // A socket that listens there by now takes the packet, whatever flow was there before.
    if opens && scratch.headers.key.dst.is_loopback() {
        return is_service_request(tables, &scratch.headers.key);
    }
    let known = tables
        .copy_flow(&scratch.headers.key, &mut scratch.flow)
        .is_some();
    known && scratch.flow.hooks & Hook::FromDevice as u8 != 0
        || opens && is_service_request(tables, &scratch.headers.key)
}

/// Returns true if a process of this host opens a connection that a Service serves or refuses. At
/// loopback addresses nodePorts are served if no socket listens; for SCTP the kernel has no lookup
/// of sockets.
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

/// Returns true if the source is an address of this host. Devices on top of a node device (macvlan),
/// transparent proxies, and hosts that this host routes for send from other addresses.
#[inline(always)]
pub fn has_own_source<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>) -> bool {
    // Loopback addresses are not in the map, but only this host uses them.
    let known =
        || tables.address(&key.src).0 & (AddressFlags::HOST | AddressFlags::NODE_PORTS) != 0;
    key.src.is_loopback() || key.src == key.dst || known()
}

/// Lets a packet pass as it came. A packet from the gate is dropped: the stack would send it into
/// the gate again and again.
#[inline(always)]
pub fn pass<F: Family>(scratch: &Scratch<F>) -> Result<Action, Reason> {
    if scratch.by_gate != 0 {
        Err(Reason::LeftInGate)
    } else {
        Ok(Action::Untouched)
    }
}

/// Returns true if a packet from outside has a loopback address as destination: a martian, in the
/// kernel's words.
#[inline(always)]
pub fn is_martian<F: Family>(scratch: &Scratch<F>) -> bool {
    scratch.headers.key.dst.is_loopback() && scratch.by_gate == 0
}

/// Returns the device by which replies reach a process that asked for an address. The Service
/// ranges are routed by the gate, and a strict reverse path filter accepts their addresses from no
/// other device. The host's own addresses are accepted by loopback only, and others by loopback,
/// too.
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

/// Returns the way of an ICMP error to a process.
///
/// For an own IPv6 address, the kernel accepts a path MTU only if it is less than the MTU of the
/// device that has the address (`rt6_insert_exception`); one byte less makes fragments of the same
/// size.
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

/// Returns the way to a process by this device.
#[inline(always)]
pub fn to_process(device: IfIndex) -> Action {
    if device == IfIndex::LOOPBACK {
        Action::Enter(device)
    } else {
        Action::Transmit(device)
    }
}

/// Gives a frame the link-layer addresses of the gate or of loopback.
#[inline(always)]
pub fn address_link<P: Packet>(packet: &mut P, device: IfIndex) -> Result<(), Reason> {
    let [a, b, c, d, e, f] = if device == IfIndex::LOOPBACK {
        [0; 6]
    } else {
        Device::GATE_MAC
    };
    rewrite::link(packet, &[a, b, c, d, e, f, a, b, c, d, e, f])
}
