//! The maps of the packet path, and the kernel as the library's tables over them. Like `main.rs`, of the binary and not of the library.

use core::mem::zeroed;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup};
use aya_ebpf::helpers::{bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_log_ebpf::macro_support::{Level, level_enabled};
use proxy_common::flow::{Flow, FlowKey, FragmentKey, TABLE_ENTRIES};
use proxy_common::net::{
    Addr4, Addr6, AddressFlags, Device, IfIndex, LocalPod, Port, Protocol, RangeKind, V4, V6, Veth,
};
use proxy_common::policy::{
    CHUNK_CLASSES, CHUNKS, Chunk, EXACT_MAX, MAX_PODS, NO_CLASS, NODES, Node, PREFIXES_MAX,
    PodRows, PortSet, VERDICTS_MAX, VerdictKey, Word,
};
use proxy_common::reason::{COUNTERS as COUNTER_COUNT, Counter, Denial, Reason};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, Config, EndpointKey, MaglevChunk, MaglevKey, Name,
    SOURCE_KEY_BITS, Service, ServiceKey, SourceKey,
};
use proxy_ebpf::{Insert, NotPromoted, Refused, Route, Scratch, Table, Tables, Verdicts};

use crate::ports_have;

/// ICMP errors a second and CPU.
const ANSWERS: u32 = 1000;
/// `EEXIST` as helpers return it.
const EEXIST: i32 = -17;

