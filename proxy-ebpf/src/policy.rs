//! Whether a connection is allowed: who a packet at a pod's device is of, which flow it belongs to, and what both ends' rows say of it.
//!
//! Every packet is judged by the forward direction of its connection as it is now, nothing is cached (P25, P30).

use proxy_common::flow::{Flow, FlowKey, Hook, Role, Way};
use proxy_common::net::{AddressFlags, Device, Family, IfIndex, Port, Protocol, Veth};
use proxy_common::policy::{PodRows, PortSet, Row, VerdictKey, Word};
use proxy_common::reason::Reason;
use proxy_common::service::Config;

use crate::parse::Ip;
use crate::parse::others::Other;
use crate::{Packet, Scratch, Stage, Tables, Verdicts, flow};

/// In [`Scratch::pod_id`]: the policy of a pod that is not known yet (P31). No table has so many.
const UNKNOWN: u32 = u32::MAX;

/// Before anything else: whether the packet may come from or go to where it says, and which pod it is of.
#[inline(always)]
pub fn admit<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    scratch.pod_id = 0;
    scratch.kind = Other::Packet as u32;
    scratch.exception = 0;
    scratch.rewrite = 0;
    scratch.fresh = 0;
    scratch.own = 0;
    scratch.by_gate = 0;
    scratch.encapsulated = 0;
    // What was redirected into the device again, or is on its way back to the sender, was made by us.
    if hook != Hook::FromDevice && packet.is_answer_of_ours() {
        return Stage::Untouched;
    }
    if hook == Hook::FromDevice {
        let config = tables.config().unwrap_or_default();
        scratch.by_gate = u32::from(config.gate == device && device != IfIndex::NONE);
        // Without policies nobody gains by a claim to be from here.
        if !config.has(Config::POLICY) {
            return Stage::FindFlow;
        }
    }
    let (src, dst) = match F::read(packet) {
        Ok(Some(network)) => (network.src, network.dst),
        Ok(None) => return Stage::Untouched,
        Err(reason) => {
            scratch.reason = reason;
            return Stage::Stop;
        }
    };
    match hook {
        Hook::FromDevice if scratch.by_gate == 0 && is_ours(tables, device, &src) => {
            scratch.refuse(Reason::ForgedSource)
        }
        Hook::FromDevice => Stage::FindFlow,
        Hook::FromPod => from_pod(tables, device, &src, scratch),
        Hook::ToPod | Hook::ToDevice => to_pod(packet, tables, device, &src, &dst, scratch),
    }
}

/// P18: whether an address is this host's or one of its pods'. A bridge that pods are on sees their packets too.
#[inline(always)]
fn is_ours<F: Ip, T: Tables<F>>(tables: &T, device: IfIndex, addr: &F::Addr) -> bool {
    let ours = tables.address(addr).has(AddressFlags::HOST) || tables.pod(addr).is_some();
    ours && tables
        .device(device)
        .is_none_or(|device| device.flags & Device::HAS_PODS == 0)
}

/// P33: a pod sends with its own addresses. P31: a pod that is not known is denied once there are policies.
#[inline(always)]
fn from_pod<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    src: &F::Addr,
    scratch: &mut Scratch<F>,
) -> Stage {
    if let Some(pod) = tables.pod(src)
        && pod.device == device
    {
        scratch.pod_id = pod.pod_id;
        return Stage::FindFlow;
    }
    match tables.veth(device) {
        Some(veth) if veth.flags & Veth::ANY_SOURCE != 0 || F::is_link_local(*src) => {
            scratch.pod_id = veth.pod_id;
            Stage::FindFlow
        }
        Some(_) => scratch.refuse(Reason::SpoofedSource),
        None => unknown(tables, scratch),
    }
}

/// P18: from this host is what it has made itself, with an address of its own.
#[inline(always)]
fn to_pod<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    src: &F::Addr,
    dst: &F::Addr,
    scratch: &mut Scratch<F>,
) -> Stage {
    if !packet.was_received()
        && (tables.address(src).has(AddressFlags::HOST) || F::is_link_local(*src))
    {
        scratch.own = 1;
    }
    match tables.pod(dst) {
        Some(pod) if pod.device == device => scratch.pod_id = pod.pod_id,
        // A bridge floods what is another pod's.
        Some(_) => return Stage::Untouched,
        None => match tables.veth(device) {
            Some(veth) => scratch.pod_id = veth.pod_id,
            None if scratch.own != 0 => return Stage::FindFlow,
            None => return unknown(tables, scratch),
        },
    }
    Stage::FindFlow
}

/// P31: who is not known is isolated both ways, so that only its own node reaches it, and is answered.
#[inline(always)]
fn unknown<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    if tables
        .config()
        .unwrap_or_default()
        .has(Config::DENY_UNKNOWN)
    {
        scratch.pod_id = UNKNOWN;
    }
    Stage::FindFlow
}

