//! The kernel maps: one table of their names and lifetimes, for the programs that define them and the
//! agent that opens them. Names of pinned maps are paths in the state directory, and do not change.

/// The names of a map that each address family has one of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerFamily {
    /// IPv4's.
    pub v4: &'static str,
    /// IPv6's.
    pub v6: &'static str,
}

/// The lifetime of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// Pinned: the next agent adopts the map with its contents.
    Adopted,
    /// Pinned: each agent makes the map anew, because its contents are numbered by the agent that
    /// wrote them, and only that agent's programs use it.
    Renewed,
    /// Not pinned: the map belongs to the loaded programs.
    Unpinned,
}

/// Makes the names, and [`ALL`], from the table; `families` get a 4 and a 6 at their end.
macro_rules! names {
    (
        families { $($(#[$family_doc:meta])* $family:ident: $family_life:ident,)* }
        single { $($(#[$doc:meta])* $name:ident: $life:ident,)* }
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

        /// All maps.
        pub const ALL: &[(&str, Lifetime)] = &[
            $(
                ($family.v4, Lifetime::$family_life),
                ($family.v6, Lifetime::$family_life),
            )*
            $(($name, Lifetime::$life),)*
        ];
    };
}

names! {
    families {
        /// Frontends: [`crate::service::ServiceKey`] to [`crate::service::Service`].
        SERVICES: Adopted,
        /// Slots: [`crate::service::BackendKey`] to [`crate::service::Backend`].
        BACKENDS: Adopted,
        /// Slots by endpoint, the inverse of `BACKENDS`: [`crate::service::EndpointKey`] to the
        /// slot.
        SLOTS: Adopted,
        /// loadBalancerSourceRanges: a trie of [`crate::service::SourceKey`].
        SOURCES: Adopted,
        /// Prefixes: a trie of addresses to [`crate::net::RangeKind`].
        RANGES: Adopted,
        /// Session affinity: [`crate::service::AffinityKey`] to [`crate::service::Affinity`].
        AFFINITY: Adopted,
        /// Addresses of this host, its nodePorts, Services and nodes: address to
        /// [`crate::net::AddressFlags`].
        ADDRESSES: Adopted,
        /// Pods of this node: address to [`crate::net::LocalPod`].
        PODS: Renewed,
        /// Established flows: [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
        FLOWS: Adopted,
        /// Half-open flows, an LRU: [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
        OPENING: Adopted,
        /// Classes of prefixes: a trie of addresses.
        PREFIXES: Renewed,
        /// Fragmented datagrams: [`crate::flow::FragmentKey`] to both ports.
        FRAGMENTS: Adopted,
        /// Addresses of sockets: [`crate::socket::PeerKey`] to [`crate::socket::Peer`].
        PEERS: Adopted,
        /// Denied connections that were reported, so that each is reported once in a while.
        DENIED: Unpinned,
        /// State of the packet at hand, per CPU.
        SCRATCH: Unpinned,
        /// Log record of the packet at hand, per CPU.
        LOG_RECORDS: Unpinned,
    }
    single {
        /// Maglev's tables: [`crate::service::MaglevKey`] to [`crate::service::MaglevChunk`].
        MAGLEV: Adopted,
        /// Rows of pods by their id: [`crate::policy::PodRows`].
        ROWS: Renewed,
        /// Devices of known pods: [`crate::net::IfIndex`] to [`crate::net::Veth`].
        VETHS: Renewed,
        /// The directory of IPv4's address classes: [`crate::policy::Node`].
        CLASSES4: Renewed,
        /// Classes of single IPv6 addresses.
        CLASSES6: Renewed,
        /// Port sets by row and class: [`crate::policy::Chunk`].
        MATRIX: Renewed,
        /// Port sets of rows that `MATRIX` has no room for: [`crate::policy::VerdictKey`].
        VERDICTS: Renewed,
        /// Port sets: [`crate::policy::PortSet`].
        PORTSETS: Renewed,
        /// Denied connections, a ring buffer: [`crate::reason::Denial`].
        DENIALS: Unpinned,
        /// Devices that packets leave by: [`crate::net::IfIndex`] to [`crate::net::Device`].
        DEVICES: Adopted,
        /// Settings, one element: [`crate::service::Config`].
        CONFIG: Adopted,
        /// Names of service ports by their id: [`crate::service::Name`].
        NAMES: Adopted,
        /// Counters per CPU, by [`crate::reason::Reason::index`] and
        /// [`crate::reason::Counter::index`].
        COUNTERS: Adopted,
        /// Next masquerade ports in turn, by 256 hashes of backends.
        TURNS: Adopted,
        /// Token buckets of ICMP errors, per CPU.
        ANSWERS: Unpinned,
        /// Arguments of `bpf_fib_lookup`, per CPU.
        FIB: Unpinned,
    }
}
