//! Sockets of this node's processes: they are sent to a backend when they connect or send, so that
//! none of their packets is rewritten (V13, V21).
//!
//! Owns `PEERS*`. The hooks have checked the network namespace before they call these functions.

use proxy_common::checksum::hash3;
use proxy_common::flow::FlowKey;
use proxy_common::net::{Address, Family, Port, Protocol};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, EndpointKey, Service, ServiceFlags, ServiceKey, SourceKey,
};
use proxy_common::socket::{Peer, PeerKey};

use crate::Tables;
use crate::service::{self, Client};

/// The request of a process: a socket is to reach an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask<A> {
    /// The address.
    pub addr: A,
    /// Its port.
    pub port: Port,
    /// The protocol; only TCP and UDP are served.
    pub protocol: Protocol,
    /// The kernel's cookie of the socket, low word first.
    pub cookie: [u32; 2],
}

/// Lookups of sockets, in addition to [`Tables`].
pub trait Sockets<F: Family>: Tables<F> {
    /// Returns the other address of a socket.
    fn peer(&self, key: &PeerKey<F::Addr>) -> Option<Peer<F::Addr>>;
    /// Records the other address of a socket.
    fn remember(&self, key: &PeerKey<F::Addr>, peer: &Peer<F::Addr>);
    /// Returns true if a socket of this host takes a TCP segment or UDP datagram of this key.
    fn is_taken(&self, key: &FlowKey<F::Addr>) -> bool;
}

/// Handles connect, and sendmsg with an address: returns the backend's address, or `None` if the
/// address is no Service's. An error fails the system call at once (table of verdicts).
#[inline(always)]
pub fn direct<F: Family, T: Sockets<F>>(
    tables: &T,
    ask: &Ask<F::Addr>,
) -> Result<Option<(F::Addr, Port)>, Reason> {
    if ask.protocol != Protocol::TCP && ask.protocol != Protocol::UDP {
        return Ok(None);
    }
    let Some(service) = select(tables, ask)? else {
        return Ok(None);
    };
    // V3: the agent adds the load balancer's address to ranges that contain this node's address.
    if service.has(ServiceFlags::SOURCE_RANGES)
        && !tables.is_source(&SourceKey {
            service: service.id,
            addr: ask.addr,
        })
    {
        return Err(Reason::SourceNotAllowed);
    }
    // V11: a process of this node reaches the same backends as a pod of this node.
    let slots = service::interval(tables, &service, Client::Local, &F::Addr::ZERO)?;
    if let Some(before) = backend_before(tables, ask, &service, slots) {
        return Ok(Some(before));
    }
    let backend = choose(tables, ask, &service, slots)?;
    remember(tables, ask, &service, &backend);
    Ok(Some((backend.addr, backend.port)))
}

/// Handles recvmsg and getpeername: returns the address that the process asked for, in place of a
/// backend's.
#[inline(always)]
pub fn asked<F: Family, T: Sockets<F>>(
    tables: &T,
    cookie: [u32; 2],
    addr: F::Addr,
    port: Port,
) -> Option<(F::Addr, Port)> {
    let peer = tables.peer(&PeerKey::backend(cookie, addr, port))?;
    Some((peer.addr, peer.port))
}

/// Returns the service port that is asked for. V21: at loopback addresses, and at the unspecified
/// one, nodePorts are served if no socket listens.
#[inline(always)]
fn select<F: Family, T: Sockets<F>>(
    tables: &T,
    ask: &Ask<F::Addr>,
) -> Result<Option<Service>, Reason> {
    let unspecified = ask.addr == F::Addr::ZERO;
    if !unspecified && !ask.addr.is_loopback() {
        let (zero, none) = (F::Addr::ZERO, Port::default());
        return service::select(
            tables,
            &FlowKey::new(ask.protocol, zero, none, ask.addr, ask.port),
        );
    }
    let Some(service) = tables.service(&ServiceKey::new(F::Addr::ZERO, ask.port, ask.protocol))
    else {
        return Ok(None);
    };
    let at = if unspecified {
        F::Addr::LOOPBACK
    } else {
        ask.addr
    };
    // From port 0, which no connection has: only a listening or bound socket takes it.
    let key = FlowKey::new(ask.protocol, F::Addr::LOOPBACK, Port::NONE, at, ask.port);
    if tables.is_taken(&key) {
        Ok(None)
    } else {
        Ok(Some(service))
    }
}

