//! The traits on the host: tables in ordered maps, and packets in vectors. For tests and fuzzers.

mod packet;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::vec::Vec;

use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, FragmentKey};
use proxy_common::net::{Address, Family, IfIndex};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};
use proxy_common::policy::{CHUNK_CLASSES, PodRows, PortSet, VerdictKey, Word};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MaglevChunk, MaglevKey, Service,
    ServiceKey, SourceKey,
};

use proxy_common::net::{Port, Protocol};
use proxy_common::socket::{Peer, PeerKey};

pub use packet::Bytes;

use crate::socket::Sockets;
use crate::{Insert, NotPromoted, Refused, Route, Table, Tables, Verdicts};

/// A table of flows.
pub type Flows<F> = BTreeMap<FlowKey<<F as Family>::Addr>, Flow<<F as Family>::Addr>>;

/// Affinity by client and service port.
pub type Affinities<F> = BTreeMap<AffinityKey<<F as Family>::Addr>, Affinity<<F as Family>::Addr>>;

/// Addresses of sockets.
pub type Peers<F> = BTreeMap<PeerKey<<F as Family>::Addr>, Peer<<F as Family>::Addr>>;

/// The tables of one family in memory; tests write and read every field.
#[derive(Clone, Debug)]
pub struct Memory<F: Family> {
    /// Frontends.
    pub services: BTreeMap<ServiceKey<F::Addr>, Service>,
    /// Backends by generation and slot.
    pub backends: BTreeMap<BackendKey, Backend<F::Addr>>,
    /// Source ranges by service port; prefix lengths in bits of the address.
    pub sources: BTreeSet<(SourceKey<F::Addr>, u32)>,
    /// Maglev tables.
    pub maglev: BTreeMap<MaglevKey, MaglevChunk>,
    /// Kinds of prefixes, by address and length in bits.
    pub ranges: BTreeMap<(F::Addr, u32), RangeKind>,
    /// Affinity.
    pub affinity: RefCell<Affinities<F>>,
    /// Bits of addresses.
    pub addresses: BTreeMap<F::Addr, AddressFlags>,
    /// Pods of this node.
    pub pods: BTreeMap<F::Addr, LocalPod>,
    /// Rows by pod id.
    pub rows: BTreeMap<u32, PodRows>,
    /// Devices of known pods.
    pub veths: BTreeMap<IfIndex, Veth>,
    /// The directory of classes, by node and byte.
    pub directory: BTreeMap<(u32, u8), Word>,
    /// Classes of single addresses.
    pub exact: BTreeMap<F::Addr, u32>,
    /// Classes of prefixes, by address and length in bits.
    pub prefixes: BTreeMap<(F::Addr, u32), u32>,
    /// Numbers of port sets, by chunk and class within it.
    pub matrix: BTreeMap<(u32, u32), u16>,
    /// Numbers of port sets, of rows without chunks.
    pub verdicts: BTreeMap<VerdictKey, u32>,
    /// Sets of ports by number.
    pub port_sets: BTreeMap<u32, PortSet>,
    /// Ports of fragmented datagrams.
    pub fragments: RefCell<BTreeMap<FragmentKey<F::Addr>, u32>>,
    /// Denied connections, in order.
    pub denied: RefCell<Vec<(FlowKey<F::Addr>, Reason)>>,
    /// Devices.
    pub devices: BTreeMap<IfIndex, Device>,
    /// Routes by destination.
    pub routes: BTreeMap<F::Addr, Route>,
    /// Settings.
    pub config: Config,
    /// Jiffies.
    pub now: u32,
    /// The next random number; each call increments it.
    pub random: Cell<u32>,
    /// Turns taken, by counter.
    pub turns: RefCell<BTreeMap<u8, u32>>,
    /// Number of ICMP errors that may still be sent.
    pub refusals: Cell<u32>,
    /// Established flows.
    pub established: RefCell<Flows<F>>,
    /// Half-open flows.
    pub opening: RefCell<Flows<F>>,
    /// Capacity of `established`.
    pub capacity: usize,
    /// Number of lookups of flows so far.
    pub lookups: Cell<u32>,
    /// Counters.
    pub counted: RefCell<BTreeMap<Counter, u32>>,
    /// Addresses of sockets.
    pub peers: RefCell<Peers<F>>,
    /// Addresses and ports of this host's sockets.
    pub taken: BTreeSet<(Protocol, F::Addr, Port)>,
    /// Number of answered packets, by reason.
    pub answered: RefCell<BTreeMap<Reason, u32>>,
}

