//! The seams: the traits that the library's surroundings implement, `kernel/` in the kernel and
//! `fake` on the host.

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
    /// Loads a `T` at `offset` bytes; `None` beyond the end.
    fn load<T: Wire>(&self, offset: u32) -> Option<T>;
    /// Stores `value` at `offset` bytes; `None` beyond the end.
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()>;
    /// Corrects the TCP or UDP checksum at `offset` bytes for a change of addresses and ports.
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()>;
    /// Corrects the kernel's sum of the whole packet, if it keeps one, by a partial sum: for a
    /// change that no checksum in the packet compensates.
    fn account(&mut self, change: u32);
    /// Cuts the packet to `len` bytes; `None` if the kernel refuses.
    fn truncate(&mut self, len: u32) -> Option<()>;
    /// Inserts `room` bytes behind the link-layer header.
    fn insert(&mut self, room: u32) -> Option<()>;
    /// Inserts `room` bytes for an outer IPv6 or IPv4 header; `None` if the kernel refuses, as for
    /// a packet that is already encapsulated.
    fn encapsulate(&mut self, room: u32, v6: bool) -> Option<()>;
    /// Removes `room` bytes behind the link-layer header; at least an IP header must be left.
    fn decapsulate(&mut self, room: u32) -> Option<()>;
    /// Returns the payload bytes of each segment that this packet will be cut into (GSO); 0 if it
    /// is not.
    fn segment(&self) -> u32;
    /// Returns true if a device received the packet, false if this host has made it.
    fn was_received(&self) -> bool;
    /// Returns true if the packet is an answer that a program made of another packet.
    fn is_answer_of_ours(&self) -> bool;
}

/// The change that a checksum is corrected for.
#[derive(Clone, Copy)]
pub struct Change {
    /// Partial sum of the change of addresses, which are part of the pseudo header.
    pub addresses: u32,
    /// Partial sum of the change of ports.
    pub ports: u32,
    /// UDP: checksum 0 means that there is none, and is never the result.
    pub udp: bool,
    /// IPv6: no header checksum compensates the change of addresses.
    pub v6: bool,
    /// Partial sum of the change that no checksum in the packet covers: IPv6's hop limit.
    pub uncovered: u32,
}

/// Plain bytes, which may be copied from and to a packet.
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

/// A table of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Answered flows: a plain hash that the agent sweeps.
    Established,
    /// Half-open flows: a small LRU, so that a flood evicts only the half-open (V18).
    Opening,
}

/// The reason for which a flow was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// The reason for which a flow was not promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPromoted {
    /// The LRU has evicted it.
    Gone,
    /// The table of established flows is full.
    Full,
}

/// The treatment of an entry that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// Keep it, and fail.
    New,
    /// Replace it.
    Any,
}

/// A route of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The device to leave by.
    pub device: IfIndex,
    /// Destination and source MAC, if the neighbour is resolved.
    pub neighbour: Option<[u8; 12]>,
}

/// Lookups of NetworkPolicy, which the agent's commands make, too.
pub trait Verdicts<F: Family> {
    /// A reference to a set of ports, in place or copied.
    type Ports<'a>: Deref<Target = PortSet>
    where
        Self: 'a;

    /// Returns the rows of a pod by its id.
    fn rows(&self, pod_id: u32) -> PodRows;
    /// Returns a word of the directory of classes.
    fn word(&self, node: u32, byte: u8) -> Word;
    /// Returns the class of a single address, if it has one of its own.
    fn exact_class(&self, addr: &F::Addr) -> Option<u32>;
    /// Returns the class of the longest prefix that contains an address.
    fn prefix_class(&self, addr: &F::Addr) -> u32;
    /// Returns the number of the port set of a class, in the row that begins at `chunk`.
    fn verdict(&self, chunk: u32, class: u32) -> u32;
    /// Returns the number of the port set of a class, in a row without chunks.
    fn hashed_verdict(&self, key: &VerdictKey) -> u32;
    /// Returns a set of ports.
    fn ports(&self, set: u32) -> Option<Self::Ports<'_>>;
    /// Returns true if a set of ports contains a port: [`crate::policy::has`], which the kernel's
    /// binary runs as a subprogram.
    #[inline(always)]
    fn have(&self, set: u32, protocol: Protocol, port: u16) -> bool
    where
        Self: Sized,
    {
        has(self, set, protocol, port)
    }
}

