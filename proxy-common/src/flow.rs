//! Connections: the key is what a packet of one direction looks like when it meets us, the value what becomes of it.

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
    /// A key from its five parts.
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
    /// The same connection seen from the other end.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self::new(self.protocol, self.dst, self.dport, self.src, self.sport)
    }
}

/// What becomes of the packets of one direction: the whole rewrite and the way. Value of `FLOWS*` and `OPENING*`.
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
    /// Where [`Way::Pod`], [`Way::Neighbour`] and [`Way::Gate`] lead.
    pub device: IfIndex,
    /// Low 32 bits of jiffies when a packet of this direction was last noted; refreshed at most once a second.
    pub seen: u32,
    /// The Service port that opened the flow: the key of `NAMES`.
    pub service: u32,
    /// How rewritten packets go on; a [`Way`] as number.
    pub way: u8,
    /// Bits of [`Hook`]: where the rewrite happens. A packet that meets us elsewhere is left alone.
    pub hooks: u8,
    /// Bits of [`State`], kept alike in both directions.
    pub state: u8,
    /// Bits of [`Role`], fixed when the flow opens.
    pub role: u8,
}
const _: () = assert!(size_of::<Flow<crate::net::Addr4>>() == 28);
const _: () = assert!(size_of::<Flow<crate::net::Addr6>>() == 52);

impl<A: Address> Flow<A> {
    /// The key of the other direction's entry.
    #[inline(always)]
    pub fn mate(&self, protocol: Protocol) -> FlowKey<A> {
        FlowKey::new(protocol, self.dst, self.dport, self.src, self.sport)
    }
    /// Whether the flow is one of `role`.
    #[inline(always)]
    pub fn is(&self, role: u8) -> bool {
        self.role & role != 0
    }
}

/// How a rewritten packet goes on. Chosen when the flow opens, and binds both directions (design: "one way for both directions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Way {
    /// Up the host's stack, which routes it.
    Stack = 0,
    /// Into the pod behind the veth `device`.
    Pod = 1,
    /// To the next hop that the route through `device` names.
    Neighbour = 2,
    /// Out of the gate `device`, to a process of this host.
    Gate = 3,
    /// As it came, encapsulated, to the node of the backend, which answers it (direct server return): by the next hop that the route through
    /// `device` names.
    Dsr = 4,
}

impl Way {
    /// The way of a [`Flow::way`]; numbers that are none mean the stack.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Pod,
            2 => Self::Neighbour,
            3 => Self::Gate,
            4 => Self::Dsr,
            _ => Self::Stack,
        }
    }

    /// Whether it leads to this host's stack, which does what a router does: our rewriting leaves the time to live alone.
    #[inline(always)]
    pub const fn is_to_stack(self) -> bool {
        matches!(self, Self::Stack | Self::Gate)
    }
}

/// Where a program of ours meets packets, as a bit.
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

/// What a flow's entry is; bits of [`Flow::role`].
pub struct Role;

impl Role {
    /// The direction of the client's packets.
    pub const FORWARD: u8 = 1;
    /// The direction of the backend's packets.
    pub const REPLY: u8 = 2;
    /// The source was rewritten to an address of this node and a port of the masquerade range.
    pub const MASQUERADE: u8 = 4;
    /// It begins where another flow ends: on the way out of a packet that was translated on its way in, and went through the stack.
    pub const INNER: u8 = 8;
    /// A connection of a pod of this node that is not translated: followed, so that its replies are known as such (P25).
    pub const UNTRANSLATED: u8 = 16;
    /// The client is this host itself (P18).
    pub const OWN_NODE: u8 = 32;
    /// The client has asked another node, which sends its packets here encapsulated (direct server return).
    pub const ENCAPSULATED: u8 = 64;
}

/// A fragmented datagram; key of `FRAGMENTS*`, whose value is [`fragment_ports`] of its first fragment (P27).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The datagram's number, in memory order.
    pub id: u32,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<FragmentKey<crate::net::Addr4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<crate::net::Addr6>>() == 40);

/// Both ports of a datagram, as the first four bytes of its transport header have them.
pub fn fragment_ports(sport: Port, dport: Port) -> u32 {
    let ([a, b], [c, d]) = (sport.bytes(), dport.bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// How many entries an established table has room for, two for each connection.
pub const TABLE_ENTRIES: u32 = 262_144;

/// What was seen of a connection; bits of [`Flow::state`].
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

    /// Whether the connection has ended, so that a SYN opens a new one (V17).
    #[inline(always)]
    pub const fn closed(state: u8) -> bool {
        state & Self::RESET != 0 || state & Self::FIN_BOTH == Self::FIN_BOTH
    }
}
