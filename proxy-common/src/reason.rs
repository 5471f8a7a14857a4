//! Why a packet did not go where it wanted, and what is counted: one list for the error value, the index and the words.

use crate::flow::FlowKey;
use crate::net::Address;

/// Declares an enum whose discriminants index the counters, with a name and a sentence each.
macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $key:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A stable name for metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $key,)* }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

counted! {
    /// Why a packet is not sent on. Every value means: dropped, and counted under its name.
    Reason {
        /// The frame ends within a header that it announces.
        Truncated = "truncated",
        /// The Service has no backend that may be used; the client is told at once.
        NoBackend = "no_backend",
        /// The traffic policy is Local and no backend is on this node; the client is told at once.
        NoLocalBackend = "no_local_backend",
        /// The traffic policy is Local and no backend is on this node; dropped, so that a retry may find one.
        AwaitLocalBackend = "await_local_backend",
        /// A port of a cluster IP that its Service does not have.
        UnknownPort = "unknown_port",
        /// The source is in none of the Service's loadBalancerSourceRanges.
        SourceNotAllowed = "source_not_allowed",
        /// An address of the cluster's Service ranges that no Service has.
        NoSuchService = "no_such_service",
        /// The slot of a backend was not found: its Service changed while the packet passed.
        BackendMissing = "backend_missing",
        /// A TCP packet to a cluster IP that opens nothing and belongs to no flow (V16).
        NotSyn = "not_syn",
        /// The backend is a pod of this node whose device has not been found yet.
        PodDeviceUnknown = "pod_device_unknown",
        /// There is no route to the backend, or forwarding is switched off on the device.
        NoRoute = "no_route",
        /// The device towards the backend has no address to masquerade with.
        NoMasqueradeAddress = "no_masquerade_address",
        /// No free source port was found in the masquerade range (V12).
        NoMasqueradePort = "no_masquerade_port",
        /// The flow table takes no more entries.
        FlowTableFull = "flow_table_full",
        /// Its time to live ended here; the sender is told.
        TtlExceeded = "ttl_exceeded",
        /// Larger than the device takes that it would leave by; the sender is told how much that is.
        TooBig = "too_big",
        /// The kernel refused a change of the packet.
        RewriteFailed = "rewrite_failed",
        /// It would have been answered with an ICMP error, of which the limit allows no more now.
        RejectRateLimited = "reject_rate_limited",
        /// It would have been answered with an ICMP error, but its source cannot be answered: multicast, broadcast, unspecified or loopback.
        NotAnswerable = "not_answerable",
        /// NetworkPolicy: the destination pod may not be reached so by this source.
        DeniedIngress = "denied_ingress",
        /// NetworkPolicy: the source pod may not reach this destination so.
        DeniedEgress = "denied_egress",
        /// A pod sent with an address that is not its own (P33).
        SpoofedSource = "spoofed_source",
        /// It came from outside and claims to be from this host or one of its pods (P18).
        ForgedSource = "forged_source",
        /// The pod behind the device is not known yet, and there are NetworkPolicies (P31).
        PodUnknown = "pod_unknown",
        /// A fragment whose first one was not seen, to or from a pod that a NetworkPolicy isolates (P27).
        FragmentUnknown = "fragment_unknown",
        /// Another node has sent it here encapsulated, and no Service leads to such a backend of this node.
        NotServedHere = "not_served_here",
        /// A process of this host has sent it to the Service ranges, and it is nothing that could be translated: the stack would send it here again.
        LeftInGate = "left_in_gate",
    }
}

counted! {
    /// What else is counted.
    Counter {
        /// Packets of flows that were sent on.
        Forwarded = "forwarded",
        /// Those of them that XDP sent on.
        ForwardedByXdp = "forwarded_early",
        /// Packets of redirectable flows that went through the stack instead.
        Fallback = "fallback",
        /// Flows opened.
        Opened = "opened",
        /// Those of them that are not translated: connections of pods, followed for NetworkPolicy.
        Followed = "followed",
        /// Flows whose backend answered.
        Established = "established",
        /// Half-open flows that a new connection on their tuple took the place of (V17).
        Replaced = "half_open_replaced",
        /// Flows that both ends had closed, whose masquerade port another needed.
        ClosedReplaced = "closed_replaced",
        /// ICMP errors sent: refusals, and packets that cannot go on.
        Rejected = "rejected",
        /// Fragments of TCP segments and UDP datagrams, left alone.
        Fragment = "fragment",
        /// IPv6 packets with extension headers, left alone.
        ExtensionHeader = "extension_header",
        /// Flows that stay half-open because the flow table is full.
        TableFull = "flow_table_full_half_open",
        /// Packets that XDP left to tc.
        LeftToTc = "left_to_tc",
        /// Sockets of this node's processes that were sent to a backend: connections, and each address of an unconnected UDP socket.
        SocketsDirected = "sockets_directed",
        /// ICMP errors about packets of flows that were sent on, translated like these.
        ErrorTranslated = "error_translated",
        /// Fragments whose datagram's first was not seen, left to the stack.
        FragmentLeft = "fragment_left",
        /// Packets that went on encapsulated, to the node of their backend (direct server return).
        Encapsulated = "encapsulated",
        /// Packets that other nodes have sent here so.
        Decapsulated = "decapsulated",
    }
}

/// The number of elements of `COUNTERS`: the reasons, then the counters.
pub const COUNTERS: u32 = Reason::ALL.len() as u32 + Counter::ALL.len() as u32;

impl Reason {
    /// What the sender is told, if it is told anything.
    #[inline(always)]
    pub const fn answer(self) -> Option<Answer> {
        match self {
            Self::NoBackend | Self::NoLocalBackend | Self::UnknownPort => {
                Some(Answer::PortUnreachable)
            }
            Self::DeniedIngress | Self::DeniedEgress => Some(Answer::Prohibited),
            Self::TtlExceeded => Some(Answer::TimeExceeded),
            Self::TooBig => Some(Answer::TooBig),
            _ => None,
        }
    }
    /// The index in `COUNTERS`.
    pub const fn index(self) -> u32 {
        self as u32
    }
}

/// A connection that NetworkPolicy has denied; what `DENIALS` brings.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Denial {
    /// The client, as IPv6 has it (IPv4 mapped).
    pub src: [u8; 16],
    /// The server after translation, likewise.
    pub dst: [u8; 16],
    /// The client's port, host order; 0 where a reply was met.
    pub sport: u16,
    /// The server's port, host order.
    pub dport: u16,
    /// The IP protocol.
    pub protocol: u32,
    /// A [`Reason`] as number.
    pub reason: u32,
    /// How many denials of the same ends and port were not told since the last one that was.
    pub silent: u32,
}
const _: () = assert!(size_of::<Denial>() == 48);

impl Denial {
    /// Of a connection by its key.
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

/// An ICMP or ICMPv6 error that we make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The client sees "connection refused" at once.
    PortUnreachable,
    /// Administratively prohibited: the client sees "no route to host" or "permission denied" at once.
    Prohibited,
    /// The time to live ended in transit.
    TimeExceeded,
    /// Fragmentation needed, or packet too big: the sender learns the path's MTU.
    TooBig,
}

impl Counter {
    /// The index in `COUNTERS`.
    pub const fn index(self) -> u32 {
        Reason::ALL.len() as u32 + self as u32
    }
}
