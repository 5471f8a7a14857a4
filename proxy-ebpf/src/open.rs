//! The opening of a flow: selects the Service, chooses the backend, plans the way, records the
//! flow.

use proxy_common::flow::Hook;
use proxy_common::net::{Address as _, IfIndex};
use proxy_common::reason::Reason;
use proxy_common::service::ServiceFlags;

use crate::forward::may_forward;
use crate::parse::Ip;
use crate::service::Client;
use crate::{Packet, Scratch, Stage, Tables, flow, plan, process, service};

/// Opens a flow for a packet that has none, if a Service serves its destination.
#[inline(always)]
pub fn open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    match try_open(packet, tables, device, hook, scratch) {
        Ok(stage) => stage,
        Err(reason) => scratch.refuse(reason),
    }
}

#[inline(always)]
fn try_open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Result<Stage, Reason> {
    let encapsulated = hook == Hook::FromDevice && scratch.encapsulated != 0;
    // V21: a process of this host reaches the same Services as a pod. P18: pods admit it.
    let process = hook == Hook::FromDevice && scratch.by_gate != 0;
    let selected = if encapsulated {
        service::select_elsewhere(tables, &scratch.headers.key)
    } else if process {
        service::select_here(tables, &scratch.headers.key)?
    } else {
        service::select(tables, &scratch.headers.key)?
    };
    let Some(service) = selected else {
        return Ok(Stage::Untranslated);
    };
    // An encapsulated packet names its backend: a connection that this node has lost goes on.
    if !scratch.headers.opens() && (!encapsulated || scratch.headers.reset()) {
        return service::not_opening(&service);
    }
    let config = tables.config().unwrap_or_default();
    scratch.own = u32::from(process && process::has_own_source(tables, &scratch.headers.key));
    let key = &scratch.headers.key;
    let backend = if encapsulated {
        service::backend_at(tables, &service, &scratch.backend, scratch.port)
    } else if process {
        // V13: all processes of the host are one client, whichever source address they use.
        let node = F::Addr::ZERO;
        service::choose(tables, key, node, &service, Client::Local, &config)
    } else {
        service::choose(tables, key, key.src, &service, Client::at(hook), &config)
    }?;
    let plan = if process {
        plan::for_process(tables, device, key, &backend)
    } else if encapsulated {
        plan::for_encapsulated(tables, device, key, &backend, &config)
    } else {
        plan::plan(
            tables,
            device,
            key,
            &backend,
            hook,
            service.has(ServiceFlags::DSR),
            &config,
        )
    }?;
    let stage = may_forward(packet, tables, scratch, plan.way(), plan.device());
    if stage == Stage::Judge {
        flow::open(tables, scratch, &service, &backend, &plan, &config)?;
        scratch.rewrite = 1;
        scratch.fresh = 1;
        tables.log_opened(&scratch.headers.key, &scratch.flow);
        if plan.has_inner() {
            scratch.masquerade = plan.masquerade();
            return Ok(Stage::Inner);
        }
    }
    Ok(stage)
}

/// Opens the flow that masquerades a packet on its way out of the stack: its first flow was just
/// opened, and leads through the stack to another node.
#[inline(always)]
pub fn inner<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    let config = tables.config().unwrap_or_default();
    match flow::open_inner(tables, scratch, &config) {
        Ok(()) => Stage::Judge,
        Err(reason) => scratch.refuse(reason),
    }
}
