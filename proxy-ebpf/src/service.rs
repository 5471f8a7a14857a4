//! From a destination to a backend: the frontend, the interval of slots that applies, the slot.

use proxy_common::checksum::hash3;
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, Hook};
use proxy_common::net::{Address, Family, Port};
use proxy_common::node::{AddressFlags, RangeKind};
use proxy_common::reason::Reason;
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MAGLEV_CHUNK, MaglevKey, Service,
    ServiceFlags, ServiceKey, SourceKey, maglev_entries,
};

use crate::{Stage, Tables};

/// The place of the client of a new connection, which traffic policies depend on (V9, V11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A pod or a process of this node: an external traffic policy does not bind it.
    Local,
    /// The sender of a packet that a node device received.
    Remote,
}

impl Client {
    /// Returns the place of the client of a packet at `hook`.
    #[inline(always)]
    pub const fn at(hook: Hook) -> Self {
        match hook {
            Hook::FromDevice => Self::Remote,
            Hook::FromPod | Hook::ToPod | Hook::ToDevice => Self::Local,
        }
    }
}

/// Returns the service port of a packet's destination: of the address and port, or of the nodePort
/// if nodePorts are served at the address (V8).
///
/// An unknown port of a cluster IP is an error, and so is an address of the Service ranges that no
/// Service has. Any other address returns `None`.
#[inline(always)]
pub fn select<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
) -> Result<Option<Service>, Reason> {
    if let Some(service) = tables.service(&ServiceKey::new(key.dst, key.dport, key.protocol)) {
        return Ok(Some(service));
    }
    let address = tables.address(&key.dst);
    if address.has(AddressFlags::NODE_PORTS) {
        return Ok(by_node_port(tables, key));
    }
    if address.has(AddressFlags::CLUSTER_IP) {
        return Err(Reason::UnknownPort);
    }
    // V20: an address of this host is delivered to the host, even if it is in the Service ranges.
    let taken = AddressFlags::HOST | AddressFlags::FOREIGN;
    if address.0 & taken == 0 && tables.range(&key.dst) == RangeKind::SERVICES {
        Err(Reason::NoSuchService)
    } else {
        Ok(None)
    }
}

/// Returns the service port for a packet of a process of this host: nodePorts are also served at
/// loopback addresses (V21).
#[inline(always)]
pub fn select_here<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
) -> Result<Option<Service>, Reason> {
    if key.dst.is_loopback() {
        Ok(by_node_port(tables, key))
    } else {
        select(tables, key)
    }
}

/// Returns the service port of a nodePort.
#[inline(always)]
fn by_node_port<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F::Addr>) -> Option<Service> {
    tables.service(&ServiceKey::new(F::Addr::ZERO, key.dport, key.protocol))
}

/// Returns the service port for a packet that another node encapsulated: its destination may be a
/// nodePort of that node.
#[inline(always)]
pub fn select_elsewhere<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
) -> Option<Service> {
    tables
        .service(&ServiceKey::new(key.dst, key.dport, key.protocol))
        .or_else(|| by_node_port(tables, key))
}

/// Returns the backend that another node chose, if the Service has it.
#[inline(always)]
pub fn backend_at<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    addr: &F::Addr,
    port: Port,
) -> Result<Backend<F::Addr>, Reason> {
    let slot = tables
        .slot(&EndpointKey::new(service.generation, *addr, port))
        .ok_or(Reason::NotServedHere)?;
    backend(tables, service, slot)
}

/// V17: returns true if the frontend of a flow still leads to the flow's backend, for any client. A
/// slot that is only in the set for policy Local counts only if the frontend's policy is Local.
#[inline(always)]
pub fn still_leads_to<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    match select_here(tables, key) {
        Ok(Some(service)) => {
            let slot = tables.slot(&EndpointKey::new(service.generation, flow.dst, flow.dport));
            let serves = |slot: u32| {
                service.has(ServiceFlags::LOCAL)
                    || slot.wrapping_sub(service.cluster_first) < service.cluster_len
            };
            slot.is_some_and(serves)
        }
        Ok(None) | Err(_) => false,
    }
}

/// V16: a TCP packet that is not a SYN and has no flow is never balanced. To a cluster IP it is
/// dropped. To an address of the host it passes: it may be a reply to a connection of the host.
#[inline(always)]
pub fn not_opening(service: &Service) -> Result<Stage, Reason> {
    if service.has(ServiceFlags::CLUSTER_IP) {
        Err(Reason::NotSyn)
    } else {
        Ok(Stage::Untouched)
    }
}

