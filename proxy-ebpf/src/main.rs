//! The thin program around the library: maps, hooks, and the one place where an action becomes a verdict number.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "a program; the attribute macros also make items of their own")]

mod kernel {
    pub mod sockets;
}

use core::mem::{MaybeUninit, zeroed};
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_PSEUDO_HDR, BPF_NOEXIST,
    TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_redirect, bpf_redirect_neigh,
    bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_change_type,
};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use proxy_common::event::{COUNTERS as COUNTER_COUNT, Counter, Denial, Reason};
use proxy_common::flow::{Flow, FlowKey, FragmentKey, TABLE_ENTRIES};
use proxy_common::net::{
    Addr4, Addr6, AddressFlags, Device, Family, IfIndex, LocalPod, Port, Protocol, RangeKind, V4, V6, Veth, checksum_update,
    sum_add,
};
use proxy_common::policy::{
    CHUNK_CLASSES, CHUNKS, Chunk, EXACT_MAX, NO_CLASS, NODES, Node, POD_SLOTS, PREFIXES_MAX, PodRows, PortSet, VERDICTS_MAX,
    VerdictKey, Word,
};
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, Config, EndpointKey, MaglevChunk, MaglevKey, Name, SOURCE_KEY_BITS, Service,
    ServiceKey, SourceKey,
};
use proxy_ebpf::parse::{self, Ip};
use proxy_ebpf::{
    Action, Change, Insert, NotPromoted, Origin, Packet, Refused, Route, Scratch, Stage, Stages, Table, Tables, Verdicts, Wire,
};
use proxy_ebpf::{odd, policy};

