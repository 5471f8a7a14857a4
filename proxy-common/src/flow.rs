//! Flows: connections as the flow tables have them. The key is the packet as it arrives, the value
//! is how to send it on.

use crate::net::{Address, IfIndex, Port, Protocol};

/// One direction of a connection, as its packets arrive. Key of `FLOWS*` and `OPENING*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<FlowKey<crate::net::Addr4>>() == 16);
const _: () = assert!(size_of::<FlowKey<crate::net::Addr6>>() == 40);

impl<A: Address> FlowKey<A> {
    /// Makes a key from its five parts.
    #[inline(always)]
    pub fn new(protocol: Protocol, src: A, sport: Port, dst: A, dport: Port) -> Self {
        Self {
            src,
            dst,
            sport,
            dport,
            protocol,
            zero: [0; 3],
        }
    }
    /// Returns the key of the other direction, if nothing is translated.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self::new(self.protocol, self.dst, self.dport, self.src, self.sport)
    }
}

/// The rewrite and the way of one direction's packets. Value of `FLOWS*` and `OPENING*`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow<A> {
    /// The source address that packets leave with.
    pub src: A,
    /// The destination address that packets leave with.
    pub dst: A,
    /// The source port that packets leave with.
    pub sport: Port,
    /// The destination port that packets leave with.
    pub dport: Port,
    /// The device of every way but [`Way::Stack`].
    pub device: IfIndex,
    /// Low 32 bits of jiffies at a recent packet of the flow; refreshed at most once a second.
    pub seen: u32,
    /// Id of the Service port that opened the flow: the key of `NAMES`.
    pub service: u32,
    /// The number of a [`Way`].
    pub way: u8,
    /// Bits of [`Hook`]: the hooks that rewrite. Other hooks leave the packet alone.
    pub hooks: u8,
    /// Bits of [`State`], the same in both directions.
    pub state: u8,
    /// Bits of [`Role`], fixed when the flow opens.
    pub role: u8,
}
const _: () = assert!(size_of::<Flow<crate::net::Addr4>>() == 28);
const _: () = assert!(size_of::<Flow<crate::net::Addr6>>() == 52);

impl<A: Address> Flow<A> {
    /// Returns the key of the other direction's entry.
    #[inline(always)]
    pub fn mate(&self, protocol: Protocol) -> FlowKey<A> {
        FlowKey::new(protocol, self.dst, self.dport, self.src, self.sport)
    }
    /// Returns true if the flow has one of the bits of `role`.
    #[inline(always)]
    pub fn is(&self, role: u8) -> bool {
        self.role & role != 0
    }
}

crate::numbered! {
    /// The way of rewritten packets. It is chosen when the flow opens, and binds both directions.
    pub enum Way: u8, else Stack {
        /// Up the host's stack, which routes them.
        Stack = 0,
        /// Into the pod behind the veth [`Flow::device`].
        Pod = 1,
        /// To the next hop of the route through [`Flow::device`].
        Neighbour = 2,
        /// Out of the gate [`Flow::device`], to a process of this host.
        Gate = 3,
        /// Unchanged but encapsulated, by the route through [`Flow::device`], to the backend's
        /// node, which answers the client directly (direct server return).
        Dsr = 4,
    }
}

impl Way {
    /// Returns true if the stack forwards the packet: it decrements the TTL, so the rewrite does
    /// not.
    #[inline(always)]
    pub const fn is_to_stack(self) -> bool {
        matches!(self, Self::Stack | Self::Gate)
    }
}

/// A hook at which a program meets packets, as a bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hook {
    /// Packets that a node device received: XDP, or tc ingress.
    FromDevice = 1,
    /// Packets that a pod sent: tc ingress of the host side of its veth.
    FromPod = 2,
    /// Packets that the stack or a bridge sends to a pod: tc egress of the host side of its veth.
    ToPod = 4,
    /// Packets that this host sends through a node device: tc egress.
    ToDevice = 8,
}

impl Hook {
    /// Returns true for tc egress: the stack has routed the packet, so that it keeps its way.
    #[inline(always)]
    pub const fn is_egress(self) -> bool {
        matches!(self, Self::ToPod | Self::ToDevice)
    }
}

/// The role of a flow's entry: bits of [`Flow::role`].
pub struct Role;

impl Role {
    /// The entry is for the client's packets.
    pub const FORWARD: u8 = 1;
    /// The entry is for the backend's packets.
    pub const REPLY: u8 = 2;
    /// The source was rewritten to an address of this node and a port of the masquerade range.
    pub const MASQUERADE: u8 = 4;
    /// The flow begins where another ends: it translates, on their way out, packets that were
    /// translated on their way in and went through the stack.
    pub const INNER: u8 = 8;
    /// A connection of a pod of this node that is not translated: followed, so that its replies are
    /// recognized (P25).
    pub const UNTRANSLATED: u8 = 16;
    /// The client is this host itself (P18).
    pub const OWN_NODE: u8 = 32;
    /// Another node encapsulates the client's packets and sends them here (direct server return).
    pub const ENCAPSULATED: u8 = 64;
}

/// A fragmented datagram. Key of `FRAGMENTS*`; the value is [`fragment_ports`] of its first
/// fragment (P27).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The datagram's identification, in memory order.
    pub id: u32,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<FragmentKey<crate::net::Addr4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<crate::net::Addr6>>() == 40);

/// Returns both ports as the first four bytes of a transport header.
pub fn fragment_ports(sport: Port, dport: Port) -> u32 {
    let ([a, b], [c, d]) = (sport.bytes(), dport.bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Number of entries of a table of established flows; each connection takes two.
pub const TABLE_ENTRIES: u32 = 262_144;

/// The state of a connection: bits of [`Flow::state`].
pub struct State;

impl State {
    /// The backend has answered: the flow lives in `FLOWS*`.
    pub const REPLIED: u8 = 1;
    /// The client sent FIN.
    pub const FIN_FORWARD: u8 = 2;
    /// The backend sent FIN.
    pub const FIN_REPLY: u8 = 4;
    /// Either sent RST.
    pub const RESET: u8 = 8;
    /// Both sent FIN.
    pub const FIN_BOTH: u8 = Self::FIN_FORWARD | Self::FIN_REPLY;

    /// Returns true if the connection has ended, so that a SYN opens a new one (V17).
    #[inline(always)]
    pub const fn closed(state: u8) -> bool {
        state & Self::RESET != 0 || state & Self::FIN_BOTH == Self::FIN_BOTH
    }
}
