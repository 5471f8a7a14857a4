//! The host's side of the two traits: a packet in a vector, tables in ordered maps. For tests, fuzzers and `portway explain`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::vec::Vec;

use proxy_common::checksum::checksum_update;
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, FragmentKey};
use proxy_common::net::{Address, Family, IfIndex, V6};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};
use proxy_common::policy::{CHUNK_CLASSES, PodRows, PortSet, VerdictKey, Word};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MaglevChunk, MaglevKey, Service,
    ServiceKey, SourceKey,
};

use proxy_common::net::{Port, Protocol};
use proxy_common::socket::{Peer, PeerKey};

use crate::socket::Sockets;
use crate::{Change, Insert, NotPromoted, Packet, Refused, Route, Table, Tables, Verdicts, Wire};

/// A packet in memory, with all checksums finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// From the link-layer header on.
    pub bytes: Vec<u8>,
    /// This host has made it.
    pub from_host: bool,
}

impl Bytes {
    /// A packet that came in by a device.
    pub fn received(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            from_host: false,
        }
    }
}

impl Packet for Bytes {
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(offset as usize..)?.get(..size_of::<T>())?;
        // SAFETY: as many bytes as a T has, and any bytes are a T.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        let bytes = self
            .bytes
            .get_mut(offset as usize..)?
            .get_mut(..size_of::<T>())?;
        // SAFETY: as many bytes as a T has.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(*value) };
        Some(())
    }
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(offset)?);
        if change.udp && old == 0 {
            return Some(());
        }
        let fix = |checksum, diff| match checksum_update(checksum, diff) {
            0 if change.udp => 0xffff,
            new => new,
        };
        self.store(
            offset,
            &fix(fix(old, change.addresses), change.ports).to_ne_bytes(),
        )
    }
    fn account(&mut self, _change: u32) {}
    fn truncate(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }
    fn insert(&mut self, room: u32) -> Option<()> {
        let at = crate::parse::LINK as usize;
        self.bytes
            .splice(at..at, core::iter::repeat_n(0, room as usize));
        Some(())
    }
    fn encapsulate(&mut self, room: u32, _v6: bool) -> Option<()> {
        self.insert(room)
    }
    fn decapsulate(&mut self, room: u32) -> Option<()> {
        let (at, room) = (crate::parse::LINK as usize, room as usize);
        let v6 = crate::parse::ethertype(self)? == V6::ETHERTYPE;
        let least = if v6 { 40 } else { 20 };
        if self.bytes.len() < at + room + least {
            return None;
        }
        self.bytes.drain(at..at + room);
        Some(())
    }
    fn segment(&self) -> u32 {
        0
    }
    fn was_received(&self) -> bool {
        !self.from_host
    }
    fn is_answer_of_ours(&self) -> bool {
        false
    }
}

/// A table of flows.
pub type Flows<F> = BTreeMap<FlowKey<<F as Family>::Addr>, Flow<<F as Family>::Addr>>;

/// Whom clients stay with, by client and service port.
pub type Affinities<F> = BTreeMap<AffinityKey<<F as Family>::Addr>, Affinity<<F as Family>::Addr>>;

/// What is remembered of sockets.
pub type Peers<F> = BTreeMap<PeerKey<<F as Family>::Addr>, Peer<<F as Family>::Addr>>;

