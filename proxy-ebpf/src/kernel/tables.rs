//! The kernel as the library's tables, over the maps.

use core::mem::zeroed;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, bpf_fib_lookup};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, FragmentKey};
use proxy_common::net::{Addr4, Addr6, Address, IfIndex, Port, Protocol, V4};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};
use proxy_common::policy::{CHUNK_CLASSES, NO_CLASS, PodRows, PortSet, VerdictKey, Word};
use proxy_common::reason::{Counter, Denial, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MaglevKey, SOURCE_KEY_BITS, Service,
    ServiceKey, SourceKey,
};
use proxy_ebpf::parse::Ip;
use proxy_ebpf::{Insert, NotPromoted, Refused, Route, Table, Tables, Verdicts, policy};

use super::helpers::{count, jiffies, take_answer, take_turn};
use super::maps::{
    CLASSES4, CLASSES6, CONFIG, DENIALS, DEVICES, FIB, MAGLEV, MATRIX, Maps, PORTSETS, ROWS,
    VERDICTS, VETHS,
};
use super::values::{Kernel, LogRecord, OPENED, Reported, STOPPED};

/// Seconds in which one denial is reported.
const REPORT_SECONDS: u32 = 10;
/// `EEXIST` as helpers return it.
const EEXIST: i32 = -17;

/// The parts of the tables that differ between the families.
pub trait KernelAddress: Address {
    /// Returns the class of a single address.
    fn exact_class(&self) -> Option<u32>;
    /// Writes the family and both addresses into the arguments of a route lookup.
    fn ask_route(fib: &mut bpf_fib_lookup, src: &Self, dst: &Self);
}

impl KernelAddress for Addr4 {
    #[inline(always)]
    fn exact_class(&self) -> Option<u32> {
        None
    }
    #[inline(always)]
    fn ask_route(fib: &mut bpf_fib_lookup, src: &Self, dst: &Self) {
        fib.family = 2;
        fib.__bindgen_anon_3.ipv4_src = src.word();
        fib.__bindgen_anon_4.ipv4_dst = dst.word();
    }
}

impl KernelAddress for Addr6 {
    #[inline(always)]
    fn exact_class(&self) -> Option<u32> {
        // SAFETY: not preallocated, so elements are freed only after a grace period.
        unsafe { CLASSES6.get(self) }.copied()
    }
    #[inline(always)]
    fn ask_route(fib: &mut bpf_fib_lookup, src: &Self, dst: &Self) {
        fib.family = 10;
        fib.__bindgen_anon_3.ipv6_src = src.words();
        fib.__bindgen_anon_4.ipv6_dst = dst.words();
    }
}

impl<F: Ip> Verdicts<F> for Kernel
where
    Self: Maps<F, F::Addr>,
    F::Addr: KernelAddress,
{
    type Ports<'a> = &'static PortSet;

    #[inline(always)]
    fn rows(&self, pod_id: u32) -> PodRows {
        ROWS.get(pod_id).copied().unwrap_or_default()
    }
    #[inline(always)]
    fn word(&self, node: u32, byte: u8) -> Word {
        CLASSES4
            .get(node)
            .map_or(Word::default(), |words| words[usize::from(byte)])
    }
    #[inline(always)]
    fn exact_class(&self, addr: &F::Addr) -> Option<u32> {
        addr.exact_class()
    }
    #[inline(always)]
    fn prefix_class(&self, addr: &F::Addr) -> u32 {
        Self::prefixes()
            .get(whole(*addr))
            .copied()
            .unwrap_or(NO_CLASS)
    }
    #[inline(always)]
    fn verdict(&self, chunk: u32, class: u32) -> u32 {
        let (chunk, index) = (
            chunk.wrapping_add(class / CHUNK_CLASSES),
            class % CHUNK_CLASSES,
        );
        MATRIX
            .get(chunk)
            .map_or(PortSet::NONE, |classes| u32::from(classes[index as usize]))
    }
    #[inline(always)]
    fn hashed_verdict(&self, key: &VerdictKey) -> u32 {
        VERDICTS.get(whole(*key)).copied().unwrap_or(PortSet::NONE)
    }
    #[inline(always)]
    fn ports(&self, set: u32) -> Option<&'static PortSet> {
        PORTSETS.get(set)
    }
    #[inline(always)]
    fn have(&self, set: u32, protocol: Protocol, port: u16) -> bool {
        ports_have(set, protocol.0.into(), port.into()) != 0
    }
}

/// Returns a trie's key for a lookup by all bits of a value.
#[inline(always)]
fn whole<K>(key: K) -> Prefix<K> {
    Prefix::new(8 * size_of::<K>() as u32, key)
}

/// Runs [`policy::has`] as a subprogram, which is verified once for both ends and all stages.
#[unsafe(no_mangle)]
extern "C" fn ports_have(set: u32, protocol: u32, port: u32) -> u32 {
    let tables = Kernel {
        context: ptr::null_mut(),
    };
    let protocol = Protocol(protocol as u8);
    u32::from(policy::has::<V4, _>(&tables, set, protocol, port as u16))
}

