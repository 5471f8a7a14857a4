//! What happens to a packet: the entry functions, in the order in which a packet meets the rest of this library.
//!
//! Pure and `no_std`. The kernel reaches it through two traits, [`Packet`] and [`Tables`]; unit tests, fuzzers and `portway explain`
//! run the same functions over the host's [`fake`] of both.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod flow;
pub mod parse;
pub mod rewrite;
pub mod service;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use proxy_common::event::{Counter, Reason};
use proxy_common::flow::{Flow, FlowKey, Hook, Way};
use proxy_common::net::{Address, AddressFlags, Device, Family, IfIndex, LocalPod};
use proxy_common::service::{Backend, BackendKey, Config, Service, ServiceKey};

use parse::{Headers, Ip};

/// The bytes of one packet, from its link-layer header on.
pub trait Packet {
    /// The packet meets us before the kernel has a socket buffer for it (XDP): what cannot be finished is left to tc, untouched.
    const EARLY: bool;

    /// `T` at `offset` bytes; `None` beyond the end.
    fn load<T: Wire>(&self, offset: u32) -> Option<T>;
    /// Writes `value` at `offset` bytes; `None` beyond the end.
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()>;
    /// Corrects the TCP or UDP checksum at `offset` for a change of addresses and of ports, given as partial sums.
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()>;
    /// Cuts the packet to `len` bytes; `None` if the kernel refuses.
    fn truncate(&mut self, len: u32) -> Option<()>;
    /// Makes `room` bytes between the link-layer header and what follows it.
    fn insert(&mut self, room: u32) -> Option<()>;
}

/// What a checksum has to be corrected for.
#[derive(Clone, Copy)]
pub struct Change {
    /// Partial sum of the change of addresses (they count through the pseudo header).
    pub addresses: u32,
    /// Partial sum of the change of ports.
    pub ports: u32,
    /// UDP: 0 means "no checksum" and stays so, and is never the result.
    pub udp: bool,
    /// IPv6: no header checksum compensates the addresses.
    pub v6: bool,
}

/// Plain bytes: what may be copied from and to a packet.
///
/// # Safety
/// Any bytes are a value, and there is no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: plain bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: plain integers.
unsafe impl<const N: usize> Wire for [u32; N] {}
// SAFETY: repr(C), bytes and byte arrays only.
unsafe impl Wire for network_types::ip::Ipv4Hdr {}
// SAFETY: repr(C), bytes and byte arrays only.
unsafe impl Wire for network_types::ip::Ipv6Hdr {}
// SAFETY: repr(C, packed), byte arrays and a u16.
unsafe impl Wire for network_types::eth::EthHdr {}

/// Where a flow lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Answered flows: a plain hash that the agent sweeps.
    Established,
    /// Half-open flows: a small LRU, so that a flood evicts only the half-open (V18).
    Opening,
}

/// Why a flow could not be inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// Why a flow could not be promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPromoted {
    /// The LRU has evicted it.
    Gone,
    /// The table of established flows is full.
    Full,
}

/// Whether an entry that is there already is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// Only where there is none.
    New,
    /// In any case.
    Any,
}

/// A flow that is being opened.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Draft<A> {
    /// The key of the reply's entry.
    pub key: FlowKey<A>,
    /// The entry: first the reply's, then the forward one.
    pub flow: Flow<A>,
}

/// Where the kernel's routes lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The device to leave by.
    pub device: IfIndex,
    /// Destination and source MAC, where the neighbour is resolved.
    pub neighbour: Option<[u8; 12]>,
}

/// All that is looked up, recorded, timed or random.
pub trait Tables<F: Family> {
    /// The entry of a flow: the established one, else the half-open one.
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Table, Flow<F::Addr>)>;
    /// Whether a table has an entry for a flow.
    fn has_flow(&self, table: Table, key: &FlowKey<F::Addr>) -> bool;
    /// Copies a half-open flow's entry to the established ones, with this time and further bits of `State`.
    fn promote_flow(&self, key: &FlowKey<F::Addr>, now: u32, state: u8) -> Result<(), NotPromoted>;
    /// Records a flow.
    fn insert_flow(&self, table: Table, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>, how: Insert) -> Result<(), Refused>;
    /// Forgets a flow.
    fn remove_flow(&self, table: Table, key: &FlowKey<F::Addr>);
    /// Notes the time (jiffies) and further bits of `State` in a flow's entry, if it is there.
    fn note_flow(&self, table: Table, key: &FlowKey<F::Addr>, now: u32, state: u8);
    /// Room to build a flow in: IPv6's do not fit on the kernel's stack beside all else. The caller is its only user until it returns.
    #[expect(clippy::mut_from_ref, reason = "a scratch element of the kernel's, borrowed through a map that is shared")]
    fn draft(&self) -> Option<&mut Draft<F::Addr>>;
    /// A frontend.
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<Service>;
    /// A backend.
    fn backend(&self, key: &BackendKey) -> Option<Backend<F::Addr>>;
    /// What an address is to this node.
    fn address(&self, addr: &F::Addr) -> AddressFlags;
    /// A pod of this node.
    fn pod(&self, addr: &F::Addr) -> Option<LocalPod>;
    /// A device that packets leave by.
    fn device(&self, device: IfIndex) -> Option<Device>;
    /// The agent's settings.
    fn config(&self) -> Option<Config>;
    /// The kernel's route from `src` to `dst` for packets that arrived by `device`.
    fn route(&self, device: IfIndex, src: &F::Addr, dst: &F::Addr) -> Option<Route>;
    /// Low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Whether one more refusal may be sent: the ICMP errors that we make are rate-limited.
    fn may_refuse(&self) -> bool;
    /// Counts.
    fn count(&self, counter: Counter);
}