/// The tables of one family in memory; every field is the test's to fill and to read.
#[derive(Clone, Debug)]
pub struct Memory<F: Family> {
    /// Frontends.
    pub services: BTreeMap<ServiceKey<F::Addr>, Service>,
    /// Slots.
    pub backends: BTreeMap<BackendKey, Backend<F::Addr>>,
    /// Source ranges by service port: prefixes of addresses, in bits.
    pub sources: BTreeSet<(SourceKey<F::Addr>, u32)>,
    /// `MAGLEV`.
    pub maglev: BTreeMap<MaglevKey, MaglevChunk>,
    /// What addresses are by their prefixes, these in bits.
    pub ranges: BTreeMap<(F::Addr, u32), RangeKind>,
    /// Whom clients stay with.
    pub affinity: RefCell<Affinities<F>>,
    /// What addresses are.
    pub addresses: BTreeMap<F::Addr, AddressFlags>,
    /// Local pods.
    pub pods: BTreeMap<F::Addr, LocalPod>,
    /// Policies by slot.
    pub rows: BTreeMap<u32, PodRows>,
    /// Devices whose pods are known.
    pub veths: BTreeMap<IfIndex, Veth>,
    /// The directory of classes, by node and byte.
    pub directory: BTreeMap<(u32, u8), Word>,
    /// Classes of single addresses.
    pub exact: BTreeMap<F::Addr, u32>,
    /// Classes of prefixes, these in bits.
    pub prefixes: BTreeMap<(F::Addr, u32), u32>,
    /// Numbers of port sets, by chunk and class within it.
    pub matrix: BTreeMap<(u32, u32), u16>,
    /// Numbers of port sets of rows without chunks.
    pub verdicts: BTreeMap<VerdictKey, u32>,
    /// Sets of ports by number.
    pub port_sets: BTreeMap<u32, PortSet>,
    /// Ports of fragmented datagrams.
    pub fragments: RefCell<BTreeMap<FragmentKey<F::Addr>, u32>>,
    /// Connections that were denied, in order.
    pub denied: RefCell<Vec<(FlowKey<F::Addr>, Reason)>>,
    /// Devices.
    pub devices: BTreeMap<IfIndex, Device>,
    /// Routes by destination.
    pub routes: BTreeMap<F::Addr, Route>,
    /// Settings.
    pub config: Config,
    /// Jiffies.
    pub now: u32,
    /// What the next call for randomness returns; counts up.
    pub random: Cell<u32>,
    /// Turns taken, by counter.
    pub turns: RefCell<BTreeMap<u8, u32>>,
    /// How many refusals are left.
    pub refusals: Cell<u32>,
    /// Established flows.
    pub established: RefCell<Flows<F>>,
    /// Half-open flows.
    pub opening: RefCell<Flows<F>>,
    /// How many flows `established` takes.
    pub capacity: usize,
    /// Lookups of flows so far.
    pub lookups: Cell<u32>,
    /// What was counted.
    pub counted: RefCell<BTreeMap<Counter, u32>>,
    /// What is remembered of sockets.
    pub peers: RefCell<Peers<F>>,
    /// Addresses and ports that sockets of this host have.
    pub taken: BTreeSet<(Protocol, F::Addr, Port)>,
    /// Packets that were answered instead of sent on.
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
    /// The inverse of `backends`.
    pub fn slots(&self) -> BTreeMap<EndpointKey<F::Addr>, u32> {
        let mut slots = BTreeMap::new();
        for (key, backend) in &self.backends {
            slots
                .entry(EndpointKey::new(key.generation, backend.addr, backend.port))
                .or_insert(key.slot);
        }
        slots
    }
    /// How many packets were answered for `reason`.
    pub fn answered(&self, reason: Reason) -> u32 {
        self.answered.borrow().get(&reason).copied().unwrap_or(0)
    }
    /// How often `counter` was counted.
    pub fn counted(&self, counter: Counter) -> u32 {
        self.counted.borrow().get(&counter).copied().unwrap_or(0)
    }
    /// A service port with `backends` (all of them for both policies), and its frontends with their flags.
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
        // Like the kernel's: the half-open entry is changed in place, then copied.
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

/// What the longest prefix says that has an address.
fn longest<A: Address, V: Copy>(prefixes: &BTreeMap<(A, u32), V>, addr: &A) -> Option<V> {
    let around = prefixes
        .iter()
        .filter(|((range, bits), _)| within(range, *bits, addr));
    around
        .max_by_key(|((_, bits), _)| *bits)
        .map(|(_, value)| *value)
}

/// Whether an address begins with the first `bits` of another.
fn within<A: Address>(range: &A, bits: u32, addr: &A) -> bool {
    let number = |addr: &A| match addr.ip() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits == 0 || (number(range) ^ number(addr)) >> (128 - bits.min(128)) == 0
}

/// What `bpf_fib_lookup` does not look up, as source or destination (the kernel's `rt6_need_strict`).
fn stays_on_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
