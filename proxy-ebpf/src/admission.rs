//! Admission: which pod a packet belongs to, and whether its source may be what it is (P18, P31,
//! P33).

use proxy_common::config::Config;
use proxy_common::flow::Hook;
use proxy_common::net::IfIndex;
use proxy_common::node::{AddressFlags, Device, Veth};
use proxy_common::reason::Reason;

use crate::parse::Ip;
use crate::policy::UNKNOWN_POD;
use crate::{Packet, Scratch, Stage, Tables};

/// Begins the scratch, finds the packet's pod, and checks the packet's source.
#[inline(always)]
pub fn admit<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    scratch.begin();
    // We made the packet: it was redirected into the device, or is on its way back to the sender.
    if hook != Hook::FromDevice && packet.is_answer_of_ours() {
        return Stage::Untouched;
    }
    if hook == Hook::FromDevice {
        let config = tables.config().unwrap_or_default();
        scratch.by_gate = u32::from(config.gate == device && device != IfIndex::NONE);
        // Without policies a forged source gains nothing.
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
        Hook::FromDevice if scratch.by_gate == 0 && is_forged(tables, device, &src) => {
            scratch.refuse(Reason::ForgedSource)
        }
        Hook::FromDevice => Stage::FindFlow,
        Hook::FromPod => from_pod(tables, device, &src, scratch),
        Hook::ToPod | Hook::ToDevice => to_pod(packet, tables, device, &src, &dst, scratch),
    }
}

/// P18: returns true if a packet from outside has the address of this host or of one of its pods as
/// source. A bridge that pods are on receives their packets too, and is exempt.
#[inline(always)]
fn is_forged<F: Ip, T: Tables<F>>(tables: &T, device: IfIndex, src: &F::Addr) -> bool {
    let ours = tables.address(src).has(AddressFlags::HOST) || tables.pod(src).is_some();
    ours && tables
        .device(device)
        .is_none_or(|device| device.flags & Device::HAS_PODS == 0)
}

/// P33: a pod sends with its own addresses. P31: an unknown pod is denied once there are policies.
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

/// P18: a packet is this host's own if the host made it, with an address of its own.
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
        // A bridge floods the packets of another pod.
        Some(_) => return Stage::Untouched,
        None => match tables.veth(device) {
            Some(veth) => scratch.pod_id = veth.pod_id,
            None if scratch.own != 0 => return Stage::FindFlow,
            None => return unknown(tables, scratch),
        },
    }
    Stage::FindFlow
}

/// P31: an unknown pod is isolated in both directions: only its own node reaches it, and gets
/// answers from it.
#[inline(always)]
fn unknown<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    if tables
        .config()
        .unwrap_or_default()
        .has(Config::DENY_UNKNOWN)
    {
        scratch.pod_id = UNKNOWN_POD;
    }
    Stage::FindFlow
}