/// ICMP errors a second and CPU.
const ANSWERS: u32 = 1000;
/// The mark of the answers that we make, by which our other hooks know them; packets lose it when they leave the namespace.
const ANSWER_MARK: u32 = 0x706f_7274;
/// `EEXIST` and `E2BIG` as helpers return them.
const EEXIST: i32 = -17;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace`, younger than the bindings.
const BPF_F_IPV6: u64 = 1 << 7;

/// Declares the maps of one family and the tables over them.
macro_rules! family {
    ($family:ty, $addr:ty, $services:ident $sn:literal, $backends:ident $bn:literal, $addresses:ident $an:literal, $pods:ident $pn:literal,
     $flows:ident $fln:literal, $opening:ident $on:literal, $scratch:ident $dn:literal, $slots:ident $sln:literal,
     $noted:ident $nn:literal, $sources:ident $son:literal, $ranges:ident $rn:literal, $affinity:ident $afn:literal,
     $prefixes:ident $prn:literal, $fragments:ident $frn:literal, $denied:ident $dnn:literal, $exact:expr, $fib:ident) => {
        #[map(name = $sn)]
        static $services: HashMap<ServiceKey<$addr>, Service> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
        #[map(name = $bn)]
        static $backends: HashMap<BackendKey, Backend<$addr>> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
        #[map(name = $sln)]
        static $slots: HashMap<EndpointKey<$addr>, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
        #[map(name = $son)]
        static $sources: LpmTrie<SourceKey<$addr>, u32> = LpmTrie::with_max_entries(65536, 0);
        #[map(name = $rn)]
        static $ranges: LpmTrie<$addr, RangeKind> = LpmTrie::with_max_entries(131_072, 0);
        #[map(name = $afn)]
        static $affinity: LruHashMap<AffinityKey<$addr>, Affinity<$addr>> = LruHashMap::with_max_entries(65536, 0);
        #[map(name = $an)]
        static $addresses: HashMap<$addr, AddressFlags> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
        #[map(name = $pn)]
        static $pods: HashMap<$addr, LocalPod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
        #[map(name = $fln)]
        static $flows: HashMap<FlowKey<$addr>, Flow<$addr>> = HashMap::with_max_entries(TABLE_ENTRIES, 0);
        #[map(name = $on)]
        static $opening: LruHashMap<FlowKey<$addr>, Flow<$addr>> = LruHashMap::with_max_entries(65536, 0);
        #[map(name = $dn)]
        static $scratch: PerCpuArray<Scratch<$family>> = PerCpuArray::with_max_entries(1, 0);
        #[map(name = $prn)]
        static $prefixes: LpmTrie<$addr, u32> = LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
        #[map(name = $frn)]
        static $fragments: LruHashMap<FragmentKey<$addr>, u32> = LruHashMap::with_max_entries(8192, 0);
        #[map(name = $dnn)]
        static $denied: LruHashMap<FlowKey<$addr>, Told> = LruHashMap::with_max_entries(8192, 0);
        #[map(name = $nn)]
        static $noted: PerCpuArray<Noted<$addr>> = PerCpuArray::with_max_entries(1, 0);

        impl Verdicts<$family> for Kernel {
            type Ports<'a> = &'static PortSet;

            #[inline(always)]
            fn rows(&self, slot: u32) -> PodRows {
                ROWS.get(slot).copied().unwrap_or_default()
            }
            #[inline(always)]
            fn word(&self, node: u32, byte: u8) -> Word {
                CLASSES4.get(node).map_or(Word::default(), |words| words[usize::from(byte)])
            }
            #[inline(always)]
            fn exact_class(&self, addr: &$addr) -> Option<u32> {
                $exact(addr)
            }
            #[inline(always)]
            fn prefix_class(&self, addr: &$addr) -> u32 {
                $prefixes.get(Prefix::new(8 * size_of::<$addr>() as u32, *addr)).copied().unwrap_or(NO_CLASS)
            }
            #[inline(always)]
            fn verdict(&self, chunk: u32, class: u32) -> u32 {
                let (chunk, index) = (chunk.wrapping_add(class / CHUNK_CLASSES), class % CHUNK_CLASSES);
                MATRIX.get(chunk).map_or(PortSet::NONE, |classes| u32::from(classes[index as usize]))
            }
            #[inline(always)]
            fn hashed_verdict(&self, key: &VerdictKey) -> u32 {
                VERDICTS.get(Prefix::new(8 * size_of::<VerdictKey>() as u32, *key)).copied().unwrap_or(PortSet::NONE)
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
            fn find_flow(&self, key: &FlowKey<$addr>, into: &mut Flow<$addr>) -> Option<Table> {
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
                let same = flow.dst == key.src && flow.src == key.dst && flow.dport == key.sport && flow.sport == key.dport;
                if same { Some(table) } else { None }
            }
            #[inline(always)]
            fn promote_flow(&self, key: &FlowKey<$addr>, now: u32, state: u8) -> Result<(), NotPromoted> {
                let flow = $opening.get_ptr_mut(key).ok_or(NotPromoted::Gone)?;
                // SAFETY: as above; the kernel copies the value out of the element before this program ends.
                unsafe {
                    (*flow).seen = now;
                    (*flow).state |= state;
                    $flows.insert(key, &*flow, BPF_ANY.into()).map_err(|_| NotPromoted::Full)
                }
            }
            #[inline(always)]
            fn insert_flow(&self, table: Table, key: &FlowKey<$addr>, flow: &Flow<$addr>, how: Insert) -> Result<(), Refused> {
                let flags = match how {
                    Insert::New => BPF_NOEXIST,
                    Insert::Any => BPF_ANY,
                };
                let done = match table {
                    Table::Established => $flows.insert(key, flow, flags.into()),
                    Table::Opening => $opening.insert(key, flow, flags.into()),
                };
                done.map_err(|errno| if errno == EEXIST { Refused::Exists } else { Refused::Full })
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
            fn note_flow(&self, table: Table, key: &FlowKey<$addr>, now: u32, state: u8) {
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
                unsafe { MAGLEV.get(key) }.and_then(|chunk| chunk.get(entry as usize)).copied()
            }
            #[inline(always)]
            fn is_source(&self, key: &SourceKey<$addr>) -> bool {
                $sources.get(Prefix::new(SOURCE_KEY_BITS + 8 * size_of::<$addr>() as u32, *key)).is_some()
            }
            #[inline(always)]
            fn range(&self, addr: &$addr) -> RangeKind {
                $ranges.get(Prefix::new(8 * size_of::<$addr>() as u32, *addr)).copied().unwrap_or_default()
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
            fn note_fragment(&self, key: &FragmentKey<$addr>, ports: u32) {
                // What does not fit costs the datagram.
                let _lost = $fragments.insert(key, &ports, BPF_ANY.into());
            }
            #[inline(always)]
            fn denied(&self, key: &FlowKey<$addr>, reason: Reason) {
                let once = FlowKey { sport: Port::default(), ..*key };
                let (now, hz) = (jiffies(), CONFIG.get(0).map_or(100, |config| config.hz));
                let mut silent = 0;
                if let Some(told) = $denied.get_ptr_mut(&once) {
                    // SAFETY: the element lives for the run of the program; a lost update costs one of the count.
                    let told = unsafe { &mut *told };
                    if now.wrapping_sub(told.at) < TELL_DENIED * hz {
                        told.silent += 1;
                        return;
                    }
                    silent = told.silent;
                    told.silent = 0;
                    told.at = now;
                } else {
                    // A table that takes no more tells every time.
                    let _told = $denied.insert(&once, &Told { at: now, silent: 0 }, BPF_ANY.into());
                }
                if let Some(mut denial) = EVENTS.reserve::<Denial>(0) {
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
                    unsafe { *noted = Noted { what: OPENED, key: *key, dst: flow.dst, dport: flow.dport.number() } };
                }
            }
            #[inline(always)]
            fn stopped(&self, key: &FlowKey<$addr>, reason: Reason) {
                if let (true, Some(noted)) = (level_enabled(Level::Debug), $noted.get_ptr_mut(0)) {
                    // SAFETY: this CPU's own element, as above.
                    unsafe { *noted = Noted { what: STOPPED + reason as u32, key: *key, dst: key.dst, dport: 0 } };
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
static MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
/// Policies of pods by [`proxy_common::net::LocalPod::slot`].
#[map(name = "ROWS")]
static ROWS: Array<PodRows> = Array::with_max_entries(POD_SLOTS, BPF_F_MMAPABLE);
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
static VERDICTS: LpmTrie<VerdictKey, u32> = LpmTrie::with_max_entries(VERDICTS_MAX, BPF_F_NO_PREALLOC);
#[map(name = "PORTSETS")]
static PORTSETS: Array<PortSet> = Array::with_max_entries(PortSet::SETS, 0);
/// What user space is told: denials.
#[map(name = "EVENTS")]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// When a denial was last told, and how many there were since.
#[repr(C)]
struct Told {
    at: u32,
    silent: u32,
}

/// Seconds in which one denial is told.
const TELL_DENIED: u32 = 10;

#[inline(always)]
fn exact6(addr: &Addr6) -> Option<u32> {
    // SAFETY: not preallocated, so elements are freed after a grace period only.
    unsafe { CLASSES6.get(addr) }.copied()
}

#[map(name = "DEVICES")]
static DEVICES: HashMap<IfIndex, Device> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map(name = "CONFIG")]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
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
struct Noted<A> {
    /// 0 is nothing, [`OPENED`], or [`STOPPED`] and the reason's number.
    what: u32,
    key: FlowKey<A>,
    /// The backend.
    dst: A,
    dport: u16,
}

const OPENED: u32 = 1;
const STOPPED: u32 = 2;

/// The kernel as the library's tables; `context` is what `bpf_fib_lookup` wants.
struct Kernel {
    context: *mut core::ffi::c_void,
}

impl Kernel {
    #[inline(always)]
    fn look_up(&self, fib: &mut bpf_fib_lookup) -> Option<Route> {
        /// The route is good, the neighbour not resolved yet.
        const NO_NEIGHBOUR: i64 = 7;
        // With a length of 0 the kernel holds the packet's own against the device, GSO or not; the size is judged by `may_leave`.
        fib.__bindgen_anon_1.tot_len = 1;
        // SAFETY: the context of this program, and a structure of the size that is passed.
        let code = unsafe { fib_lookup(self.context, ptr::from_mut(fib), size_of::<bpf_fib_lookup>() as i32, 0) } as i64;
        if code != 0 && code != NO_NEIGHBOUR {
            return None;
        }
        let (d, s) = (fib.dmac, fib.smac);
        let link = [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5]];
        Some(Route { device: IfIndex(fib.ifindex), neighbour: if code == 0 { Some(link) } else { None } })
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
fn jiffies() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Counts up without a lock: two CPUs that meet take the same turn, and the later one finds its port taken.
#[inline(always)]
fn take_turn(counter: u32) -> u32 {
    let Some(turn) = TURNS.get_ptr_mut(counter & 0xff) else { return 0 };
    // SAFETY: the element lives as long as the program, is aligned, and is read and written whole.
    unsafe {
        let taken = turn.read_volatile();
        turn.write_volatile(taken.wrapping_add(1));
        taken
    }
}

#[inline(always)]
fn answer_left() -> bool {
    let Some(bucket) = ANSWERS_LEFT.get_ptr_mut(0) else { return false };
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

/// A socket buffer, by the kernel's helpers: they know paged data and unfinished checksums.
struct Skb<'a> {
    context: &'a TcContext,
}

impl Packet for Skb<'_> {
    const EARLY: bool = false;

    #[inline(always)]
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        self.context.load(offset as usize).ok()
    }
    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        self.context.store(offset as usize, value, 0).ok()
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let offset = offset as usize;
        let mangled = if change.udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let pseudo = mangled | u64::from(BPF_F_PSEUDO_HDR);
        let addresses = u64::from(change.addresses);
        // Kernels that know BPF_F_IPV6 need it for packets whose checksum the device has verified; others refuse it.
        let done = change.v6 && self.context.l4_csum_replace(offset, 0, addresses, pseudo | BPF_F_IPV6).is_ok();
        if !done {
            self.context.l4_csum_replace(offset, 0, addresses, pseudo).ok()?;
        }
        // Where the kernel keeps a sum of the whole packet (CHECKSUM_COMPLETE), that must not miss what no checksum compensates.
        let missed = if change.v6 && !done { sum_add(change.addresses, change.uncovered) } else { change.uncovered };
        if missed != 0 {
            // SAFETY: the context of this program. It refuses where there is no such sum, and then nothing is missed.
            unsafe { bpf_csum_update(self.context.skb.skb, missed) };
        }
        self.context.l4_csum_replace(offset, 0, u64::from(change.ports), mangled).ok()
    }
    #[inline(always)]
    fn truncate(&mut self, len: u32) -> Option<()> {
        // SAFETY: the context of this program.
        let code = unsafe { bpf_skb_change_tail(self.context.skb.skb, len, 0) };
        if code == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn insert(&mut self, room: u32) -> Option<()> {
        self.context.skb.adjust_room(room as i32, BPF_ADJ_ROOM_MAC, 0).ok()
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).gso_size }
    }
    #[inline(always)]
    fn was_received(&self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).ingress_ifindex != 0 }
    }
    #[inline(always)]
    fn is_answer_of_ours(&self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).mark == ANSWER_MARK }
    }
}

/// A frame in XDP, by direct access: the helpers that copy are younger than the oldest kernel that we run on.
struct Frame<'a> {
    context: &'a XdpContext,
}

impl Frame<'_> {
    /// A pointer to `len` bytes at `offset`, checked against the frame's end.
    #[inline(always)]
    fn at(&self, offset: u32, len: usize) -> Option<*mut u8> {
        let (start, end) = (self.context.data(), self.context.data_end());
        let mut position = u64::from(offset);
        let mut address = start as u64;
        // SAFETY: arithmetic on registers. The verifier has to see a bounded offset added to the packet pointer in just this form;
        // plain Rust lets LLVM move the bound to a copy of the register.
        unsafe {
            core::arch::asm!("{0} &= 2047", "{1} += {0}", inout(reg) position, inout(reg) address, options(pure, nomem, nostack));
        }
        let _bounded = position;
        if address as usize + len > end { None } else { Some(address as *mut u8) }
    }
}

impl Packet for Frame<'_> {
    const EARLY: bool = true;

    #[inline(always)]
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        let from = self.at(offset, size_of::<T>())?;
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the bytes lie in the frame, and any bytes are a T.
        unsafe {
            ptr::copy_nonoverlapping(from, value.as_mut_ptr().cast::<u8>(), size_of::<T>());
            Some(value.assume_init())
        }
    }
    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        let to = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes lie in the frame.
        unsafe { ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), to, size_of::<T>()) };
        Some(())
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(offset)?);
        if change.udp && old == 0 {
            return Some(());
        }
        let mut new = checksum_update(old, change.addresses);
        if change.udp && new == 0 {
            new = 0xffff;
        }
        new = checksum_update(new, change.ports);
        if change.udp && new == 0 {
            new = 0xffff;
        }
        self.store(offset, &new.to_ne_bytes())
    }
    #[inline(always)]
    fn truncate(&mut self, _len: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn insert(&mut self, _room: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn was_received(&self) -> bool {
        true
    }
    #[inline(always)]
    fn is_answer_of_ours(&self) -> bool {
        false
    }
}

/// A tc program: `$v4` or `$v6` by the packet's family.
macro_rules! hook {
    ($(#[$doc:meta])* $name:ident: $v4:expr, $v6:expr $(, unless $guard:ident)?) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            if is_tagged(&context) $(|| $guard(&context))? {
                return TC_ACT_UNSPEC;
            }
            match parse::ethertype(&Skb { context: &context }) {
                Some(V4::ETHERTYPE) => $v4(context.skb.skb),
                Some(V6::ETHERTYPE) => $v6(context.skb.skb),
                _ => TC_ACT_UNSPEC,
            }
        }
    };
}

/// A last stage that rewrites, for a module that has a scratch.
macro_rules! sending {
    ($module:ident, $name:ident, $origin:expr, $send:path) => {
        #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($name)))]
        extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            let Some(scratch) = scratch() else { return TC_ACT_UNSPEC };
            let context = TcContext::new(skb);
            let tables = Kernel { context: context.as_ptr() };
            let result = $send(&mut Skb { context: &context }, &tables, $origin, scratch);
            verdict(&context, result)
        }
    };
}

/// The hooks that open and judge flows, for one family and origin: each stage is a subprogram, so that their stacks do not add
/// up, and a global one, which the verifier judges by itself.
macro_rules! serving {
    ($hook:ident, $family:ty, $origin:expr, $scratch:ident, $tell:ident) => {
        mod $hook {
            use super::*;

            const ORIGIN: Origin = $origin;
            const AT_POD: bool = !matches!(ORIGIN, Origin::Outside);
            const OPENS: bool = !matches!(ORIGIN, Origin::Stack);

            #[inline(always)]
            pub fn serve(skb: *mut __sk_buff) -> i32 {
                let verdict = proxy_ebpf::serve(&mut Subprograms(skb));
                $tell(skb);
                verdict
            }

            struct Subprograms(*mut __sk_buff);

            impl Stages for Subprograms {
                type Verdict = i32;

                #[inline(always)]
                fn admit(&mut self) -> Stage {
                    Stage::from_number(admit(self.0))
                }
                #[inline(always)]
                fn meet(&mut self) -> Stage {
                    Stage::from_number(meet(self.0))
                }
                #[inline(always)]
                fn odd(&mut self) -> Stage {
                    Stage::from_number(odd(self.0))
                }
                #[inline(always)]
                fn open(&mut self) -> Stage {
                    if OPENS { Stage::from_number(open(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn inner(&mut self) -> Stage {
                    if OPENS { Stage::from_number(inner(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn plain(&mut self) -> Stage {
                    if AT_POD { Stage::from_number(plain(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn judge(&mut self) -> Stage {
                    Stage::from_number(judge(self.0))
                }
                #[inline(always)]
                fn follow(&mut self) -> Stage {
                    if AT_POD { Stage::from_number(follow(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn send(&mut self) -> i32 {
                    send(self.0)
                }
                #[inline(always)]
                fn send_error(&mut self) -> i32 {
                    send_error(self.0)
                }
                #[inline(always)]
                fn send_odd(&mut self) -> i32 {
                    send_odd(self.0)
                }
                #[inline(always)]
                fn stop(&mut self) -> i32 {
                    stop(self.0)
                }
                #[inline(always)]
                fn untouched(&mut self) -> i32 {
                    trace(self.0, 1, 0);
                    TC_ACT_UNSPEC
                }
            }

            /// This CPU's own element: tc programs of one CPU do not interrupt each other, and no stage keeps it.
            #[inline(always)]
            fn scratch<'a>() -> Option<&'a mut Scratch<$family>> {
                // SAFETY: as said.
                $scratch.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
            }

            /// A stage by what it needs.
            macro_rules! stage {
                ($name:ident, |$packet:ident, $tables:ident, $device:ident, $its:ident| $run:expr) => {
                    #[unsafe(export_name = concat!(stringify!($hook), "_", stringify!($name)))]
                    extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
                        keep(skb);
                        let Some($its) = scratch() else { return Stage::Untouched as u32 };
                        let context = TcContext::new(skb);
                        let ($tables, $device) = (&Kernel { context: context.as_ptr() }, IfIndex(ifindex(&context)));
                        let $packet = &Skb { context: &context };
                        let stage: Stage = $run;
                        stage as u32
                    }
                };
            }

            stage!(admit, |packet, tables, device, scratch| policy::admit(packet, tables, device, ORIGIN, scratch));
            stage!(meet, |packet, tables, _device, scratch| proxy_ebpf::meet(packet, tables, ORIGIN, scratch));
            stage!(odd, |packet, tables, _device, scratch| proxy_ebpf::odd::meet(packet, tables, ORIGIN, scratch));
            stage!(open, |packet, tables, device, scratch| proxy_ebpf::open(packet, tables, device, ORIGIN, scratch));
            stage!(inner, |_packet, tables, _device, scratch| proxy_ebpf::inner(tables, scratch));
            stage!(plain, |_packet, tables, _device, scratch| policy::plain(tables, ORIGIN, scratch));
            stage!(judge, |_packet, tables, _device, scratch| policy::judge(tables, ORIGIN, scratch));
            stage!(follow, |_packet, tables, _device, scratch| policy::follow(tables, scratch));

            sending!($hook, send, ORIGIN, proxy_ebpf::send);
            sending!($hook, send_error, ORIGIN, odd::send_error);
            sending!($hook, send_odd, ORIGIN, odd::send);

            #[unsafe(export_name = concat!(stringify!($hook), "_stop"))]
            extern "C" fn stop(skb: *mut __sk_buff) -> i32 {
                let Some(scratch) = scratch() else { return TC_ACT_UNSPEC };
                let context = TcContext::new(skb);
                let (tables, device) = (Kernel { context: context.as_ptr() }, IfIndex(ifindex(&context)));
                let result = proxy_ebpf::stop(&mut Skb { context: &context }, &tables, device, ORIGIN, scratch);
                verdict(&context, result)
            }
        }
    };
}

serving!(from_device4, V4, Origin::Outside, SCRATCH4, tell4);
serving!(from_device6, V6, Origin::Outside, SCRATCH6, tell6);
serving!(from_pod4, V4, Origin::Pod, SCRATCH4, tell4);
serving!(from_pod6, V6, Origin::Pod, SCRATCH6, tell6);
serving!(to_pod4, V4, Origin::Stack, SCRATCH4, tell4);
serving!(to_pod6, V6, Origin::Stack, SCRATCH6, tell6);

/// [`policy::has`], verified once for both ends and all stages.
#[unsafe(no_mangle)]
extern "C" fn ports_have(set: u32, protocol: u32, port: u32) -> u32 {
    let tables = Kernel { context: ptr::null_mut() };
    u32::from(policy::has::<V4, _>(&tables, set, Protocol(protocol as u8), port as u16))
}

/// Uses the context, whatever else is done: the verifier judges each stage by itself and wants it in every call, where the compiler would leave an
/// argument away that is not used.
#[inline(always)]
fn keep(skb: *mut __sk_buff) {
    // SAFETY: the context of this program.
    _ = unsafe { ptr::read_volatile(&raw const (*skb).len) };
}

/// The hooks that only restore what went through the stack, for one family.
macro_rules! restoring {
    ($function:ident, $entry:path) => {
        #[unsafe(export_name = stringify!($function))]
        extern "C" fn $function(skb: *mut __sk_buff) -> i32 {
            let context = TcContext::new(skb);
            let device = IfIndex(ifindex(&context));
            let tables = Kernel { context: context.as_ptr() };
            let result = $entry(&mut Skb { context: &context }, &tables, device);
            verdict(&context, result)
        }
    };
}

/// The same for what is odd, in frames of their own.
macro_rules! restoring_odd {
    ($name:ident, $family:ty, $scratch:ident, after $restore:ident) => {
        mod $name {
            use super::*;

            #[inline(always)]
            pub fn run(skb: *mut __sk_buff) -> i32 {
                let done = $restore(skb);
                if done != TC_ACT_UNSPEC {
                    return done;
                }
                match Stage::from_number(find(skb)) {
                    Stage::SendError => send_error(skb),
                    Stage::SendOdd => send_odd(skb),
                    _ => done,
                }
            }

            #[unsafe(export_name = concat!(stringify!($name), "_find"))]
            extern "C" fn find(skb: *mut __sk_buff) -> u32 {
                let Some(scratch) = scratch() else { return Stage::Untouched as u32 };
                let context = TcContext::new(skb);
                let tables = Kernel { context: context.as_ptr() };
                odd::leave(&Skb { context: &context }, &tables, scratch) as u32
            }

            sending!($name, send_error, Origin::Stack, odd::send_error);
            sending!($name, send_odd, Origin::Stack, odd::send);

            #[inline(always)]
            fn scratch<'a>() -> Option<&'a mut Scratch<$family>> {
                // SAFETY: this CPU's own element: tc programs of one CPU do not interrupt each other.
                $scratch.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
            }
        }
    };
}

restoring_odd!(leaving4, V4, SCRATCH4, after leave4);
restoring_odd!(leaving6, V6, SCRATCH6, after leave6);
restoring!(leave4, proxy_ebpf::leave::<V4, _, _>);
restoring!(leave6, proxy_ebpf::leave::<V6, _, _>);

/// Tells the log what was noted of a packet, if anybody listens. Numbers become words in user space, which has the words.
macro_rules! tell {
    ($tell:ident, $told:ident, $noted:ident, $bytes:ty) => {
        #[inline(always)]
        fn $tell(skb: *mut __sk_buff) {
            if level_enabled(Level::Debug) {
                $told(skb);
            }
        }

        #[inline(never)]
        fn $told(skb: *mut __sk_buff) -> i32 {
            let Some(noted) = $noted.get_ptr_mut(0) else { return 0 };
            let context = TcContext::new(skb);
            // SAFETY: this CPU's own element; nobody else writes it before this program has ended.
            let noted = unsafe { &mut *noted };
            let (what, key, device) = (noted.what, &noted.key, ifindex(&context));
            noted.what = 0;
            let (src, dst): ($bytes, $bytes) = (key.src.bytes(), key.dst.bytes());
            let (sport, dport, protocol) = (key.sport.number(), key.dport.number(), key.protocol.0);
            if what == OPENED {
                let backend: $bytes = noted.dst.bytes();
                debug!(
                    &context,
                    target: "portway::packets",
                    "device#{}: protocol#{} {:i} port {} to {:i} port {}: opened to {:i} port {}",
                    device, protocol, src, sport, dst, dport, backend, noted.dport
                );
            } else if what >= STOPPED {
                debug!(
                    &context,
                    target: "portway::packets",
                    "device#{}: protocol#{} {:i} port {} to {:i} port {}: stopped, reason#{}",
                    device, protocol, src, sport, dst, dport, what - STOPPED
                );
            }
            0
        }
    };
}

tell!(tell4, told4, NOTED4, [u8; 4]);
tell!(tell6, told6, NOTED6, [u8; 16]);

hook!(
    /// tc ingress of node devices and tunnels.
    from_device: from_device4::serve, from_device6::serve
);
hook!(
    /// tc ingress of the host side of a pod's veth.
    from_pod: from_pod4::serve, from_pod6::serve
);
hook!(
    /// tc egress of the host side of a pod's veth.
    to_pod: to_pod4::serve, to_pod6::serve
);
hook!(
    /// tc egress of node devices and tunnels.
    to_device: leaving4::run, leaving6::run, unless forwarded
);

/// Whether a VLAN tag lies beside the packet: then it is the business of the VLAN's own device, which meets it without. The tag of VLAN 0
/// says a priority only, and its frames are the device's own.
#[inline(always)]
fn is_tagged(context: &TcContext) -> bool {
    const VLAN: u32 = 0xfff;
    let skb = context.skb.skb;
    // SAFETY: the context of this program.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN != 0 }
}

/// Whether a packet leaving by a node device was forwarded past the stack's hooks for such: then only packets of a socket of this host
/// can be replies of a backend here, and it is none.
#[inline(always)]
fn forwarded(context: &TcContext) -> bool {
    // SAFETY: the context of this program.
    let forwarded = unsafe { (*context.skb.skb).__bindgen_anon_2.sk.is_null() };
    forwarded && !CONFIG.get(0).is_some_and(|config| config.has(Config::THROUGH_STACK))
}

#[inline(always)]
fn ifindex(context: &TcContext) -> u32 {
    // SAFETY: the context of this program.
    unsafe { (*context.skb.skb).ifindex }
}

/// The one place where tc verdicts are chosen. What was decided is left in `cb` for whoever runs the program by test run.
#[inline(always)]
fn verdict(context: &TcContext, result: Result<Action, Reason>) -> i32 {
    let skb = context.skb.skb;
    match result {
        Ok(Action::Untouched) => {
            trace(skb, 1, 0);
            TC_ACT_UNSPEC
        }
        Ok(Action::Stack) => {
            trace(skb, 2, 0);
            TC_ACT_OK
        }
        Ok(Action::Pod(device)) => {
            trace(skb, 3, device.0);
            // From a bridge port the packet is OTHERHOST, and old kernels drop that in the pod without a word.
            // SAFETY: the context of this program.
            unsafe { bpf_skb_change_type(skb, 0) };
            // SAFETY: no pointer.
            unsafe { bpf_redirect_peer(device.0, 0) as i32 }
        }
        Ok(Action::Neighbour(device)) => {
            trace(skb, 4, device.0);
            // SAFETY: no pointer is passed.
            unsafe { bpf_redirect_neigh(device.0, ptr::null_mut(), 0, 0) as i32 }
        }
        Ok(Action::Transmit(device)) => {
            trace(skb, 5, device.0);
            // SAFETY: the context of this program, and no pointer. A packet that leaves the namespace loses its mark.
            unsafe {
                (*skb).mark = ANSWER_MARK;
                bpf_redirect(device.0, 0) as i32
            }
        }
        Ok(Action::Return(device)) => {
            trace(skb, 7, device.0);
            // SAFETY: as above.
            unsafe {
                (*skb).mark = ANSWER_MARK;
                bpf_redirect(device.0, BPF_F_INGRESS.into()) as i32
            }
        }
        Err(reason) => {
            trace(skb, 6, reason as u32);
            count(reason.index());
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn trace(skb: *mut __sk_buff, action: u32, detail: u32) {
    // SAFETY: scratch space that belongs to tc programs.
    unsafe {
        (*skb).cb[0] = action;
        (*skb).cb[1] = detail;
    }
}

/// XDP on a node device.
#[xdp]
pub fn portway_xdp(context: XdpContext) -> u32 {
    early(&context)
}

/// The same for devices whose frames may lie in several buffers.
#[xdp(frags)]
pub fn portway_xdp_frags(context: XdpContext) -> u32 {
    early(&context)
}

#[inline(always)]
fn early(context: &XdpContext) -> u32 {
    match parse::ethertype(&Frame { context }) {
        Some(V4::ETHERTYPE) => early4(context.ctx),
        Some(V6::ETHERTYPE) => early6(context.ctx),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn early4(md: *mut xdp_md) -> u32 {
    early_family::<V4>(&XdpContext::new(md))
}

#[inline(never)]
fn early6(md: *mut xdp_md) -> u32 {
    early_family::<V6>(&XdpContext::new(md))
}

/// The one place where XDP verdicts are chosen.
#[inline(always)]
fn early_family<F: Ip>(context: &XdpContext) -> u32
where
    Kernel: Tables<F>,
{
    let device = IfIndex(context.ingress_ifindex() as u32);
    let tables = Kernel { context: context.as_ptr() };
    match proxy_ebpf::early::<F, _, _>(&mut Frame { context }, &tables, device) {
        Ok(Action::Transmit(out)) if out == device => xdp_action::XDP_TX,
        // SAFETY: no pointer.
        Ok(Action::Transmit(out)) => unsafe { bpf_redirect(out.0, 0) as u32 },
        Ok(Action::Untouched | Action::Stack | Action::Pod(_) | Action::Neighbour(_) | Action::Return(_)) => xdp_action::XDP_PASS,
        Err(reason) => {
            count(reason.index());
            xdp_action::XDP_DROP
        }
    }
}

/// Tells user space the time of the flow tables: low 32 bits of jiffies in `cb[0]`. Never attached, only test-run.
#[classifier]
pub fn now(context: TcContext) -> i32 {
    trace(context.skb.skb, jiffies(), 0);
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
