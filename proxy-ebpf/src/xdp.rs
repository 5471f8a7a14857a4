//! XDP: forwards packets of established flows that leave the node again. It decides before it
//! writes; all other frames pass untouched to tc.

use proxy_common::flow::{Flow, Hook, Way};
use proxy_common::net::{Address as _, IfIndex};
use proxy_common::node::Device;
use proxy_common::reason::{Counter, Reason};

use crate::forward::way;
use crate::parse::{self, Headers, Ip};
use crate::{Action, Packet, Scratch, Tables, flow, rewrite};

/// Handles a frame that `device` received, before the stack has it.
#[inline(always)]
pub fn xdp<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else {
        return Ok(Action::Untouched);
    };
    let mut flow = Scratch::<F>::NO_FLOW;
    match flow::find(tables, &headers, Hook::FromDevice, &mut flow) {
        // A forged packet to a loopback address is left to the stack, which drops it.
        flow::Found::Ours if headers.key.dst.is_loopback() => Ok(Action::Untouched),
        flow::Found::Ours => forward(packet, tables, device, &headers, &flow),
        flow::Found::Elsewhere | flow::Found::Over(_) | flow::Found::None => Ok(Action::Untouched),
    }
}

/// Forwards a frame. If the next hop is not resolved, the frame is left to tc, untouched.
#[inline(always)]
fn forward<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Result<Action, Reason> {
    let Some((out, link)) = next_hop(tables, device, headers, flow) else {
        tables.count(Counter::LeftToTc);
        return Ok(Action::Untouched);
    };
    rewrite::apply(packet, headers, flow, Way::Neighbour)?;
    rewrite::link(packet, &link)?;
    tables.count(Counter::Forwarded);
    tables.count(Counter::ForwardedByXdp);
    Ok(Action::Transmit(out))
}

/// Returns the device and the MAC addresses by which XDP can send packets of `flow` on; `None` if
/// only tc can.
#[inline(always)]
fn next_hop<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Option<(IfIndex, [u8; 12])> {
    if way(flow) != Way::Neighbour || headers.ttl <= 1 {
        return None;
    }
    let route = tables.route(device, &flow.src, &flow.dst)?;
    let out = tables.device(route.device)?;
    let fits = headers.len <= out.mtu;
    let reachable = route.device == device || out.flags & Device::XDP_TARGET != 0;
    if fits && reachable {
        route.neighbour.map(|link| (route.device, link))
    } else {
        None
    }
}
