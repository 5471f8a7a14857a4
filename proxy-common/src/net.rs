//! Addresses, ports, protocol numbers and device indices, as packets and maps contain them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::partial;
pub use crate::node::{AddressFlags, Device, LocalPod, RangeKind, Veth};

/// An address family. The packet path is generic over it, and compiled once for each family.
pub trait Family: Copy + Sized + 'static {
    /// An address in network order.
    type Addr: Address;
    /// The EtherType of the family, host order.
    const ETHERTYPE: u16;
    /// True for IPv6.
    const V6: bool;
}

/// An address of one family, in network order, aligned to 32-bit words.
pub trait Address: Copy + Eq + Ord + core::hash::Hash + core::fmt::Debug + 'static {
    /// The unspecified address; in the key of a frontend it means all nodePort addresses.
    const ZERO: Self;
    /// The address with all bits set, which no packet has: rubbish for tests.
    const ALL_ONES: Self;
    /// The loopback address: 127.0.0.1 or ::1.
    const LOOPBACK: Self;
    /// Returns true for a loopback address.
    fn is_loopback(self) -> bool;
    /// Returns the one's complement sum of the address, for incremental checksums.
    fn sum(self) -> u32;
    /// Returns the address folded to 32 bits, for hashing.
    fn fold(self) -> u32;
    /// Returns the address as the standard library's type.
    fn ip(self) -> IpAddr;
    /// Returns the sixteen bytes of the IPv6 address, or of the mapped IPv4 address.
    fn mapped(self) -> [u8; 16];
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    const ETHERTYPE: u16 = 0x0800;
    const V6: bool = false;
}

impl Family for V6 {
    type Addr = Addr6;
    const ETHERTYPE: u16 = 0x86dd;
    const V6: bool = true;
}

/// An IPv4 address in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr4(u32);

/// An IPv6 address in network order, as four words.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr6([u32; 4]);

impl Addr4 {
    /// Makes an address from its four bytes in a packet.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
    /// Returns the four bytes of the address in a packet.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
    /// Returns the four bytes as one number, in memory order.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }
    /// The inverse of [`Addr4::word`].
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
}

impl Addr6 {
    /// Makes an address from its sixteen bytes in a packet.
    #[inline(always)]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }
    /// Returns the sixteen bytes of the address in a packet.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
    /// Returns the address as four numbers, in memory order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }
    /// The inverse of [`Addr6::words`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }
}

impl Address for Addr4 {
    const ZERO: Self = Self(0);
    const ALL_ONES: Self = Self(u32::MAX);
    const LOOPBACK: Self = Self::from_bytes([127, 0, 0, 1]);
    #[inline(always)]
    fn is_loopback(self) -> bool {
        u32::from_be(self.0) >> 24 == 127
    }
    #[inline(always)]
    fn sum(self) -> u32 {
        self.0
    }
    #[inline(always)]
    fn fold(self) -> u32 {
        self.0
    }
    fn ip(self) -> IpAddr {
        IpAddr::V4(self.bytes().into())
    }
    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        let [a, b, c, d] = self.bytes();
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }
}

impl Address for Addr6 {
    const ZERO: Self = Self([0; 4]);
    const ALL_ONES: Self = Self([u32::MAX; 4]);
    const LOOPBACK: Self = Self([0, 0, 0, 1_u32.to_be()]);
    #[inline(always)]
    fn is_loopback(self) -> bool {
        let ([a, b, c, d], [.., last]) = (self.0, Self::LOOPBACK.0);
        a | b | c == 0 && d == last
    }
    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self.0.map(u64::from);
        partial(a + b + c + d)
    }
    #[inline(always)]
    fn fold(self) -> u32 {
        let [a, b, c, d] = self.0;
        a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d.rotate_left(24)
    }
    fn ip(self) -> IpAddr {
        IpAddr::V6(self.bytes().into())
    }
    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        self.bytes()
    }
}

impl From<Ipv4Addr> for Addr4 {
    fn from(a: Ipv4Addr) -> Self {
        Self::from_bytes(a.octets())
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(a: Ipv6Addr) -> Self {
        Self::from_bytes(a.octets())
    }
}

/// A TCP, UDP or SCTP port in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Port(u16);

impl Port {
    /// Port 0: no port.
    pub const NONE: Self = Self(0);
    /// Makes a port from its number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }
    /// Returns the port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
    /// Makes a port from its two bytes in a packet.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }
    /// Returns the two bytes of the port in a packet.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
    /// Returns the two bytes as one number in memory order, for sums and hashes.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 as u32
    }
}

/// An IP protocol number.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// ICMPv6.
    pub const ICMP6: Self = Self(58);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: Self = Self(41);

    /// Returns true for TCP and SCTP, where packets mark the begin and the end of a connection.
    #[inline(always)]
    pub const fn has_handshake(self) -> bool {
        self.0 == Self::TCP.0 || self.0 == Self::SCTP.0
    }
    /// Returns `TCP`, `UDP` or `SCTP`, as Kubernetes writes them, and `?` for any other.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::SCTP => "SCTP",
            _ => "?",
        }
    }
}

/// The index of a network device; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IfIndex(pub u32);

impl IfIndex {
    /// No device.
    pub const NONE: Self = Self(0);
    /// The loopback device: it has this index in every network namespace.
    pub const LOOPBACK: Self = Self(1);
}
