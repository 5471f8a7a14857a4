//! The maps of the packet path: one line makes a map, and for a map of each family its two statics
//! and the function by which generic code reaches them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use proxy_common::config::Config;
use proxy_common::flow::{Flow, FlowKey, FragmentKey, TABLE_ENTRIES};
use proxy_common::net::{Addr4, Addr6, Family, IfIndex, V4, V6};
use proxy_common::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};
use proxy_common::policy::{
    CHUNKS, Chunk, EXACT_MAX, MAX_PODS, NODES, Node, PREFIXES_MAX, PodRows, PortSet, VERDICTS_MAX,
    VerdictKey,
};
use proxy_common::reason::COUNTERS as COUNTER_COUNT;
use proxy_common::service::{
    Affinity, AffinityKey, Backend, BackendKey, EndpointKey, MaglevChunk, MaglevKey, Name, Service,
    ServiceKey, SourceKey,
};
use proxy_common::socket::{PEER_ENTRIES, Peer, PeerKey};
use proxy_ebpf::Scratch;

use super::values::{Bucket, Kernel, LogRecord, Reported};

/// Makes the maps of both families. In the types, `F` is the family and `A` its address.
macro_rules! families {
    ($($(#[$doc:meta])* $name:ident, $function:ident: $map:ty = $make:expr;)*) => {
        /// The maps of one family.
        pub trait Maps<F: Family, A> {
            $($(#[$doc])* fn $function() -> &'static $map;)*
        }

        mod v4 {
            use super::*;
            type F = V4;
            type A = Addr4;
            $(
                // A name that user space does not have does not compile.
                const _: &str = proxy_common::maps::$name.v4;
                #[unsafe(link_section = "maps")]
                #[unsafe(export_name = concat!(stringify!($name), "4"))]
                static $name: $map = $make;
            )*
            impl Maps<F, A> for Kernel {
                $(
                    #[inline(always)]
                    fn $function() -> &'static $map {
                        &$name
                    }
                )*
            }
        }

        mod v6 {
            use super::*;
            type F = V6;
            type A = Addr6;
            $(
                #[unsafe(link_section = "maps")]
                #[unsafe(export_name = concat!(stringify!($name), "6"))]
                static $name: $map = $make;
            )*
            impl Maps<F, A> for Kernel {
                $(
                    #[inline(always)]
                    fn $function() -> &'static $map {
                        &$name
                    }
                )*
            }
        }
    };
}

families! {
    SERVICES, services: HashMap<ServiceKey<A>, Service> =
        HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
    BACKENDS, backends: HashMap<BackendKey, Backend<A>> =
        HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
    SLOTS, slots: HashMap<EndpointKey<A>, u32> =
        HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
    SOURCES, sources: LpmTrie<SourceKey<A>, u32> = LpmTrie::with_max_entries(65536, 0);
    RANGES, ranges: LpmTrie<A, RangeKind> = LpmTrie::with_max_entries(131_072, 0);
    AFFINITY, affinities: LruHashMap<AffinityKey<A>, Affinity<A>> =
        LruHashMap::with_max_entries(65536, 0);
    ADDRESSES, addresses: HashMap<A, AddressFlags> =
        HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
    PODS, pods: HashMap<A, LocalPod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
    FLOWS, flows: HashMap<FlowKey<A>, Flow<A>> = HashMap::with_max_entries(TABLE_ENTRIES, 0);
    OPENING, opening: LruHashMap<FlowKey<A>, Flow<A>> = LruHashMap::with_max_entries(65536, 0);
    PREFIXES, prefixes: LpmTrie<A, u32> =
        LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
    FRAGMENTS, fragments: LruHashMap<FragmentKey<A>, u32> = LruHashMap::with_max_entries(8192, 0);
    PEERS, peers: LruHashMap<PeerKey<A>, Peer<A>> = LruHashMap::with_max_entries(PEER_ENTRIES, 0);
    DENIED, denied: LruHashMap<FlowKey<A>, Reported> = LruHashMap::with_max_entries(8192, 0);
    SCRATCH, scratch: PerCpuArray<Scratch<F>> = PerCpuArray::with_max_entries(1, 0);
    LOG_RECORDS, log_records: PerCpuArray<LogRecord<A>> = PerCpuArray::with_max_entries(1, 0);
}

/// Makes the maps that both families share.
macro_rules! single {
    ($($(#[$doc:meta])* $name:ident: $map:ty = $make:expr;)*) => {
        $(
            const _: &str = proxy_common::maps::$name;
            $(#[$doc])*
            #[unsafe(link_section = "maps")]
            #[unsafe(export_name = stringify!($name))]
            pub static $name: $map = $make;
        )*
    };
}

single! {
    MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
    ROWS: Array<PodRows> = Array::with_max_entries(MAX_PODS, BPF_F_MMAPABLE);
    VETHS: HashMap<IfIndex, Veth> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
    CLASSES4: Array<Node> = Array::with_max_entries(NODES, BPF_F_MMAPABLE);
    CLASSES6: HashMap<Addr6, u32> = HashMap::with_max_entries(EXACT_MAX, BPF_F_NO_PREALLOC);
    MATRIX: Array<Chunk> = Array::with_max_entries(CHUNKS, BPF_F_MMAPABLE);
    /// Keys are looked up whole: it is a trie because a trie takes memory by its elements only.
    VERDICTS: LpmTrie<VerdictKey, u32> =
        LpmTrie::with_max_entries(VERDICTS_MAX, BPF_F_NO_PREALLOC);
    PORTSETS: Array<PortSet> = Array::with_max_entries(PortSet::SETS, 0);
    DENIALS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
    DEVICES: HashMap<IfIndex, Device> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
    CONFIG: Array<Config> = Array::with_max_entries(1, 0);
    NAMES: HashMap<u32, Name> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
    COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);
    TURNS: Array<u32> = Array::with_max_entries(256, 0);
    ANSWERS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(1, 0);
    /// Too large for the stack beside all else.
    FIB: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);
}
