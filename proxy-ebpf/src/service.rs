//! From a destination to a backend: which frontend was meant, which interval of slots applies, which slot it is.

use proxy_common::event::Reason;
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::{Address, AddressFlags, Family, hash3};
use proxy_common::service::{Backend, BackendKey, EndpointKey, Service, ServiceFlags, ServiceKey};

use crate::{Origin, Stage, Tables};

/// The frontend that a packet's destination names: an address's own, or a nodePort where nodePorts are served (V8).
///
/// A cluster IP without such a port is an error, any other address without is nobody's business.
#[inline(always)]
pub fn select<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>) -> Result<Option<Service>, Reason> {
    if let Some(service) = tables.service(&ServiceKey::new(key.dst, key.dport, key.protocol)) {
        return Ok(Some(service));
    }
    let address = tables.address(&key.dst);
    if address.has(AddressFlags::NODE_PORTS) {
        return Ok(tables.service(&ServiceKey::new(F::Addr::ZERO, key.dport, key.protocol)));
    }
    if address.has(AddressFlags::CLUSTER_IP) { Err(Reason::UnknownPort) } else { Ok(None) }
}

/// V17: whether what a flow's packets ask for still leads to the flow's backend, for a client of some origin.
#[inline(always)]
pub fn still_leads<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    match select(tables, key) {
        Ok(Some(service)) => tables.slot(&EndpointKey::new(service.generation, flow.dst, flow.dport)).is_some(),
        Ok(None) | Err(_) => false,
    }
}

/// V16: a TCP packet that is no SYN and has no flow is never balanced. On a cluster IP it can mean nothing else and is dropped; on an
/// address of the host it may answer a connection of the host's own.
#[inline(always)]
pub fn not_opening(service: &Service) -> Result<Stage, Reason> {
    if service.has(ServiceFlags::CLUSTER_IP) { Err(Reason::NotSyn) } else { Ok(Stage::Untouched) }
}

/// V15: a backend of the interval that applies, by a keyed hash of the connection, so that every program on the path agrees.
#[inline(always)]
pub fn choose<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    service: &Service,
    origin: Origin,
    secret: u64,
) -> Result<Backend<F::Addr>, Reason> {
    let (first, len) = interval(service, origin)?;
    let ports = key.sport.word() << 16 | key.dport.word();
    let hash = hash3(key.src.fold(), key.dst.fold(), ports ^ u32::from(key.protocol.0), secret);
    let slot = first + ((u64::from(hash) * u64::from(len)) >> 32) as u32;
    let found = tables.backend(&BackendKey { generation: service.generation, slot });
    // A preallocated hash reuses elements at once: the generation tells whether this is still the slot that was meant.
    found.filter(|backend| backend.generation == service.generation).ok_or(Reason::BackendMissing)
}

/// The slots that may serve a client of `origin`: first and number (V5, V7, V11 and the table of verdicts).
#[inline(always)]
fn interval(service: &Service, origin: Origin) -> Result<(u32, u32), Reason> {
    let internal = service.has(ServiceFlags::CLUSTER_IP);
    let local = service.has(ServiceFlags::LOCAL) && (internal || origin == Origin::Outside);
    let len = if local { service.local_len } else { service.cluster_len };
    if len > 0 {
        return Ok((if local { 0 } else { service.cluster_first }, len));
    }
    if service.cluster_len == 0 {
        Err(Reason::NoBackend)
    } else if internal || service.has(ServiceFlags::LOCAL_DROP) {
        Err(Reason::AwaitLocalBackend)
    } else {
        Err(Reason::NoLocalBackend)
    }
}