/// Returns the backend that a UDP socket already uses for the address, if it may still be used: the
/// socket is the connection.
#[inline(always)]
fn backend_before<F: Family, T: Sockets<F>>(
    tables: &T,
    ask: &Ask<F::Addr>,
    service: &Service,
    (first, len): (u32, u32),
) -> Option<(F::Addr, Port)> {
    if ask.protocol != Protocol::UDP {
        return None;
    }
    let peer = tables.peer(&PeerKey::asked(ask.cookie, ask.addr, ask.port))?;
    let slot = tables.slot(&EndpointKey::new(service.generation, peer.addr, peer.port))?;
    // The entry may be evicted, or belong to another address that led to the same backend.
    let back = tables.peer(&PeerKey::backend(ask.cookie, peer.addr, peer.port))?;
    let whole = back.addr == ask.addr && back.port == ask.port && back.service == service.id;
    if whole && slot.wrapping_sub(first) < len {
        Some((peer.addr, peer.port))
    } else {
        None
    }
}

/// Chooses the backend that the node has affinity to (V13), else one by a keyed hash of the socket
/// (V15).
#[inline(always)]
fn choose<F: Family, T: Sockets<F>>(
    tables: &T,
    ask: &Ask<F::Addr>,
    service: &Service,
    slots: (u32, u32),
) -> Result<Backend<F::Addr>, Reason> {
    let config = tables.config().unwrap_or_default();
    if service.affinity == 0 {
        return service::backend(tables, service, by_hash(ask, slots, config.secret));
    }
    // All processes of the node are one client, whichever source address they use.
    let node = AffinityKey {
        client: F::Addr::ZERO,
        service: service.id,
    };
    let slot = match service::affine_slot(tables, &node, service, slots, &config) {
        Some(slot) => slot,
        None => by_hash(ask, slots, config.secret),
    };
    let backend = service::backend(tables, service, slot)?;
    tables.stick(
        &node,
        &Affinity {
            addr: backend.addr,
            seen: tables.now(),
            port: backend.port,
            zero: 0,
        },
    );
    Ok(backend)
}

/// Returns the slot by a keyed hash of the socket and the address.
#[inline(always)]
fn by_hash<A: Address>(ask: &Ask<A>, (first, len): (u32, u32), secret: u64) -> u32 {
    let [low, high] = ask.cookie;
    let hash = hash3(
        low,
        high ^ ask.addr.fold(),
        ask.port.word() ^ u32::from(ask.protocol.0) << 16,
        secret,
    );
    first + ((u64::from(hash) * u64::from(len)) >> 32) as u32
}

/// Records both addresses of a socket.
#[inline(always)]
fn remember<F: Family, T: Sockets<F>>(
    tables: &T,
    ask: &Ask<F::Addr>,
    service: &Service,
    backend: &Backend<F::Addr>,
) {
    let protocol = u16::from(ask.protocol.0);
    let asked = Peer {
        addr: ask.addr,
        service: service.id,
        port: ask.port,
        protocol,
    };
    tables.remember(
        &PeerKey::backend(ask.cookie, backend.addr, backend.port),
        &asked,
    );
    if ask.protocol == Protocol::UDP {
        let to = Peer {
            addr: backend.addr,
            service: service.id,
            port: backend.port,
            protocol,
        };
        tables.remember(&PeerKey::asked(ask.cookie, ask.addr, ask.port), &to);
    }
    tables.count(Counter::SocketsDirected);
}
