//! The NetworkPolicy verdict on a packet: from its flow to both ends' rows.
//!
//! Each packet is judged by the forward direction of its connection as policies are now; nothing is
//! cached (P25, P30).

use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, Hook, Role, Way};
use proxy_common::net::{Family, IfIndex, Port};
use proxy_common::reason::Reason;

use crate::parse::Ip;
use crate::parse::others::Other;
use crate::policy::{UNKNOWN_POD, allowed};
use crate::{Scratch, Stage, Table, Tables, flow};

/// Finds the flow of a packet that has no entry in its direction, and no Service.
///
/// It may be the other direction of a flow that is translated elsewhere, or of a flow whose
/// first entry was evicted. Else it is the first packet of a connection that is followed from here.
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
        // If others translated it, the entry of the first direction has the sender (P28, P29).
        (scratch.headers.key.src, scratch.headers.key.sport) = (other.dst, other.dport);
        as_it_is(scratch, role | turned);
        return Stage::Judge;
    }
    if error {
        // It is about a packet of no flow: judged like other protocols, by its own key (P26).
        scratch.headers.key = scratch.reply;
    }
    as_it_is(scratch, Role::FORWARD | Role::UNTRANSLATED);
    if scratch.own != 0 {
        scratch.flow.role |= Role::OWN_NODE;
    }
    scratch.fresh = u32::from(!error && scratch.headers.opens());
    Stage::Judge
}

/// Writes the flow of a packet that is not translated into the scratch.
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

/// Judges a packet of the flow in the scratch by the flow's forward direction. An allowed packet is
/// sent on, rewritten or as it is.
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
                flow::forget(tables, Table::Opening, &scratch.headers.key, &mate);
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
    // A packet from device to device has no pod of this node at either end.
    if hook == Hook::FromDevice && !pod_way {
        return Ok(());
    }
    let forward = flow.is(Role::FORWARD);
    let (client, server, port) = if forward {
        (&key.src, &flow.dst, flow.dport)
    } else {
        (&flow.dst, &key.src, key.sport)
    };
    // P19: a pod may reach itself.
    if *client == *server {
        return Ok(());
    }
    let (protocol, port) = (key.protocol, port.number());
    // Near is the pod behind this device, or the one that the packet is redirected to. Far is the
    // other end, only where the packet does not pass that end's own hook.
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
    let (client_pod, server_pod) = match hook {
        Hook::FromDevice if forward => (0, far),
        Hook::FromDevice => (far, 0),
        Hook::FromPod | Hook::ToPod | Hook::ToDevice if near_is_client => (near, far),
        Hook::FromPod | Hook::ToPod | Hook::ToDevice => (far, near),
    };
    if !allowed(
        tables,
        client_pod,
        |rows| rows.egress,
        server,
        protocol,
        port,
    ) {
        return Err(if client_pod == UNKNOWN_POD {
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
    Err(if server_pod == UNKNOWN_POD {
        Reason::PodUnknown
    } else {
        Reason::DeniedIngress
    })
}

#[inline(always)]
fn pod_id<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> u32 {
    tables.pod(addr).map_or(0, |pod| pod.pod_id)
}

/// Begins to follow the connection of a packet that was allowed.
#[inline(always)]
pub fn follow<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    flow::follow(tables, scratch);
    Stage::Untouched
}

/// Returns the ends of a denied connection: the client, and the server after translation.
pub fn denied<F: Family>(scratch: &Scratch<F>) -> FlowKey<F::Addr> {
    let Scratch { flow, headers, .. } = scratch;
    let key = &headers.key;
    if flow.is(Role::FORWARD) {
        FlowKey::new(key.protocol, key.src, key.sport, flow.dst, flow.dport)
    } else {
        FlowKey::new(key.protocol, flow.dst, Port::default(), key.src, key.sport)
    }
}