impl<F: Family> Default for Memory<F> {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            maglev: BTreeMap::new(),
            sources: BTreeSet::new(),
            ranges: BTreeMap::new(),
            affinity: RefCell::default(),
            addresses: BTreeMap::new(),
            pods: BTreeMap::new(),
            rows: BTreeMap::new(),
            veths: BTreeMap::new(),
            directory: BTreeMap::new(),
            exact: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            matrix: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            port_sets: BTreeMap::new(),
            fragments: RefCell::default(),
            denied: RefCell::default(),
            devices: BTreeMap::new(),
            routes: BTreeMap::new(),
            config: Config {
                secret: 0x0123_4567_89ab_cdef,
                masquerade_first: 1024,
                masquerade_len: 28976,
                hz: 250,
                opening_timeout: 30,
                udp_timeout: 120,
                least_mtu: 0,
                flags: 0,
                gate: IfIndex::NONE,
                zero: 0,
            },
            now: 1_000_000,
            random: Cell::new(0),
            turns: RefCell::default(),
            refusals: Cell::new(u32::MAX),
            established: RefCell::default(),
            opening: RefCell::default(),
            capacity: usize::MAX,
            lookups: Cell::new(0),
            counted: RefCell::default(),
            peers: RefCell::default(),
            taken: BTreeSet::new(),
            answered: RefCell::default(),
        }
    }
}

impl<F: Family> Memory<F> {
    fn table(&self, table: Table) -> &RefCell<Flows<F>> {
        match table {
            Table::Established => &self.established,
            Table::Opening => &self.opening,
        }
    }
    /// Returns the inverse of `backends`.
    pub fn slots(&self) -> BTreeMap<EndpointKey<F::Addr>, u32> {
        let mut slots = BTreeMap::new();
        for (key, backend) in &self.backends {
            slots
                .entry(EndpointKey::new(key.generation, backend.addr, backend.port))
                .or_insert(key.slot);
        }
        slots
    }
    /// Returns the number of packets that were answered for `reason`.
    pub fn answered(&self, reason: Reason) -> u32 {
        self.answered.borrow().get(&reason).copied().unwrap_or(0)
    }
    /// Returns the value of `counter`.
    pub fn counted(&self, counter: Counter) -> u32 {
        self.counted.borrow().get(&counter).copied().unwrap_or(0)
    }
    /// Adds a service port with `backends`, all of them for both policies, and its frontends with
    /// their flags.
    pub fn serve(
        &mut self,
        id: u32,
        frontends: &[(ServiceKey<F::Addr>, u32)],
        backends: &[Backend<F::Addr>],
    ) {
        let len = backends.len() as u32;
        for (key, flags) in frontends {
            let service = Service {
                flags: *flags,
                id,
                generation: id,
                affinity: 0,
                local_len: len,
                cluster_first: 0,
                cluster_len: len,
            };
            self.services.insert(*key, service);
        }
        for (slot, backend) in backends.iter().enumerate() {
            let key = BackendKey {
                generation: id,
                slot: slot as u32,
            };
            self.backends.insert(
                key,
                Backend {
                    generation: id,
                    ..*backend
                },
            );
        }
    }
}

impl<F: Family> Verdicts<F> for Memory<F> {
    type Ports<'a>
        = &'a PortSet
    where
        Self: 'a;

