//! Addresses, ports, devices and checksums, as they lie on the wire and in the maps.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family: the packet path is written once over this trait and instantiated twice.
pub trait Family: Copy + Sized + 'static {
    /// An address in network order.
    type Addr: Address;
    /// The EtherType of the family, host order.
    const ETHERTYPE: u16;
    /// IPv6, where the two differ in more than the size of an address.
    const V6: bool;
}

/// An address of one family, in network order, aligned to its words.
pub trait Address: Copy + Eq + Ord + core::hash::Hash + core::fmt::Debug + 'static {
    /// The unspecified address; key of nodePort frontends once the destination is known to be a nodePort address.
    const ZERO: Self;
    /// The address with all bits set, which no packet has: rubbish for tests.
    const ALL_ONES: Self;
    /// The address by which a host reaches itself.
    const LOOPBACK: Self;
    /// Whether packets to it never leave the host.
    fn is_loopback(self) -> bool;
    /// The one's complement sum of the address, for incremental checksums.
    fn sum(self) -> u32;
    /// The address folded to 32 bits, for hashing.
    fn fold(self) -> u32;
    /// The address in the words of the standard library.
    fn ip(self) -> IpAddr;
    /// The sixteen bytes of the address; IPv4 in its mapped form.
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
    /// The four bytes as they stand in a packet.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
    /// The four bytes as they stand in a packet.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
    /// The four bytes as one number in memory order.
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
    /// The sixteen bytes as they stand in a packet.
    #[inline(always)]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }
    /// The sixteen bytes as they stand in a packet.
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
    /// The address as four numbers in memory order.
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
    /// No port.
    pub const NONE: Self = Self(0);
    /// A port from its number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }
    /// The port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
    /// The two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }
    /// The two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
    /// The two bytes as one number in memory order, for sums and hashes.
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
    /// An IPv4 packet (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// An IPv6 packet (RFC 2473).
    pub const IPV6: Self = Self(41);

    /// Whether connections begin and end by packets that say so: TCP's and SCTP's.
    #[inline(always)]
    pub const fn has_handshake(self) -> bool {
        self.0 == Self::TCP.0 || self.0 == Self::SCTP.0
    }
    /// `TCP`, `UDP`, `SCTP` as Kubernetes writes them, `?` for anything else.
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
    /// The device by which a host reaches itself: it has this index in every network namespace.
    pub const LOOPBACK: Self = Self(1);
}

/// One's complement addition of two 32-bit partial sums.
///
/// Folded so far that nothing is carried: a carry would be a branch to the compiler, and several of them more paths than old verifiers walk.
#[inline(always)]
pub const fn sum_add(a: u32, b: u32) -> u32 {
    partial(a as u64 + b as u64)
}

/// The partial sum of up to 65,536 words that were added up.
#[inline(always)]
const fn partial(sum: u64) -> u32 {
    ((sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32)) as u32
}

/// The partial sum that turns `from` into `to`: add it to the complement of a checksum.
#[inline(always)]
pub const fn sum_diff(from: u32, to: u32) -> u32 {
    sum_add(to, !from)
}

/// Folds a 32-bit partial sum to 16 bits, without complementing it.
#[inline(always)]
pub const fn sum_fold(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    ((s & 0xffff) + (s >> 16)) as u16
}

/// RFC 1624: the checksum after its data changed by `diff`; both in memory order. The kernel's `bpf_l4_csum_replace` does the same.
#[inline(always)]
pub const fn checksum_update(checksum: u16, diff: u32) -> u16 {
    !sum_fold(sum_add(diff, !(checksum as u32)))
}

/// Mixes 32-bit words to one, after Bob Jenkins' public-domain `lookup3` final mix, which the kernel's `jhash_3words` uses too.
#[inline(always)]
pub const fn hash3(a: u32, b: u32, c: u32, secret: u64) -> u32 {
    let mut a = a.wrapping_add(secret as u32);
    let mut b = b.wrapping_add((secret >> 32) as u32);
    let mut c = c.wrapping_add(0xdead_beef);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// What an address is to this node; value of the `ADDRESSES` maps.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// An address of this host: packets to it end in the host's stack.
    pub const HOST: u32 = 1;
    /// nodePorts are served on it (V8).
    pub const NODE_PORTS: u32 = 2;
    /// The cluster IP of a Service: unknown ports are rejected.
    pub const CLUSTER_IP: u32 = 4;
    /// The cluster IP of a Service that another proxy serves (V1): none of our business.
    pub const FOREIGN: u32 = 8;
    /// A node of the cluster has it.
    pub const NODE: u32 = 16;

    /// Whether all bits of `flag` are set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag == flag
    }
}

/// What the addresses of a prefix are; value of the `RANGES` maps, where the longest prefix counts.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RangeKind(pub u32);

impl RangeKind {
    /// Nothing of these: a node's address inside a wider prefix.
    pub const NONE: Self = Self(0);
    /// Cluster IPs are given out from it: one that no Service has is dropped.
    pub const SERVICES: Self = Self(1);
    /// Of the pod network: clients from other nodes are pods (V11).
    pub const PODS: Self = Self(2);
}

/// A pod of this node and the host side of its device; value of the `PODS` maps, key its address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LocalPod {
    /// The host-side device of the pod's veth pair; [`IfIndex::NONE`] while it is not found.
    pub device: IfIndex,
    /// Its element of `ROWS`: the policy that both families share; 0 while it has none.
    pub pod_id: u32,
}
const _: () = assert!(size_of::<LocalPod>() == 8);

/// The host side of a pod's veth pair whose pod is known; value of `VETHS`, key its [`IfIndex`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Veth {
    /// [`LocalPod::pod_id`] of its pod.
    pub pod_id: u32,
    /// See [`Veth::ANY_SOURCE`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Veth>() == 8);

impl Veth {
    /// The pod may send with addresses that are not its own (P33: an annotation exempts it).
    pub const ANY_SOURCE: u32 = 1;
}

/// A device that our programs are attached to or send through; value of `DEVICES`, key its [`IfIndex`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Device {
    /// The address that masquerade gives packets leaving here (V12: the route's preferred source); zero if none.
    pub masquerade6: Addr6,
    /// The same for IPv4.
    pub masquerade4: Addr4,
    /// Bytes, without the link-layer header.
    pub mtu: u32,
    /// See [`Device::XDP_TARGET`].
    pub flags: u32,
    /// The address that the cluster knows this node by: whatever the device, encapsulated packets leave with it. Zero if none. Behind
    /// all that agents knew before: a device that one of them has written has none.
    pub node6: Addr6,
    /// The same for IPv4.
    pub node4: Addr4,
}
const _: () = assert!(size_of::<Device>() == 48);

impl Device {
    /// Frames that another device's XDP program redirects here are sent (the driver has an XDP program attached).
    pub const XDP_TARGET: u32 = 1;
    /// Pods of this node are on it (a bridge): what comes from it may be theirs.
    pub const HAS_PODS: u32 = 2;
    /// The link-layer address of both ends of the gate.
    pub const GATE_MAC: [u8; 6] = [0x02, 0x70, 0x6f, 0x72, 0x74, 0x01];
}
