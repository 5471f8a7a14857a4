//! Drop reasons and counters: one list for the error value, the index in `COUNTERS`, the name and
//! the sentence.

use crate::flow::FlowKey;
use crate::net::Address;

/// Declares an enum of counted values: the discriminant is the index, the doc comment the sentence.
macro_rules! counted {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $key:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// All values, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the stable name, for metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $key,)* }
            }

            /// Returns one sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

counted! {
    /// The reason for which a packet is not sent on; each is counted under its name.
    Reason {
        /// The frame ends before a header is complete.
        Truncated = "truncated",
        /// The Service has no usable backend; the client gets a port-unreachable error.
        NoBackend = "no_backend",
        /// The traffic policy is Local and this node has no backend; the client gets a
        /// port-unreachable error.
        NoLocalBackend = "no_local_backend",
        /// The traffic policy is Local and this node has no backend; dropped silently, so that the
        /// client retries.
        AwaitLocalBackend = "await_local_backend",
        /// The Service of this cluster IP does not have this port; the client gets a
        /// port-unreachable error.
        UnknownPort = "unknown_port",
        /// The client is in none of the Service's loadBalancerSourceRanges.
        SourceNotAllowed = "source_not_allowed",
        /// The destination is in the cluster's Service ranges, but no Service has it.
        NoSuchService = "no_such_service",
        /// The chosen backend was removed while the packet was handled.
        BackendMissing = "backend_missing",
        /// A TCP packet to a cluster IP belongs to no connection, and is not a SYN (V16).
        NotSyn = "not_syn",
        /// The backend is a pod of this node, but its network device is not found yet.
        PodDeviceUnknown = "pod_device_unknown",
        /// There is no route to the backend, or forwarding is off on the device.
        NoRoute = "no_route",
        /// The device towards the backend has no address to masquerade with.
        NoMasqueradeAddress = "no_masquerade_address",
        /// No free source port was found in the masquerade range (V12).
        NoMasqueradePort = "no_masquerade_port",
        /// The flow table is full.
        FlowTableFull = "flow_table_full",
        /// The packet's TTL (hop limit) ended here; the sender gets an ICMP error.
        TtlExceeded = "ttl_exceeded",
        /// The packet is larger than the MTU of the device that it would leave by; the sender gets
        /// an ICMP error with the MTU.
        TooBig = "too_big",
        /// The kernel refused to change the packet.
        RewriteFailed = "rewrite_failed",
        /// An ICMP error was due, but the rate limit of ICMP errors was reached.
        RejectRateLimited = "reject_rate_limited",
        /// An ICMP error was due, but the source is a multicast, broadcast, unspecified or loopback
        /// address.
        NotAnswerable = "not_answerable",
        /// NetworkPolicy: no ingress rule of the destination pod allows the packet.
        DeniedIngress = "denied_ingress",
        /// NetworkPolicy: no egress rule of the source pod allows the packet.
        DeniedEgress = "denied_egress",
        /// A pod sent the packet from an address that is not its own (P33).
        SpoofedSource = "spoofed_source",
        /// The packet came from outside, but its source is an address of this host or of one of its
        /// pods (P18).
        ForgedSource = "forged_source",
        /// The pod behind the device is not known yet, and there are NetworkPolicies (P31).
        PodUnknown = "pod_unknown",
        /// A fragment for a cluster IP or an isolated pod, of a datagram whose first fragment was
        /// not seen (P27).
        FragmentUnknown = "fragment_unknown",
        /// Another node encapsulated the packet for a backend that no Service has on this node.
        NotServedHere = "not_served_here",
        /// A process of this host sent the packet to the Service ranges, but it cannot be
        /// translated.
        LeftInGate = "left_in_gate",
    }
}