/// Declares the maps of one family and the tables over them.
macro_rules! family {
    ($family:ty, $addr:ty, $services:ident $sn:literal, $backends:ident $bn:literal, $addresses:ident $an:literal, $pods:ident $pn:literal,
     $flows:ident $fln:literal, $opening:ident $on:literal, $scratch:ident $dn:literal, $slots:ident $sln:literal,
     $noted:ident $nn:literal, $sources:ident $son:literal, $ranges:ident $rn:literal, $affinity:ident $afn:literal,
     $prefixes:ident $prn:literal, $fragments:ident $frn:literal, $denied:ident $dnn:literal, $exact:expr, $fib:ident) => {
        #[map(name = $sn)]
        static $services: HashMap<ServiceKey<$addr>, Service> =
            HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
        #[map(name = $bn)]
        static $backends: HashMap<BackendKey, Backend<$addr>> =
            HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
        #[map(name = $sln)]
        static $slots: HashMap<EndpointKey<$addr>, u32> =
            HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
        #[map(name = $son)]
        static $sources: LpmTrie<SourceKey<$addr>, u32> = LpmTrie::with_max_entries(65536, 0);
        #[map(name = $rn)]
        static $ranges: LpmTrie<$addr, RangeKind> = LpmTrie::with_max_entries(131_072, 0);
        #[map(name = $afn)]
        static $affinity: LruHashMap<AffinityKey<$addr>, Affinity<$addr>> =
            LruHashMap::with_max_entries(65536, 0);
        #[map(name = $an)]
        static $addresses: HashMap<$addr, AddressFlags> =
            HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
        #[map(name = $pn)]
        static $pods: HashMap<$addr, LocalPod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
        #[map(name = $fln)]
        static $flows: HashMap<FlowKey<$addr>, Flow<$addr>> =
            HashMap::with_max_entries(TABLE_ENTRIES, 0);
        #[map(name = $on)]
        static $opening: LruHashMap<FlowKey<$addr>, Flow<$addr>> =
            LruHashMap::with_max_entries(65536, 0);
        #[map(name = $dn)]
        pub static $scratch: PerCpuArray<Scratch<$family>> = PerCpuArray::with_max_entries(1, 0);
        #[map(name = $prn)]
        static $prefixes: LpmTrie<$addr, u32> =
            LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
        #[map(name = $frn)]
        static $fragments: LruHashMap<FragmentKey<$addr>, u32> =
            LruHashMap::with_max_entries(8192, 0);
        #[map(name = $dnn)]
        static $denied: LruHashMap<FlowKey<$addr>, Reported> =
            LruHashMap::with_max_entries(8192, 0);
        #[map(name = $nn)]
        pub static $noted: PerCpuArray<LogRecord<$addr>> = PerCpuArray::with_max_entries(1, 0);

        impl Verdicts<$family> for Kernel {
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
            fn exact_class(&self, addr: &$addr) -> Option<u32> {
                $exact(addr)
            }
            #[inline(always)]
            fn prefix_class(&self, addr: &$addr) -> u32 {
                $prefixes
                    .get(Prefix::new(8 * size_of::<$addr>() as u32, *addr))
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
                VERDICTS
                    .get(Prefix::new(8 * size_of::<VerdictKey>() as u32, *key))
                    .copied()
                    .unwrap_or(PortSet::NONE)
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

        impl Tables<$family> for Kernel {
            #[inline(always)]
            fn flow(&self, key: &FlowKey<$addr>) -> Option<(Table, Flow<$addr>)> {
                let (table, found) = match $flows.get_ptr(key) {
                    Some(found) => (Table::Established, found),
                    None => (Table::Opening, $opening.get_ptr(key)?),
                };
                // SAFETY: the element lives for the run of the program; a copy is taken at once. It is torn only if the element is
                // reused meanwhile, and then the next packet reads anew.
                Some((table, unsafe { *found }))
            }
            #[inline(always)]
            fn copy_flow(&self, key: &FlowKey<$addr>, into: &mut Flow<$addr>) -> Option<Table> {
                let (table, found) = match $flows.get_ptr(key) {
                    Some(found) => (Table::Established, found),
                    None => (Table::Opening, $opening.get_ptr(key)?),
                };
                // SAFETY: as above.
                *into = unsafe { *found };
                Some(table)
            }
            #[inline(always)]
            fn state(&self, key: &FlowKey<$addr>) -> Option<u8> {
                // SAFETY: as above.
                $flows.get_ptr(key).map(|flow| unsafe { (*flow).state })
            }
            #[inline(always)]
            fn table_of_mate(&self, key: &FlowKey<$addr>, mate: &FlowKey<$addr>) -> Option<Table> {
                let (table, flow) = match $flows.get_ptr(mate) {
                    Some(flow) => (Table::Established, flow),
                    None => (Table::Opening, $opening.get_ptr(mate)?),
                };
                // SAFETY: as above; compared in place, for there is no room on the stack.
                let flow = unsafe { &*flow };
                let same = flow.dst == key.src
                    && flow.src == key.dst
                    && flow.dport == key.sport
                    && flow.sport == key.dport;
                if same { Some(table) } else { None }
            }
            #[inline(always)]
            fn promote_flow(
                &self,
                key: &FlowKey<$addr>,
                now: u32,
                state: u8,
            ) -> Result<(), NotPromoted> {
                let flow = $opening.get_ptr_mut(key).ok_or(NotPromoted::Gone)?;
                // SAFETY: as above; the kernel copies the value out of the element before this program ends.
                unsafe {
                    (*flow).seen = now;
                    (*flow).state |= state;
                    $flows
                        .insert(key, &*flow, BPF_ANY.into())
                        .map_err(|_| NotPromoted::Full)
                }
            }
            #[inline(always)]
            fn insert_flow(
                &self,
                table: Table,
                key: &FlowKey<$addr>,
                flow: &Flow<$addr>,
                how: Insert,
            ) -> Result<(), Refused> {
                let flags = match how {
                    Insert::New => BPF_NOEXIST,
                    Insert::Any => BPF_ANY,
                };
                let done = match table {
                    Table::Established => $flows.insert(key, flow, flags.into()),
                    Table::Opening => $opening.insert(key, flow, flags.into()),
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
            fn remove_flow(&self, table: Table, key: &FlowKey<$addr>) {
                // Whether it was still there does not matter: the LRU or the sweep may have been faster.
                let _gone = match table {
                    Table::Established => $flows.remove(key),
                    Table::Opening => $opening.remove(key),
                };
            }
            #[inline(always)]
            fn touch_flow(&self, table: Table, key: &FlowKey<$addr>, now: u32, state: u8) {
                let found = match table {
                    Table::Established => $flows.get_ptr_mut(key),
                    Table::Opening => $opening.get_ptr_mut(key),
                };
                if let Some(flow) = found {
                    // SAFETY: the map's element lives for the run of the program; both fields are aligned, and a lost update only delays a note.
                    unsafe {
                        (*flow).seen = now;
                        (*flow).state |= state;
                    }
                }
            }
            #[inline(always)]
            fn service(&self, key: &ServiceKey<$addr>) -> Option<Service> {
                // SAFETY: not preallocated, so elements are freed after a grace period only.
                unsafe { $services.get(key) }.copied()
            }
            #[inline(always)]
            fn backend(&self, key: &BackendKey) -> Option<Backend<$addr>> {
                // SAFETY: as above.
                unsafe { $backends.get(key) }.copied()
            }
            #[inline(always)]
            fn slot(&self, key: &EndpointKey<$addr>) -> Option<u32> {
                // SAFETY: as above.
                unsafe { $slots.get(key) }.copied()
            }
            #[inline(always)]
            fn maglev(&self, key: &MaglevKey, entry: u32) -> Option<u16> {
                // SAFETY: not preallocated, so the memory is an element's while the program runs; one that is replaced has other entries.
                unsafe { MAGLEV.get(key) }
                    .and_then(|chunk| chunk.get(entry as usize))
                    .copied()
            }
            #[inline(always)]
            fn is_source(&self, key: &SourceKey<$addr>) -> bool {
                $sources
                    .get(Prefix::new(
                        SOURCE_KEY_BITS + 8 * size_of::<$addr>() as u32,
                        *key,
                    ))
                    .is_some()
            }
            #[inline(always)]
            fn range(&self, addr: &$addr) -> RangeKind {
                $ranges
                    .get(Prefix::new(8 * size_of::<$addr>() as u32, *addr))
                    .copied()
                    .unwrap_or_default()
            }
            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$addr>) -> Option<Affinity<$addr>> {
                // SAFETY: the element lives for the run of the program; torn only if the LRU reuses it meanwhile, and then it names an
                // endpoint of another client, which serves as well.
                unsafe { $affinity.get(key) }.copied()
            }
            #[inline(always)]
            fn stick(&self, key: &AffinityKey<$addr>, affinity: &Affinity<$addr>) {
                // What does not fit costs a client its affinity, not its connection.
                let _unstuck = $affinity.insert(key, affinity, BPF_ANY.into());
            }
            #[inline(always)]
            fn address(&self, addr: &$addr) -> AddressFlags {
                // SAFETY: as above.
                unsafe { $addresses.get(addr) }.copied().unwrap_or_default()
            }
            #[inline(always)]
            fn pod(&self, addr: &$addr) -> Option<LocalPod> {
                // SAFETY: as above.
                unsafe { $pods.get(addr) }.copied()
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
            fn route(&self, device: IfIndex, src: &$addr, dst: &$addr) -> Option<Route> {
                let fib = FIB.get_ptr_mut(0)?;
                // SAFETY: this CPU's own element: tc and XDP programs of one CPU do not interrupt each other.
                let fib = unsafe { &mut *fib };
                // SAFETY: plain integers.
                *fib = unsafe { zeroed() };
                $fib(fib, src, dst);
                fib.ifindex = device.0;
                self.look_up(fib)
            }
            #[inline(always)]
            fn veth(&self, device: IfIndex) -> Option<Veth> {
                // SAFETY: not preallocated, so elements are freed after a grace period only.
                unsafe { VETHS.get(device) }.copied()
            }
            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<u32> {
                // SAFETY: the element lives for the run of the program; read at once.
                unsafe { $fragments.get(key) }.copied()
            }
            #[inline(always)]
            fn record_fragment(&self, key: &FragmentKey<$addr>, ports: u32) {
                // What does not fit costs the datagram.
                let _lost = $fragments.insert(key, &ports, BPF_ANY.into());
            }
            #[inline(always)]
            fn denied(&self, key: &FlowKey<$addr>, reason: Reason) {
                let once = FlowKey {
                    sport: Port::default(),
                    ..*key
                };
                let (now, hz) = (jiffies(), CONFIG.get(0).map_or(100, |config| config.hz));
                let mut silent = 0;
                if let Some(told) = $denied.get_ptr_mut(&once) {
                    // SAFETY: the element lives for the run of the program; a lost update costs one of the count.
                    let told = unsafe { &mut *told };
                    if now.wrapping_sub(told.at) < REPORT_SECONDS * hz {
                        told.silent += 1;
                        return;
                    }
                    silent = told.silent;
                    told.silent = 0;
                    told.at = now;
                } else {
                    // A table that takes no more tells every time.
                    let _told =
                        $denied.insert(&once, &Reported { at: now, silent: 0 }, BPF_ANY.into());
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
                answer_left()
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
            fn opened(&self, key: &FlowKey<$addr>, flow: &Flow<$addr>) {
                if let (true, Some(noted)) = (level_enabled(Level::Debug), $noted.get_ptr_mut(0)) {
                    // SAFETY: this CPU's own element, as above.
                    unsafe {
                        *noted = LogRecord {
                            what: OPENED,
                            key: *key,
                            dst: flow.dst,
                            dport: flow.dport.number(),
                        }
                    };
                }
            }
            #[inline(always)]
            fn stopped(&self, key: &FlowKey<$addr>, reason: Reason) {
                if let (true, Some(noted)) = (level_enabled(Level::Debug), $noted.get_ptr_mut(0)) {
                    // SAFETY: this CPU's own element, as above.
                    unsafe {
                        *noted = LogRecord {
                            what: STOPPED + reason as u32,
                            key: *key,
                            dst: key.dst,
                            dport: 0,
                        }
                    };
                }
            }
        }
    };
}

family!(V4, Addr4, SERVICES4 "SERVICES4", BACKENDS4 "BACKENDS4", ADDRESSES4 "ADDRESSES4", PODS4 "PODS4", FLOWS4 "FLOWS4", OPENING4 "OPENING4", SCRATCH4 "SCRATCH4",
    SLOTS4 "SLOTS4", NOTED4 "NOTED4",
    SOURCES4 "SOURCES4", RANGES4 "RANGES4", AFFINITY4 "AFFINITY4",
    PREFIXES4 "PREFIXES4", FRAGMENTS4 "FRAGMENTS4", DENIED4 "DENIED4", |_| None, fib4);
family!(V6, Addr6, SERVICES6 "SERVICES6", BACKENDS6 "BACKENDS6", ADDRESSES6 "ADDRESSES6", PODS6 "PODS6", FLOWS6 "FLOWS6", OPENING6 "OPENING6", SCRATCH6 "SCRATCH6",
    SLOTS6 "SLOTS6", NOTED6 "NOTED6",
    SOURCES6 "SOURCES6", RANGES6 "RANGES6", AFFINITY6 "AFFINITY6",
    PREFIXES6 "PREFIXES6", FRAGMENTS6 "FRAGMENTS6", DENIED6 "DENIED6", exact6, fib6);

/// Tables by which backends are chosen where Maglev is wanted.
#[map(name = "MAGLEV")]
static MAGLEV: HashMap<MaglevKey, MaglevChunk> =
    HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
/// Policies of pods by [`proxy_common::net::LocalPod::pod_id`].
#[map(name = "ROWS")]
static ROWS: Array<PodRows> = Array::with_max_entries(MAX_PODS, BPF_F_MMAPABLE);
#[map(name = "VETHS")]
static VETHS: HashMap<IfIndex, Veth> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// IPv4's directory of classes.
#[map(name = "CLASSES4")]
static CLASSES4: Array<Node> = Array::with_max_entries(NODES, BPF_F_MMAPABLE);
/// The classes of IPv6 addresses that have one of their own.
#[map(name = "CLASSES6")]
static CLASSES6: HashMap<Addr6, u32> = HashMap::with_max_entries(EXACT_MAX, BPF_F_NO_PREALLOC);
#[map(name = "MATRIX")]
static MATRIX: Array<Chunk> = Array::with_max_entries(CHUNKS, BPF_F_MMAPABLE);
/// Verdicts of rows that the matrix has no room for: looked up whole, in a trie because that takes memory by its elements only.
#[map(name = "VERDICTS")]
static VERDICTS: LpmTrie<VerdictKey, u32> =
    LpmTrie::with_max_entries(VERDICTS_MAX, BPF_F_NO_PREALLOC);
#[map(name = "PORTSETS")]
static PORTSETS: Array<PortSet> = Array::with_max_entries(PortSet::SETS, 0);
/// What user space is told: denials.
#[map(name = "DENIALS")]
static DENIALS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// When a denial was last told, and how many there were since.
#[repr(C)]
struct Reported {
    at: u32,
    silent: u32,
}

/// Seconds in which one denial is told.
const REPORT_SECONDS: u32 = 10;

#[inline(always)]
fn exact6(addr: &Addr6) -> Option<u32> {
    // SAFETY: not preallocated, so elements are freed after a grace period only.
    unsafe { CLASSES6.get(addr) }.copied()
}

#[map(name = "DEVICES")]
static DEVICES: HashMap<IfIndex, Device> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map(name = "CONFIG")]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "NAMES")]
static NAMES: HashMap<u32, Name> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map(name = "COUNTERS")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);
#[map(name = "TURNS")]
static TURNS: Array<u32> = Array::with_max_entries(256, 0);
#[map(name = "ANSWERS")]
static ANSWERS_LEFT: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(1, 0);

/// Where `bpf_fib_lookup` takes its question and leaves its answer: too large for the stack beside all else.
#[map(name = "FIB")]
static FIB: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

/// A token bucket: ICMP errors sent in the second that began at `since` (jiffies).
#[repr(C)]
struct Bucket {
    since: u32,
    sent: u32,
}

/// What the log is to be told of a packet, kept until the deep part of the stack is free again.
#[repr(C)]
pub struct LogRecord<A> {
    /// 0 is nothing, [`OPENED`], or [`STOPPED`] and the reason's number.
    pub what: u32,
    /// The packet's connection.
    pub key: FlowKey<A>,
    /// The backend.
    pub dst: A,
    /// Its port.
    pub dport: u16,
}

/// A flow was opened.
pub const OPENED: u32 = 1;
/// The packet is not sent on.
pub const STOPPED: u32 = 2;

/// The kernel as the library's tables; `context` is what `bpf_fib_lookup` wants.
pub struct Kernel {
    /// Of the running program.
    pub context: *mut core::ffi::c_void,
}

impl Kernel {
    #[inline(always)]
    fn look_up(&self, fib: &mut bpf_fib_lookup) -> Option<Route> {
        /// The route is good, the neighbour not resolved yet.
        const NO_NEIGHBOUR: i64 = 7;
        // With a length of 0 the kernel holds the packet's own against the device, GSO or not; the size is judged by `may_leave`.
        fib.__bindgen_anon_1.tot_len = 1;
        // SAFETY: the context of this program, and a structure of the size that is passed.
        let code = unsafe {
            fib_lookup(
                self.context,
                ptr::from_mut(fib),
                size_of::<bpf_fib_lookup>() as i32,
                0,
            )
        } as i64;
        if code != 0 && code != NO_NEIGHBOUR {
            return None;
        }
        let (d, s) = (fib.dmac, fib.smac);
        let link = [
            d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5],
        ];
        Some(Route {
            device: IfIndex(fib.ifindex),
            neighbour: if code == 0 { Some(link) } else { None },
        })
    }
}

#[inline(always)]
fn fib4(fib: &mut bpf_fib_lookup, src: &Addr4, dst: &Addr4) {
    fib.family = 2;
    fib.__bindgen_anon_3.ipv4_src = src.word();
    fib.__bindgen_anon_4.ipv4_dst = dst.word();
}

#[inline(always)]
fn fib6(fib: &mut bpf_fib_lookup, src: &Addr6, dst: &Addr6) {
    fib.family = 10;
    fib.__bindgen_anon_3.ipv6_src = src.words();
    fib.__bindgen_anon_4.ipv6_dst = dst.words();
}

#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Counts up without a lock: two CPUs that meet take the same turn, and the later one finds its port taken.
#[inline(always)]
fn take_turn(counter: u32) -> u32 {
    let Some(turn) = TURNS.get_ptr_mut(counter & 0xff) else {
        return 0;
    };
    // SAFETY: the element lives as long as the program, is aligned, and is read and written whole.
    unsafe {
        let taken = turn.read_volatile();
        turn.write_volatile(taken.wrapping_add(1));
        taken
    }
}

#[inline(always)]
fn answer_left() -> bool {
    let Some(bucket) = ANSWERS_LEFT.get_ptr_mut(0) else {
        return false;
    };
    let hz = CONFIG.get(0).map_or(100, |config| config.hz);
    let now = jiffies();
    // SAFETY: this CPU's own element.
    let bucket = unsafe { &mut *bucket };
    if now.wrapping_sub(bucket.since) >= hz {
        bucket.since = now;
        bucket.sent = 0;
    }
    bucket.sent += 1;
    bucket.sent <= ANSWERS
}