impl<F: Ip> Tables<F> for Kernel
where
    Self: Maps<F, F::Addr>,
    F::Addr: KernelAddress,
{
    #[inline(always)]
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Table, Flow<F::Addr>)> {
        let (table, found) = match Self::flows().get_ptr(key) {
            Some(found) => (Table::Established, found),
            None => (Table::Opening, Self::opening().get_ptr(key)?),
        };
        // SAFETY: the element lives as long as the program runs, and is copied at once. The copy is
        // torn only if the element is reused meanwhile; the next packet then reads it anew.
        Some((table, unsafe { *found }))
    }
    #[inline(always)]
    fn copy_flow(&self, key: &FlowKey<F::Addr>, into: &mut Flow<F::Addr>) -> Option<Table> {
        let (table, found) = match Self::flows().get_ptr(key) {
            Some(found) => (Table::Established, found),
            None => (Table::Opening, Self::opening().get_ptr(key)?),
        };
        // SAFETY: as above.
        *into = unsafe { *found };
        Some(table)
    }
    #[inline(always)]
    fn state(&self, key: &FlowKey<F::Addr>) -> Option<u8> {
        let flow = Self::flows().get_ptr(key)?;
        // SAFETY: as above.
        Some(unsafe { (*flow).state })
    }
    #[inline(always)]
    fn table_of_mate(&self, key: &FlowKey<F::Addr>, mate: &FlowKey<F::Addr>) -> Option<Table> {
        let (table, flow) = match Self::flows().get_ptr(mate) {
            Some(flow) => (Table::Established, flow),
            None => (Table::Opening, Self::opening().get_ptr(mate)?),
        };
        // SAFETY: as above; compared in place, because the stack has no room for a copy.
        let flow = unsafe { &*flow };
        let same = flow.dst == key.src
            && flow.src == key.dst
            && flow.dport == key.sport
            && flow.sport == key.dport;
        if same { Some(table) } else { None }
    }
    #[inline(always)]
    fn promote_flow(&self, key: &FlowKey<F::Addr>, now: u32, state: u8) -> Result<(), NotPromoted> {
        let flow = Self::opening().get_ptr_mut(key).ok_or(NotPromoted::Gone)?;
        // SAFETY: as above; the kernel copies the value out of the element before this program
        // ends.
        let flow = unsafe { &mut *flow };
        flow.seen = now;
        flow.state |= state;
        Self::flows()
            .insert(key, flow, BPF_ANY.into())
            .map_err(|_| NotPromoted::Full)
    }
    #[inline(always)]
    fn insert_flow(
        &self,
        table: Table,
        key: &FlowKey<F::Addr>,
        flow: &Flow<F::Addr>,
        how: Insert,
    ) -> Result<(), Refused> {
        let flags = match how {
            Insert::New => BPF_NOEXIST,
            Insert::Any => BPF_ANY,
        };
        let done = match table {
            Table::Established => Self::flows().insert(key, flow, flags.into()),
            Table::Opening => Self::opening().insert(key, flow, flags.into()),
        };
        done.map_err(|errno| {
            if errno == EEXIST {
                Refused::Exists
            } else {
                Refused::Full
            }
        })
    }
    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey<F::Addr>) {
        // An error means that the LRU or the sweep was faster.
        let _gone = match table {
            Table::Established => Self::flows().remove(key),
            Table::Opening => Self::opening().remove(key),
        };
    }
    #[inline(always)]
    fn touch_flow(&self, table: Table, key: &FlowKey<F::Addr>, now: u32, state: u8) {
        let found = match table {
            Table::Established => Self::flows().get_ptr_mut(key),
            Table::Opening => Self::opening().get_ptr_mut(key),
        };
        if let Some(flow) = found {
            // SAFETY: the element lives as long as the program runs, and both fields are aligned. A
            // lost update is made up for by the next packet.
            unsafe {
                (*flow).seen = now;
                (*flow).state |= state;
            }
        }
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<Service> {
        // SAFETY: not preallocated, so elements are freed only after a grace period.
        unsafe { Self::services().get(key) }.copied()
    }
    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend<F::Addr>> {
        // SAFETY: as above.
        unsafe { Self::backends().get(key) }.copied()
    }
    #[inline(always)]
    fn slot(&self, key: &EndpointKey<F::Addr>) -> Option<u32> {
        // SAFETY: as above.
        unsafe { Self::slots().get(key) }.copied()
    }
    #[inline(always)]
    fn maglev(&self, key: &MaglevKey, entry: u32) -> Option<u16> {
        // SAFETY: not preallocated, so the memory stays an element's while the program runs; an
        // element that is replaced meanwhile has other entries.
        unsafe { MAGLEV.get(key) }
            .and_then(|chunk| chunk.get(entry as usize))
            .copied()
    }
    #[inline(always)]
    fn is_source(&self, key: &SourceKey<F::Addr>) -> bool {
        let bits = SOURCE_KEY_BITS + 8 * size_of::<F::Addr>() as u32;
        Self::sources().get(Prefix::new(bits, *key)).is_some()
    }
    #[inline(always)]
    fn range(&self, addr: &F::Addr) -> RangeKind {
        Self::ranges()
            .get(whole(*addr))
            .copied()
            .unwrap_or_default()
    }
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity<F::Addr>> {
        // SAFETY: the element lives as long as the program runs. The copy is torn only if the LRU
        // reuses the element meanwhile; it then names an endpoint of another client, which serves.
        unsafe { Self::affinities().get(key) }.copied()
    }
    #[inline(always)]
    fn stick(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity<F::Addr>) {
        // A failure costs a client its affinity, not its connection.
        let _unstuck = Self::affinities().insert(key, affinity, BPF_ANY.into());
    }
    #[inline(always)]
    fn address(&self, addr: &F::Addr) -> AddressFlags {
        // SAFETY: not preallocated, so elements are freed only after a grace period.
        unsafe { Self::addresses().get(addr) }
            .copied()
            .unwrap_or_default()
    }
    #[inline(always)]
    fn pod(&self, addr: &F::Addr) -> Option<LocalPod> {
        // SAFETY: as above.
        unsafe { Self::pods().get(addr) }.copied()
    }
    #[inline(always)]
    fn device(&self, device: IfIndex) -> Option<Device> {
        // SAFETY: as above.
        unsafe { DEVICES.get(device) }.copied()
    }
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        CONFIG.get(0).copied()
    }
    #[inline(always)]
    fn route(&self, device: IfIndex, src: &F::Addr, dst: &F::Addr) -> Option<Route> {
        let fib = FIB.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element: tc and XDP programs of one CPU do not interrupt each
        // other.
        let fib = unsafe { &mut *fib };
        // SAFETY: plain integers.
        *fib = unsafe { zeroed() };
        F::Addr::ask_route(fib, src, dst);
        fib.ifindex = device.0;
        self.look_up(fib)
    }
    #[inline(always)]
    fn veth(&self, device: IfIndex) -> Option<Veth> {
        // SAFETY: not preallocated, so elements are freed only after a grace period.
        unsafe { VETHS.get(device) }.copied()
    }
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<u32> {
        // SAFETY: the element lives as long as the program runs, and is copied at once.
        unsafe { Self::fragments().get(key) }.copied()
    }
    #[inline(always)]
    fn record_fragment(&self, key: &FragmentKey<F::Addr>, ports: u32) {
        // A failure costs the datagram.
        let _lost = Self::fragments().insert(key, ports, BPF_ANY.into());
    }
    #[inline(always)]
    fn report_denied(&self, key: &FlowKey<F::Addr>, reason: Reason) {
        let once = &FlowKey {
            sport: Port::default(),
            ..*key
        };
        let (now, hz) = (jiffies(), CONFIG.get(0).map_or(100, |config| config.hz));
        let mut silent = 0;
        if let Some(reported) = Self::denied().get_ptr_mut(once) {
            // SAFETY: the element lives as long as the program runs; a lost update costs one count.
            let reported = unsafe { &mut *reported };
            if now.wrapping_sub(reported.at) < REPORT_SECONDS * hz {
                reported.silent += 1;
                return;
            }
            silent = reported.silent;
            reported.silent = 0;
            reported.at = now;
        } else {
            // If the table takes no more, each denial is reported.
            let first = Reported { at: now, silent: 0 };
            let _full = Self::denied().insert(once, first, BPF_ANY.into());
        }
        if let Some(mut denial) = DENIALS.reserve::<Denial>(0) {
            denial.write(Denial::new(key, reason, silent));
            denial.submit(0);
        }
    }
    #[inline(always)]
    fn now(&self) -> u32 {
        jiffies()
    }
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
    #[inline(always)]
    fn turn(&self, counter: u32) -> u32 {
        take_turn(counter)
    }
    #[inline(always)]
    fn may_answer(&self) -> bool {
        take_answer()
    }
    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter.index());
    }
    #[inline(always)]
    fn count_answered(&self, reason: Reason) {
        count(reason.index());
    }
    #[inline(always)]
    fn log_opened(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
        if let (true, Some(record)) = (
            level_enabled(Level::Debug),
            Self::log_records().get_ptr_mut(0),
        ) {
            // SAFETY: this CPU's own element, as above.
            unsafe {
                *record = LogRecord {
                    what: OPENED,
                    key: *key,
                    dst: flow.dst,
                    dport: flow.dport.number(),
                }
            };
        }
    }
    #[inline(always)]
    fn log_stopped(&self, key: &FlowKey<F::Addr>, reason: Reason) {
        if let (true, Some(record)) = (
            level_enabled(Level::Debug),
            Self::log_records().get_ptr_mut(0),
        ) {
            // SAFETY: this CPU's own element, as above.
            unsafe {
                *record = LogRecord {
                    what: STOPPED + reason as u32,
                    key: *key,
                    dst: key.dst,
                    dport: 0,
                }
            };
        }
    }
}