/// What becomes of a packet that is not dropped; a hook's one `match` makes it a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// None of ours, or not to be finished here: as it came, and programs after ours run.
    Untouched,
    /// Rewritten; goes on where it was going.
    Stack,
    /// Rewritten; into the pod behind this device.
    Pod(IfIndex),
    /// Rewritten; to the next hop of the route through this device.
    Neighbour(IfIndex),
    /// Rewritten with its link-layer header; leaves by this device as it is.
    Transmit(IfIndex),
}

/// Where a packet comes from, as far as Services care (V9, V11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From outside the node.
    Outside,
    /// From a pod of this node.
    Pod,
}

/// A packet that `device`, a node device or a tunnel, received: tc ingress.
#[inline(always)]
pub fn from_device<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    serve(packet, tables, device, Origin::Outside)
}

/// A packet that the pod behind `device` sent: tc ingress of the host side of its veth.
#[inline(always)]
pub fn from_pod<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    serve(packet, tables, device, Origin::Pod)
}

/// A packet that the stack or a bridge sends to the pod behind `device`: tc egress of the host side of its veth.
#[inline(always)]
pub fn to_pod<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, _device: IfIndex) -> Result<Action, Reason> {
    restore(packet, tables, Hook::ToPod)
}

/// A packet that this host sends through a node device: tc egress.
#[inline(always)]
pub fn to_device<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, _device: IfIndex) -> Result<Action, Reason> {
    restore(packet, tables, Hook::ToDevice)
}

/// A frame that `device` received, before the stack: XDP. Only flows that leave the node again; everything else is left to tc.
#[inline(always)]
pub fn early<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else { return Ok(Action::Untouched) };
    match flow::find(tables, &headers, Hook::FromDevice) {
        flow::Found::Ours(flow) => forward_early(packet, tables, device, &headers, &flow),
        flow::Found::Elsewhere | flow::Found::None => Ok(Action::Untouched),
    }
}

/// parse -> find flow -> select service -> choose backend -> open flow -> rewrite -> act.
#[inline(always)]
fn serve<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex, origin: Origin) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else { return Ok(Action::Untouched) };
    match translation(tables, device, &headers, origin) {
        Ok(Some(flow)) => forward(packet, tables, &headers, &flow),
        Ok(None) => Ok(Action::Untouched),
        Err(reason) if reason.refuses() => rewrite::refuse(packet, tables, device, &headers),
        Err(reason) => Err(reason),
    }
}

/// The flow that a packet belongs to or opens; `None` if it is none of ours, or not here.
#[inline(always)]
fn translation<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    origin: Origin,
) -> Result<Option<Flow<F::Addr>>, Reason> {
    let hook = match origin {
        Origin::Outside => Hook::FromDevice,
        Origin::Pod => Hook::FromPod,
    };
    match flow::find(tables, headers, hook) {
        flow::Found::Ours(flow) => Ok(Some(flow)),
        flow::Found::Elsewhere => Ok(None),
        flow::Found::None => open(tables, device, headers, origin, hook),
    }
}

/// Rewrites a packet of `flow` and sends it the flow's way.
#[inline(always)]
fn forward<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Result<Action, Reason> {
    rewrite::apply(packet, headers, flow, way(flow))?;
    tables.count(Counter::Forwarded);
    Ok(match way(flow) {
        Way::Stack => Action::Stack,
        Way::Pod => Action::Pod(flow.device),
        Way::Neighbour => Action::Neighbour(flow.device),
    })
}

/// A packet without a flow: `None` if it is for no Service.
#[inline(always)]
fn open<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    origin: Origin,
    hook: Hook,
) -> Result<Option<Flow<F::Addr>>, Reason> {
    let Some(service) = service::select(tables, &headers.key)? else { return Ok(None) };
    if !headers.opens() {
        return service::not_opening(&service);
    }
    let config = tables.config().unwrap_or_default();
    let backend = service::choose(tables, &headers.key, &service, origin, config.secret)?;
    let plan = flow::plan(tables, device, &headers.key, &backend, origin, hook)?;
    flow::open(tables, &headers.key, &service, &backend, &plan, &config).map(Some)
}

/// A packet on its way out of the stack: only the flows that went through the stack have an entry for these hooks.
#[inline(always)]
fn restore<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, hook: Hook) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else { return Ok(Action::Untouched) };
    let flow::Found::Ours(flow) = flow::find(tables, &headers, hook) else { return Ok(Action::Untouched) };
    if way(&flow) != Way::Stack {
        tables.count(Counter::Fallback);
    }
    rewrite::apply(packet, &headers, &flow, Way::Stack)?;
    tables.count(Counter::Forwarded);
    Ok(Action::Stack)
}

/// XDP decides before it writes: without a resolved next hop the frame goes on untouched, and tc finishes it.
#[inline(always)]
fn forward_early<F: Ip, P: Packet, T: Tables<F>>(
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
    if fits && reachable { route.neighbour.map(|link| (route.device, link)) } else { None }
}

#[inline(always)]
fn way<A: Address>(flow: &Flow<A>) -> Way {
    Way::from_number(flow.way)
}