    fn rows(&self, pod_id: u32) -> PodRows {
        self.rows.get(&pod_id).copied().unwrap_or_default()
    }
    fn word(&self, node: u32, byte: u8) -> Word {
        self.directory
            .get(&(node, byte))
            .copied()
            .unwrap_or_default()
    }
    fn exact_class(&self, addr: &F::Addr) -> Option<u32> {
        self.exact.get(addr).copied()
    }
    fn prefix_class(&self, addr: &F::Addr) -> u32 {
        longest(&self.prefixes, addr).unwrap_or_default()
    }
    fn verdict(&self, chunk: u32, class: u32) -> u32 {
        let place = (chunk + class / CHUNK_CLASSES, class % CHUNK_CLASSES);
        self.matrix.get(&place).copied().unwrap_or_default().into()
    }
    fn hashed_verdict(&self, key: &VerdictKey) -> u32 {
        self.verdicts.get(key).copied().unwrap_or_default()
    }
    fn ports(&self, set: u32) -> Option<&PortSet> {
        self.port_sets.get(&set)
    }
}

impl<F: Family> Tables<F> for Memory<F> {
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Table, Flow<F::Addr>)> {
        self.lookups.set(self.lookups.get() + 1);
        if let Some(flow) = self.established.borrow().get(key) {
            return Some((Table::Established, *flow));
        }
        self.lookups.set(self.lookups.get() + 1);
        self.opening
            .borrow()
            .get(key)
            .map(|flow| (Table::Opening, *flow))
    }
    fn copy_flow(&self, key: &FlowKey<F::Addr>, into: &mut Flow<F::Addr>) -> Option<Table> {
        let (table, flow) = self.flow(key)?;
        *into = flow;
        Some(table)
    }
    fn state(&self, key: &FlowKey<F::Addr>) -> Option<u8> {
        self.established.borrow().get(key).map(|flow| flow.state)
    }
    fn table_of_mate(&self, key: &FlowKey<F::Addr>, mate: &FlowKey<F::Addr>) -> Option<Table> {
        let of = |flows: &Flows<F>| flows.get(mate).map(|flow| flow.mate(key.protocol) == *key);
        let (established, opening) = (of(&self.established.borrow()), of(&self.opening.borrow()));
        let (table, is_mate) = established
            .map(|mate| (Table::Established, mate))
            .or(opening.map(|mate| (Table::Opening, mate)))?;
        is_mate.then_some(table)
    }
    fn promote_flow(&self, key: &FlowKey<F::Addr>, now: u32, state: u8) -> Result<(), NotPromoted> {
        // As in the kernel: the half-open entry is changed in place, then copied.
        self.touch_flow(Table::Opening, key, now, state);
        let flow = *self.opening.borrow().get(key).ok_or(NotPromoted::Gone)?;
        self.insert_flow(Table::Established, key, &flow, Insert::Any)
            .map_err(|_| NotPromoted::Full)
    }
    fn insert_flow(
        &self,
        table: Table,
        key: &FlowKey<F::Addr>,
        flow: &Flow<F::Addr>,
        how: Insert,
    ) -> Result<(), Refused> {
        let mut flows = self.table(table).borrow_mut();
        if how == Insert::New && flows.contains_key(key) {
            return Err(Refused::Exists);
        }
        if table == Table::Established && flows.len() >= self.capacity && !flows.contains_key(key) {
            return Err(Refused::Full);
        }
        flows.insert(*key, *flow);
        Ok(())
    }
    fn remove_flow(&self, table: Table, key: &FlowKey<F::Addr>) {
        self.table(table).borrow_mut().remove(key);
    }
    fn touch_flow(&self, table: Table, key: &FlowKey<F::Addr>, now: u32, state: u8) {
        if let Some(flow) = self.table(table).borrow_mut().get_mut(key) {
            flow.seen = now;
            flow.state |= state;
        }
    }
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<Service> {
        self.services.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend<F::Addr>> {
        self.backends.get(key).copied()
    }
    fn slot(&self, key: &EndpointKey<F::Addr>) -> Option<u32> {
        self.slots().get(key).copied()
    }
    fn maglev(&self, key: &MaglevKey, entry: u32) -> Option<u16> {
        self.maglev.get(key)?.get(entry as usize).copied()
    }
    fn is_source(&self, key: &SourceKey<F::Addr>) -> bool {
        self.sources.iter().any(|(range, bits)| {
            range.service == key.service && within(&range.addr, *bits, &key.addr)
        })
    }
    fn range(&self, addr: &F::Addr) -> RangeKind {
        longest(&self.ranges, addr).unwrap_or_default()
    }
    fn veth(&self, device: IfIndex) -> Option<Veth> {
        self.veths.get(&device).copied()
    }
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<u32> {
        self.fragments.borrow().get(key).copied()
    }
    fn record_fragment(&self, key: &FragmentKey<F::Addr>, ports: u32) {
        self.fragments.borrow_mut().insert(*key, ports);
    }
    fn report_denied(&self, key: &FlowKey<F::Addr>, reason: Reason) {
        self.denied.borrow_mut().push((*key, reason));
    }
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity<F::Addr>> {
        self.affinity.borrow().get(key).copied()
    }
    fn stick(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity<F::Addr>) {
        self.affinity.borrow_mut().insert(*key, *affinity);
    }
    fn address(&self, addr: &F::Addr) -> AddressFlags {
        self.addresses.get(addr).copied().unwrap_or_default()
    }
    fn pod(&self, addr: &F::Addr) -> Option<LocalPod> {
        self.pods.get(addr).copied()
    }
    fn device(&self, device: IfIndex) -> Option<Device> {
        self.devices.get(&device).copied()
    }
    fn config(&self) -> Option<Config> {
        Some(self.config)
    }
    fn route(&self, _device: IfIndex, src: &F::Addr, dst: &F::Addr) -> Option<Route> {
        if stays_on_link(src.ip()) || stays_on_link(dst.ip()) {
            return None;
        }
        self.routes.get(dst).copied()
    }
    fn now(&self) -> u32 {
        self.now
    }
    fn random(&self) -> u32 {
        self.random
            .replace(self.random.get().wrapping_add(0x1234_5677))
    }
    fn turn(&self, counter: u32) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(counter as u8).or_default();
        *turn = turn.wrapping_add(1);
        turn.wrapping_sub(1)
    }
    fn may_answer(&self) -> bool {
        let left = self.refusals.get();
        self.refusals.set(left.saturating_sub(1));
        left > 0
    }
    fn count(&self, counter: Counter) {
        *self.counted.borrow_mut().entry(counter).or_default() += 1;
    }
    fn count_answered(&self, reason: Reason) {
        *self.answered.borrow_mut().entry(reason).or_default() += 1;
    }
    fn log_opened(&self, _key: &FlowKey<F::Addr>, _flow: &Flow<F::Addr>) {}
    fn log_stopped(&self, _key: &FlowKey<F::Addr>, _reason: Reason) {}
}