counted! {
    /// Everything else that is counted.
    Counter {
        /// Packets of flows that were forwarded.
        Forwarded = "forwarded",
        /// Packets of flows that XDP forwarded; they count as forwarded, too.
        ForwardedByXdp = "forwarded_early",
        /// Packets that the stack forwarded although their flow could be redirected.
        Fallback = "fallback",
        /// Flows that were opened.
        Opened = "opened",
        /// Opened flows that are not translated: connections of pods, followed for NetworkPolicy.
        Followed = "followed",
        /// Flows that a backend answered.
        Established = "established",
        /// Half-open flows that a new connection with the same addresses and ports replaced (V17).
        Replaced = "half_open_replaced",
        /// Closed flows that were removed because another flow needed their masquerade port.
        ClosedReplaced = "closed_replaced",
        /// ICMP errors that were sent.
        Rejected = "rejected",
        /// Fragments that were seen.
        Fragment = "fragment",
        /// IPv6 packets with extension headers that were seen.
        ExtensionHeader = "extension_header",
        /// Flows that stay half-open because the flow table is full.
        TableFull = "flow_table_full_half_open",
        /// Packets of flows that XDP left to tc.
        LeftToTc = "left_to_tc",
        /// Connections of this node's processes, and destinations of their unconnected UDP sockets,
        /// that were sent to a backend.
        SocketsDirected = "sockets_directed",
        /// ICMP errors about packets of flows that were translated and forwarded.
        ErrorTranslated = "error_translated",
        /// Fragments left to the stack because the first fragment of their datagram was not seen.
        FragmentLeft = "fragment_left",
        /// Packets that were encapsulated and sent to the node of their backend (direct server
        /// return).
        Encapsulated = "encapsulated",
        /// Encapsulated packets that other nodes sent here (direct server return).
        Decapsulated = "decapsulated",
    }
}

/// Number of elements of `COUNTERS`: the reasons, then the counters.
pub const COUNTERS: u32 = Reason::ALL.len() as u32 + Counter::ALL.len() as u32;

impl Reason {
    /// Returns the ICMP error that the sender gets, or `None` if the packet is dropped silently.
    #[inline(always)]
    pub const fn answer(self) -> Option<Answer> {
        match self {
            Self::NoBackend | Self::NoLocalBackend | Self::UnknownPort => {
                Some(Answer::PortUnreachable)
            }
            Self::DeniedIngress | Self::DeniedEgress => Some(Answer::Prohibited),
            Self::TtlExceeded => Some(Answer::TimeExceeded),
            Self::TooBig => Some(Answer::TooBig),
            Self::Truncated
            | Self::AwaitLocalBackend
            | Self::SourceNotAllowed
            | Self::NoSuchService
            | Self::BackendMissing
            | Self::NotSyn
            | Self::PodDeviceUnknown
            | Self::NoRoute
            | Self::NoMasqueradeAddress
            | Self::NoMasqueradePort
            | Self::FlowTableFull
            | Self::RewriteFailed
            | Self::RejectRateLimited
            | Self::NotAnswerable
            | Self::SpoofedSource
            | Self::ForgedSource
            | Self::PodUnknown
            | Self::FragmentUnknown
            | Self::NotServedHere
            | Self::LeftInGate => None,
        }
    }
    /// Returns the index in `COUNTERS`.
    pub const fn index(self) -> u32 {
        self as u32
    }
}

/// A connection that NetworkPolicy denied: an element of the ring buffer `DENIALS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Denial {
    /// The client's IPv6 address, or mapped IPv4 address.
    pub src: [u8; 16],
    /// The server's address after translation, likewise.
    pub dst: [u8; 16],
    /// The client's port, host order; 0 if the denied packet is a reply.
    pub sport: u16,
    /// The server's port, host order.
    pub dport: u16,
    /// The IP protocol.
    pub protocol: u32,
    /// The number of a [`Reason`].
    pub reason: u32,
    /// Number of equal denials (same ends and port) since the last one that was reported.
    pub silent: u32,
}
const _: () = assert!(size_of::<Denial>() == 48);

impl Denial {
    /// Makes the denial of a connection.
    #[inline(always)]
    pub fn new<A: Address>(key: &FlowKey<A>, reason: Reason, silent: u32) -> Self {
        Self {
            src: key.src.mapped(),
            dst: key.dst.mapped(),
            sport: key.sport.number(),
            dport: key.dport.number(),
            protocol: key.protocol.0.into(),
            reason: reason as u32,
            silent,
        }
    }
}

/// An ICMP or ICMPv6 error that we send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Port unreachable: the client gets "connection refused" at once.
    PortUnreachable,
    /// Administratively prohibited: the client gets "no route to host" or "permission denied" at
    /// once.
    Prohibited,
    /// Time to live exceeded in transit.
    TimeExceeded,
    /// Fragmentation needed (IPv4), packet too big (IPv6): the sender learns the path's MTU.
    TooBig,
}

impl Counter {
    /// Returns the index in `COUNTERS`.
    pub const fn index(self) -> u32 {
        Reason::ALL.len() as u32 + self as u32
    }
}