/// What a pod's connections are judged by.
#[inline(always)]
pub fn rows<F: Family, T: Verdicts<F>>(tables: &T, pod_id: u32) -> PodRows {
    if pod_id == UNKNOWN {
        PodRows {
            ingress: Row::CLOSED,
            egress: Row::CLOSED,
        }
    } else {
        tables.rows(pod_id)
    }
}

/// A packet that no flow has in its direction, and no Service serves: it may be one that a translation has changed, or the other direction of
/// a flow of which one entry was evicted, or the first of a connection that is followed from here on.
#[inline(always)]
pub fn untranslated<F: Ip, T: Tables<F>>(
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    scratch.rewrite = 0;
    if hook == Hook::FromDevice {
        return Stage::Untouched;
    }
    let error = scratch.kind == Other::Error as u32;
    let key = scratch.headers.key;
    let turned = key.reversed();
    if let Some((_, other)) = tables.flow(&turned) {
        let role = other.role & !(Role::FORWARD | Role::REPLY);
        let turned = if other.is(Role::REPLY) {
            Role::FORWARD
        } else {
            Role::REPLY
        };
        // Where others have translated it, the first direction knows from whom it comes (P28, P29).
        (scratch.headers.key.src, scratch.headers.key.sport) = (other.dst, other.dport);
        as_it_is(scratch, role | turned);
        return Stage::Judge;
    }
    if error {
        // About a packet that nobody knows: it is what other protocols are (P26).
        scratch.headers.key = scratch.reply;
    }
    as_it_is(scratch, Role::FORWARD | Role::UNTRANSLATED);
    if scratch.own != 0 {
        scratch.flow.role |= Role::OWN_NODE;
    }
    scratch.fresh = u32::from(!error && scratch.headers.opens());
    Stage::Judge
}

/// The flow of a packet that is not translated.
#[inline(always)]
fn as_it_is<F: Family>(scratch: &mut Scratch<F>, role: u8) {
    let key = &scratch.headers.key;
    scratch.flow = Flow {
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        device: IfIndex::NONE,
        seen: 0,
        service: 0,
        way: Way::Stack as u8,
        hooks: Hook::FromPod as u8 | Hook::ToPod as u8,
        state: 0,
        role,
    };
}

/// The verdict on a packet of the flow in the scratch, by its forward direction: what may be sent on, rewritten or as it is, is.
#[inline(always)]
pub fn judge<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, scratch: &mut Scratch<F>) -> Stage {
    let config = tables.config().unwrap_or_default();
    let allowed = if config.has(Config::POLICY) {
        verdict(tables, hook, scratch)
    } else {
        Ok(())
    };
    match allowed {
        Ok(()) if scratch.rewrite != 0 && scratch.kind == Other::Error as u32 => Stage::SendError,
        Ok(()) if scratch.rewrite != 0 && scratch.exception != 0 => Stage::SendException,
        Ok(()) if scratch.rewrite != 0 => Stage::Send,
        Ok(()) if scratch.fresh != 0 => Stage::Follow,
        Ok(()) => Stage::Untouched,
        Err(reason) => {
            if scratch.rewrite != 0 && scratch.fresh != 0 {
                let mate = scratch.flow.mate(scratch.headers.key.protocol);
                flow::forget(tables, crate::Table::Opening, &scratch.headers.key, &mate);
            }
            scratch.refuse(reason)
        }
    }
}