impl<F: Family> Sockets<F> for Memory<F> {
    fn peer(&self, key: &PeerKey<F::Addr>) -> Option<Peer<F::Addr>> {
        self.peers.borrow().get(key).copied()
    }
    fn remember(&self, key: &PeerKey<F::Addr>, peer: &Peer<F::Addr>) {
        self.peers.borrow_mut().insert(*key, *peer);
    }
    fn is_taken(&self, key: &FlowKey<F::Addr>) -> bool {
        self.taken.contains(&(key.protocol, key.dst, key.dport))
    }
}

/// Returns the value of the longest prefix that contains an address.
fn longest<A: Address, V: Copy>(prefixes: &BTreeMap<(A, u32), V>, addr: &A) -> Option<V> {
    let around = prefixes
        .iter()
        .filter(|((range, bits), _)| within(range, *bits, addr));
    around
        .max_by_key(|((_, bits), _)| *bits)
        .map(|(_, value)| *value)
}

/// Returns true if an address begins with the first `bits` of another.
fn within<A: Address>(range: &A, bits: u32, addr: &A) -> bool {
    let number = |addr: &A| match addr.ip() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits == 0 || (number(range) ^ number(addr)) >> (128 - bits.min(128)) == 0
}

/// Returns true for an address that `bpf_fib_lookup` does not look up, as source or destination
/// (the kernel's `rt6_need_strict`).
fn stays_on_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
