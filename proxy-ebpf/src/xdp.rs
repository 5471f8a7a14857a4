//! What XDP does: sends on what leaves the node again, and decides before it writes. All else goes on untouched, and tc finishes it.

use proxy_common::flow::{Flow, Hook, Way};
use proxy_common::net::{Address as _, IfIndex};
use proxy_common::node::Device;
use proxy_common::reason::{Counter, Reason};

use crate::forward::way;
use crate::parse::{self, Headers, Ip};
use crate::{Action, Packet, Scratch, Tables, flow, rewrite};

/// A frame that `device` received, before the stack: XDP. Only flows that leave the node again; everything else is left to tc.
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
        // What plays this host to itself is left to its stack, which drops it.
        flow::Found::Ours if headers.key.dst.is_loopback() => Ok(Action::Untouched),
        flow::Found::Ours => forward(packet, tables, device, &headers, &flow),
        flow::Found::Elsewhere | flow::Found::Over(_) | flow::Found::None => Ok(Action::Untouched),
    }
}

/// XDP decides before it writes: without a resolved next hop the frame goes on untouched, and tc finishes it.
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

/// The device and the MAC addresses by which XDP can send packets of `flow` on; `None` where only tc can.
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