#[inline(always)]
fn verdict<F: Ip, T: Tables<F>>(
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<(), Reason> {
    let Scratch { flow, headers, .. } = scratch;
    let key = &headers.key;
    let pod_way = flow.way == Way::Pod as u8;
    // What passes from device to device has no pod of this node at either end.
    if hook == Hook::FromDevice && !pod_way {
        return Ok(());
    }
    let forward = flow.is(Role::FORWARD);
    let (client, server, port) = if forward {
        (&key.src, &flow.dst, flow.dport)
    } else {
        (&flow.dst, &key.src, key.sport)
    };
    // P19; and a pod's packets to itself never get here otherwise.
    if *client == *server {
        return Ok(());
    }
    let (protocol, port) = (key.protocol, port.number());
    // The end whose device this is, or that the packet is redirected to; the other one only where the packet passes its own hook by.
    let (near, far) = match hook {
        Hook::FromPod => (
            scratch.pod_id,
            if pod_way && scratch.rewrite != 0 {
                pod_id(tables, &flow.dst)
            } else {
                0
            },
        ),
        Hook::FromDevice => (0, pod_id(tables, &flow.dst)),
        Hook::ToPod | Hook::ToDevice => (scratch.pod_id, 0),
    };
    let near_is_client = forward == (hook == Hook::FromPod);
    let (client_pod, server_pod) = if near_is_client {
        (near, far)
    } else {
        (far, near)
    };
    let (client_pod, server_pod) = match hook {
        Hook::FromDevice if forward => (0, far),
        Hook::FromDevice => (far, 0),
        _ => (client_pod, server_pod),
    };
    if !allowed(
        tables,
        client_pod,
        |rows| rows.egress,
        server,
        protocol,
        port,
    ) {
        return Err(if client_pod == UNKNOWN {
            Reason::PodUnknown
        } else {
            Reason::DeniedEgress
        });
    }
    if flow.is(Role::OWN_NODE) || scratch.own != 0 && forward {
        return Ok(());
    }
    if allowed(
        tables,
        server_pod,
        |rows| rows.ingress,
        client,
        protocol,
        port,
    ) {
        return Ok(());
    }
    Err(if server_pod == UNKNOWN {
        Reason::PodUnknown
    } else {
        Reason::DeniedIngress
    })
}

/// Whether a pod's row allows a port towards an address.
///
/// P32: row and class are two loads, between which this CPU may lose the time of several changes. Each change leads addresses to classes that are right
/// by the old row and the new one before it gives the pod its new row: a class fits the row that is still there after it was found.
#[inline(always)]
pub fn allowed<F: Ip, T: Verdicts<F>>(
    tables: &T,
    pod_id: u32,
    side: impl Fn(PodRows) -> Row,
    other: &F::Addr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let mut row = side(rows(tables, pod_id));
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    let mut found = class(tables, other);
    let now = side(rows(tables, pod_id));
    if now != row {
        row = now;
        found = class(tables, other);
    }
    row_allows(tables, row, found, protocol, port)
}

#[inline(always)]
fn pod_id<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> u32 {
    tables.pod(addr).map_or(0, |pod| pod.pod_id)
}

/// Whether a row allows a port towards an address: two or three loads for its class, one for the set, one for the ports.
#[inline(always)]
pub fn allows<F: Ip, T: Verdicts<F>>(
    tables: &T,
    row: Row,
    other: &F::Addr,
    protocol: Protocol,
    port: u16,
) -> bool {
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    row_allows(tables, row, class(tables, other), protocol, port)
}

#[inline(always)]
fn row_allows<F: Ip, T: Verdicts<F>>(
    tables: &T,
    row: Row,
    class: u32,
    protocol: Protocol,
    port: u16,
) -> bool {
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    let set = match row.chunk() {
        Some(chunk) => tables.verdict(chunk, class),
        None => tables.hashed_verdict(&VerdictKey { row, class }),
    };
    tables.have(set, protocol, port)
}

/// The class of an address: for IPv4 by the directory, else that of the pod, else that of the longest prefix.
#[inline(always)]
pub fn class<F: Ip, T: Verdicts<F>>(tables: &T, addr: &F::Addr) -> u32 {
    if F::V6 {
        return match tables.exact_class(addr) {
            Some(class) => class,
            None => tables.prefix_class(addr),
        };
    }
    let [first, second, third, fourth] = F::octets(*addr);
    let mut word = tables.word(u32::from(first), second);
    if let Some(node) = word.as_node() {
        word = tables.word(node, third);
    }
    if let Some(node) = word.as_node() {
        word = tables.word(node, fourth);
    }
    if word == Word::ELSEWHERE {
        tables.prefix_class(addr)
    } else {
        word.0
    }
}

/// Whether a set of ports has a port; a protocol without ports is only in the set of everything (P26).
#[inline(always)]
pub fn has<F: Family, T: Verdicts<F>>(tables: &T, set: u32, protocol: Protocol, port: u16) -> bool {
    if set == PortSet::NONE || set == PortSet::ALL {
        return set == PortSet::ALL;
    }
    let (mut set, mut sets) = (set, 0);
    while sets < PortSet::CHAIN {
        let Some(ports) = tables.ports(set) else {
            return false;
        };
        if ports.flags & (PortSet::EVERYTHING | PortSet::whole(protocol)) != 0 {
            return true;
        }
        let mut index = 0;
        while index < PortSet::RANGES {
            if index >= ports.len as usize {
                break;
            }
            if ports.ranges[index].has(protocol, port) {
                return true;
            }
            index += 1;
        }
        if ports.next == 0 {
            return false;
        }
        set = ports.next;
        sets += 1;
    }
    false
}

/// Begins to follow the connection of a packet that was allowed.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    flow::follow(tables, scratch);
    Stage::Untouched
}

/// The ends of a connection that was denied, as both would name it.
pub fn denied<F: Family>(scratch: &Scratch<F>) -> FlowKey<F::Addr> {
    let Scratch { flow, headers, .. } = scratch;
    let key = &headers.key;
    if flow.is(Role::FORWARD) {
        FlowKey::new(key.protocol, key.src, key.sport, flow.dst, flow.dport)
    } else {
        FlowKey::new(key.protocol, flow.dst, Port::default(), key.src, key.sport)
    }
}