/// Chooses the backend of a new connection: the one that the client has affinity to (V13), else by
/// a keyed hash of the connection (V15). `affine` is the client of the affinity, which need not be
/// the packet's source.
#[inline(always)]
pub fn choose<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    affine: F::Addr,
    service: &Service,
    client: Client,
    config: &Config,
) -> Result<Backend<F::Addr>, Reason> {
    if service.has(ServiceFlags::SOURCE_RANGES)
        && !tables.is_source(&SourceKey {
            service: service.id,
            addr: key.src,
        })
    {
        return Err(Reason::SourceNotAllowed);
    }
    let slots = interval(tables, service, client, &key.src)?;
    let sticky = AffinityKey {
        client: affine,
        service: service.id,
    };
    let stays = if service.affinity == 0 {
        None
    } else {
        affine_slot(tables, &sticky, service, slots, config)
    };
    let slot = match stays {
        Some(slot) => slot,
        None => choice(tables, key, service, slots, config.secret),
    };
    let backend = backend(tables, service, slot)?;
    if service.affinity == 0 {
        return Ok(backend);
    }
    tables.stick(
        &sticky,
        &Affinity {
            addr: backend.addr,
            seen: tables.now(),
            port: backend.port,
            zero: 0,
        },
    );
    Ok(backend)
}

/// V13: returns the slot of the endpoint that the client has affinity to, if the affinity has not
/// expired, and the endpoint is in the set that applies.
#[inline(always)]
pub(crate) fn affine_slot<F: Family, T: Tables<F>>(
    tables: &T,
    client: &AffinityKey<F::Addr>,
    service: &Service,
    (first, len): (u32, u32),
    config: &Config,
) -> Option<u32> {
    let affinity = tables.affinity(client)?;
    if tables.now().wrapping_sub(affinity.seen) > service.affinity.wrapping_mul(config.hz) {
        return None;
    }
    let slot = tables.slot(&EndpointKey::new(
        service.generation,
        affinity.addr,
        affinity.port,
    ))?;
    if slot.wrapping_sub(first) < len {
        Some(slot)
    } else {
        None
    }
}

/// Returns the slot by a hash of the connection. With Maglev all nodes choose the same: the hash
/// has neither the node's key nor, for a nodePort, the node's address.
#[inline(always)]
fn choice<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F::Addr>,
    service: &Service,
    slots: (u32, u32),
    secret: u64,
) -> u32 {
    let ports = key.sport.word() << 16 | key.dport.word();
    let alike = service.has(ServiceFlags::MAGLEV);
    let dst = if alike && service.has(ServiceFlags::NODE_PORT) {
        0
    } else {
        key.dst.fold()
    };
    let secret = if alike { 0 } else { secret };
    let hash = hash3(
        key.src.fold(),
        dst,
        ports ^ u32::from(key.protocol.0),
        secret,
    );
    let by_table = if alike {
        by_maglev(tables, service, slots, hash)
    } else {
        None
    };
    match by_table {
        Some(slot) => slot,
        None => slots.0 + scale(hash, slots.1),
    }
}

/// Returns the slot by Maglev's table; `None` if a part of the table is missing or being replaced.
#[inline(always)]
fn by_maglev<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    slots: (u32, u32),
    hash: u32,
) -> Option<u32> {
    let cluster = slots == (service.cluster_first, service.cluster_len);
    let set = if cluster { MaglevKey::CLUSTER } else { 0 } | if F::V6 { MaglevKey::V6 } else { 0 };
    let entry = scale(hash, maglev_entries(slots.1));
    let chunk = entry / MAGLEV_CHUNK as u32;
    let key = MaglevKey {
        generation: service.generation,
        set,
        chunk: chunk as u16,
    };
    let index = u32::from(tables.maglev(&key, entry % MAGLEV_CHUNK as u32)?);
    if index < slots.1 {
        Some(slots.0 + index)
    } else {
        None
    }
}

/// Scales a hash to a number below `of`.
#[inline(always)]
fn scale(hash: u32, of: u32) -> u32 {
    ((u64::from(hash) * u64::from(of)) >> 32) as u32
}

/// Returns the backend of a slot.
#[inline(always)]
pub(crate) fn backend<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    slot: u32,
) -> Result<Backend<F::Addr>, Reason> {
    let found = tables.backend(&BackendKey {
        generation: service.generation,
        slot,
    });
    // A preallocated hash reuses elements at once: the generation shows if this is the wanted slot.
    found
        .filter(|backend| backend.generation == service.generation)
        .ok_or(Reason::BackendMissing)
}

/// Returns the slots that may serve a client: first and number (V5, V7, V11 and the table of
/// verdicts). An external policy of Local holds for clients outside the cluster; pods of other
/// nodes are inside.
#[inline(always)]
pub(crate) fn interval<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    client: Client,
    src: &F::Addr,
) -> Result<(u32, u32), Reason> {
    let internal = service.has(ServiceFlags::CLUSTER_IP);
    let local = service.has(ServiceFlags::LOCAL)
        && (internal || client == Client::Remote && tables.range(src) != RangeKind::PODS);
    let len = if local {
        service.local_len
    } else {
        service.cluster_len
    };
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
