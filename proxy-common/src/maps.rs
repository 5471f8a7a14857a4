//! Names of the kernel maps, spelled once for the programs that define them and the agent that
//! opens them. Names of pinned maps are paths in the state directory, and do not change.

/// The names of a map that each address family has one of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerFamily {
    /// IPv4's.
    pub v4: &'static str,
    /// IPv6's.
    pub v6: &'static str,
}

/// Declares the names: `families` get a 4 and a 6 at their end.
macro_rules! names {
    (
        families { $($(#[$family_doc:meta])* $family:ident,)* }
        single { $($(#[$doc:meta])* $name:ident,)* }
    ) => {
        $(
            $(#[$family_doc])*
            pub const $family: PerFamily = PerFamily {
                v4: concat!(stringify!($family), "4"),
                v6: concat!(stringify!($family), "6"),
            };
        )*
        $(
            $(#[$doc])*
            pub const $name: &str = stringify!($name);
        )*
    };
}

names! {
    families {
        /// Frontends: [`crate::service::ServiceKey`] to [`crate::service::Service`].
        SERVICES,
        /// Slots: [`crate::service::BackendKey`] to [`crate::service::Backend`].
        BACKENDS,
        /// Slots by endpoint, the inverse of `BACKENDS`: [`crate::service::EndpointKey`] to the
        /// slot.
        SLOTS,
        /// loadBalancerSourceRanges: a trie of [`crate::service::SourceKey`].
        SOURCES,
        /// Prefixes: a trie of addresses to [`crate::net::RangeKind`].
        RANGES,
        /// Session affinity: [`crate::service::AffinityKey`] to [`crate::service::Affinity`].
        AFFINITY,
        /// Addresses of this host, its nodePorts, Services and nodes: address to
        /// [`crate::net::AddressFlags`].
        ADDRESSES,
        /// Pods of this node: address to [`crate::net::LocalPod`].
        PODS,
        /// Established flows: [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
        FLOWS,
        /// Half-open flows, an LRU: [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
        OPENING,
        /// Classes of prefixes: a trie of addresses.
        PREFIXES,
        /// Fragmented datagrams: [`crate::flow::FragmentKey`] to both ports.
        FRAGMENTS,
        /// Addresses of sockets: [`crate::socket::PeerKey`] to [`crate::socket::Peer`].
        PEERS,
        /// Denied connections that were reported, so that each is reported once in a while.
        DENIED,
        /// State of the packet at hand, per CPU.
        SCRATCH,
        /// Log record of the packet at hand, per CPU.
        LOG_RECORDS,
    }
    single {
        /// Maglev's tables: [`crate::service::MaglevKey`] to [`crate::service::MaglevChunk`].
        MAGLEV,
        /// Rows of pods by their id: [`crate::policy::PodRows`].
        ROWS,
        /// Devices of known pods: [`crate::net::IfIndex`] to [`crate::net::Veth`].
        VETHS,
        /// The directory of IPv4's address classes: [`crate::policy::Node`].
        CLASSES4,
        /// Classes of single IPv6 addresses.
        CLASSES6,
        /// Port sets by row and class: [`crate::policy::Chunk`].
        MATRIX,
        /// Port sets of rows that `MATRIX` has no room for: [`crate::policy::VerdictKey`].
        VERDICTS,
        /// Port sets: [`crate::policy::PortSet`].
        PORTSETS,
        /// Denied connections, a ring buffer: [`crate::reason::Denial`].
        DENIALS,
        /// Devices that packets leave by: [`crate::net::IfIndex`] to [`crate::net::Device`].
        DEVICES,
        /// Settings, one element: [`crate::service::Config`].
        CONFIG,
        /// Names of service ports by their id: [`crate::service::Name`].
        NAMES,
        /// Counters per CPU, by [`crate::reason::Reason::index`] and
        /// [`crate::reason::Counter::index`].
        COUNTERS,
        /// Next masquerade ports in turn, by 256 hashes of backends.
        TURNS,
        /// Token buckets of ICMP errors, per CPU.
        ANSWERS,
        /// Arguments of `bpf_fib_lookup`, per CPU.
        FIB,
    }
}
