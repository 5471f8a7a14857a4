//! What the library asks of its surroundings: the bytes of a packet, and the tables. In the kernel the files of `kernel/` answer, on the host `fake`.

use core::ops::Deref;

use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, FragmentKey};
use proxy_common::net::{Family, IfIndex, Protocol};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};
use proxy_common::policy::{PodRows, PortSet, VerdictKey, Word};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MaglevKey, Service, ServiceKey,
    SourceKey,
};

use crate::policy::has;

/// The bytes of one packet, from its link-layer header on.
pub trait Packet {
    /// `T` at `offset` bytes; `None` beyond the end.
    fn load<T: Wire>(&self, offset: u32) -> Option<T>;
    /// Writes `value` at `offset` bytes; `None` beyond the end.
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()>;
    /// Corrects the TCP or UDP checksum at `offset` for a change of addresses and of ports, given as partial sums.
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()>;
    /// Tells the kernel, where it keeps a sum of the whole packet, of a change (a partial sum) that no checksum in the packet compensates.
    fn account(&mut self, change: u32);
    /// Cuts the packet to `len` bytes; `None` if the kernel refuses.
    fn truncate(&mut self, len: u32) -> Option<()>;
    /// Makes `room` bytes between the link-layer header and what follows it.
    fn insert(&mut self, room: u32) -> Option<()>;
    /// The same for the header of a packet that carries this one, IPv6's or IPv4's; `None` where it cannot be, as of one that already carries another.
    fn encapsulate(&mut self, room: u32, v6: bool) -> Option<()>;
    /// Takes `room` bytes away from behind the link-layer header; at least the IP header of the packet must be left.
    fn decapsulate(&mut self, room: u32) -> Option<()>;
    /// Bytes of payload of each of the packets that this one will be cut into (GSO); 0 if it goes as it is.
    fn segment(&self) -> u32;
    /// Whether it came in by a device; else this host has made it.
    fn was_received(&self) -> bool;
    /// Whether it is an answer that we have made of another packet, on its way back.
    fn is_answer_of_ours(&self) -> bool;
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
    /// Partial sum of the change of what no checksum in the packet covers: IPv6's hop limit.
    pub uncovered: u32,
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

/// Where the kernel's routes lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The device to leave by.
    pub device: IfIndex,
    /// Destination and source MAC, where the neighbour is resolved.
    pub neighbour: Option<[u8; 12]>,
}

/// What NetworkPolicy says: of the programs' lookups those that the agent's commands make as well.
pub trait Verdicts<F: Family> {
    /// A set of ports, in place or read.
    type Ports<'a>: Deref<Target = PortSet>
    where
        Self: 'a;

    /// The policy of the pod of a slot.
    fn rows(&self, pod_id: u32) -> PodRows;
    /// A word of the directory of classes.
    fn word(&self, node: u32, byte: u8) -> Word;
    /// The class of just this address.
    fn exact_class(&self, addr: &F::Addr) -> Option<u32>;
    /// The class of the longest prefix that has an address.
    fn prefix_class(&self, addr: &F::Addr) -> u32;
    /// The number of the ports that a row allows towards a class, the row being named by its first chunk.
    fn verdict(&self, chunk: u32, class: u32) -> u32;
    /// The same of a row that has no chunks.
    fn hashed_verdict(&self, key: &VerdictKey) -> u32;
    /// A set of ports.
    fn ports(&self, set: u32) -> Option<Self::Ports<'_>>;
    /// Whether a set of ports has a port: [`crate::policy::has`], which the kernel's binary runs as a subprogram.
    #[inline(always)]
    fn have(&self, set: u32, protocol: Protocol, port: u16) -> bool
    where
        Self: Sized,
    {
        has(self, set, protocol, port)
    }
}

/// All that is looked up, recorded, timed or random.
pub trait Tables<F: Family>: Verdicts<F> {
    /// The entry of a flow: the established one, else the half-open one.
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Table, Flow<F::Addr>)>;
    /// The same, with the entry left in `into`: the stack has no room for another.
    fn copy_flow(&self, key: &FlowKey<F::Addr>, into: &mut Flow<F::Addr>) -> Option<Table>;
    /// Bits of `State` of an established flow's entry.
    fn state(&self, key: &FlowKey<F::Addr>) -> Option<u8>;
    /// The table that has the entry of `mate`, if that is the other direction of `key`; while a flow is promoted the two are apart.
    fn table_of_mate(&self, key: &FlowKey<F::Addr>, mate: &FlowKey<F::Addr>) -> Option<Table>;
    /// Copies a half-open flow's entry to the established ones, with this time and further bits of `State`.
    fn promote_flow(&self, key: &FlowKey<F::Addr>, now: u32, state: u8) -> Result<(), NotPromoted>;
    /// Records a flow.
    fn insert_flow(
        &self,
        table: Table,
        key: &FlowKey<F::Addr>,
        flow: &Flow<F::Addr>,
        how: Insert,
    ) -> Result<(), Refused>;
    /// Forgets a flow.
    fn remove_flow(&self, table: Table, key: &FlowKey<F::Addr>);
    /// Notes the time (jiffies) and further bits of `State` in a flow's entry, if it is there.
    fn touch_flow(&self, table: Table, key: &FlowKey<F::Addr>, now: u32, state: u8);
    /// A frontend.
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<Service>;
    /// A backend.
    fn backend(&self, key: &BackendKey) -> Option<Backend<F::Addr>>;
    /// The slot of an endpoint, if the generation has it.
    fn slot(&self, key: &EndpointKey<F::Addr>) -> Option<u32>;
    /// An entry of a part of Maglev's table, if there is such a part.
    fn maglev(&self, key: &MaglevKey, entry: u32) -> Option<u16>;
    /// Whether a client is in the source ranges of a service port (V3).
    fn is_source(&self, key: &SourceKey<F::Addr>) -> bool;
    /// What the longest prefix says that has an address.
    fn range(&self, addr: &F::Addr) -> RangeKind;
    /// The endpoint that a client stays with (V13).
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity<F::Addr>>;
    /// Lets a client stay with an endpoint.
    fn stick(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity<F::Addr>);
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
    /// How often this was asked before, roughly: for one of 256 counters (the low byte of `counter`) that packets of all CPUs share.
    fn turn(&self, counter: u32) -> u32;
    /// Whether one more ICMP error may be sent: those that we make are rate-limited.
    fn may_answer(&self) -> bool;
    /// Counts.
    fn count(&self, counter: Counter);
    /// Counts a packet that was answered instead of sent on; those that are dropped the hook counts.
    fn count_answered(&self, reason: Reason);
    /// The pod behind a device, if that is known.
    fn veth(&self, device: IfIndex) -> Option<Veth>;
    /// The ports of a datagram whose first fragment was seen.
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<u32>;
    /// Remembers the ports of a datagram by its first fragment.
    fn record_fragment(&self, key: &FragmentKey<F::Addr>, ports: u32);
    /// A connection was denied: told once in a while for each client, server and port.
    fn report_denied(&self, key: &FlowKey<F::Addr>, reason: Reason);
    /// For the log: a flow was opened by a packet of `key`.
    fn log_opened(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>);
    /// For the log: a packet of `key` is not sent on.
    fn log_stopped(&self, key: &FlowKey<F::Addr>, reason: Reason);
}