/// The maps, routes, clock and randomness.
pub trait Tables<F: Family>: Verdicts<F> {
    /// Returns the entry of a flow: the established one, else the half-open one.
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Table, Flow<F::Addr>)>;
    /// Copies the entry of a flow to `into`: the stack has no room for another one.
    fn copy_flow(&self, key: &FlowKey<F::Addr>, into: &mut Flow<F::Addr>) -> Option<Table>;
    /// Returns the `State` bits of an established flow's entry.
    fn state(&self, key: &FlowKey<F::Addr>) -> Option<u8>;
    /// Returns the table that has the entry of `mate`, if that entry is the other direction of
    /// `key`. While a flow is promoted, its entries are in different tables.
    fn table_of_mate(&self, key: &FlowKey<F::Addr>, mate: &FlowKey<F::Addr>) -> Option<Table>;
    /// Copies a half-open flow's entry to the established ones, with this time (jiffies) and
    /// further `State` bits.
    fn promote_flow(&self, key: &FlowKey<F::Addr>, now: u32, state: u8) -> Result<(), NotPromoted>;
    /// Inserts an entry of a flow.
    fn insert_flow(
        &self,
        table: Table,
        key: &FlowKey<F::Addr>,
        flow: &Flow<F::Addr>,
        how: Insert,
    ) -> Result<(), Refused>;
    /// Removes an entry of a flow.
    fn remove_flow(&self, table: Table, key: &FlowKey<F::Addr>);
    /// Sets the time (jiffies) and further `State` bits in a flow's entry, if it exists.
    fn touch_flow(&self, table: Table, key: &FlowKey<F::Addr>, now: u32, state: u8);
    /// Returns the service port of a frontend.
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<Service>;
    /// Returns the backend of a slot.
    fn backend(&self, key: &BackendKey) -> Option<Backend<F::Addr>>;
    /// Returns the slot of an endpoint, if the generation has it.
    fn slot(&self, key: &EndpointKey<F::Addr>) -> Option<u32>;
    /// Returns an entry of a part of a Maglev table, if the part exists.
    fn maglev(&self, key: &MaglevKey, entry: u32) -> Option<u16>;
    /// Returns true if a client is in the source ranges of a service port (V3).
    fn is_source(&self, key: &SourceKey<F::Addr>) -> bool;
    /// Returns the kind of the longest prefix that contains an address.
    fn range(&self, addr: &F::Addr) -> RangeKind;
    /// Returns the endpoint that a client has affinity to (V13).
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity<F::Addr>>;
    /// Records the endpoint that a client has affinity to.
    fn stick(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity<F::Addr>);
    /// Returns the bits of an address.
    fn address(&self, addr: &F::Addr) -> AddressFlags;
    /// Returns the pod of this node that has an address.
    fn pod(&self, addr: &F::Addr) -> Option<LocalPod>;
    /// Returns a device that packets leave by.
    fn device(&self, device: IfIndex) -> Option<Device>;
    /// Returns the settings.
    fn config(&self) -> Option<Config>;
    /// Looks up the kernel's route from `src` to `dst` for packets that arrived by `device`.
    fn route(&self, device: IfIndex, src: &F::Addr, dst: &F::Addr) -> Option<Route>;
    /// Returns the low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Returns 32 random bits.
    fn random(&self) -> u32;
    /// Increments one of 256 shared counters (the low byte of `counter`) and returns the old value;
    /// concurrent increments may be lost.
    fn turn(&self, counter: u32) -> u32;
    /// Takes a token for one ICMP error; returns false if the rate limit is reached.
    fn may_answer(&self) -> bool;
    /// Increments a counter.
    fn count(&self, counter: Counter);
    /// Counts a packet that was answered instead of sent on. The hook counts dropped ones.
    fn count_answered(&self, reason: Reason);
    /// Returns the pod behind a device, if it is known.
    fn veth(&self, device: IfIndex) -> Option<Veth>;
    /// Returns the ports of a datagram, if its first fragment was seen.
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<u32>;
    /// Records the ports of a datagram by its first fragment.
    fn record_fragment(&self, key: &FragmentKey<F::Addr>, ports: u32);
    /// Reports a denied connection: once in a while for each client, server and port.
    fn report_denied(&self, key: &FlowKey<F::Addr>, reason: Reason);
    /// Logs that a packet of `key` opened a flow.
    fn log_opened(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>);
    /// Logs that a packet of `key` is not sent on.
    fn log_stopped(&self, key: &FlowKey<F::Addr>, reason: Reason);
}
