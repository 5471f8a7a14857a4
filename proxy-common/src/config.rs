//! The settings that the agent gives the packet path.

use crate::net::IfIndex;

/// Settings of the packet path; the one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Config {
    /// Key of the hash that chooses backends (V15).
    pub secret: u64,
    /// First port of the masquerade range (V12), host order.
    pub masquerade_first: u16,
    /// Number of ports of the masquerade range.
    pub masquerade_len: u16,
    /// Jiffies in a second.
    pub hz: u32,
    /// Seconds after which a SYN on a half-open flow opens a new connection (V17).
    pub opening_timeout: u32,
    /// Seconds that an answered UDP flow lives after its last packet (V18).
    pub udp_timeout: u32,
    /// Smallest MTU of all devices, in bytes without the link-layer header: a packet that is no
    /// larger fits through any.
    pub least_mtu: u32,
    /// Bits: [`Config::THROUGH_STACK`], [`Config::POLICY`], [`Config::DENY_UNKNOWN`],
    /// [`Config::REJECT_DENIED`].
    pub flags: u32,
    /// The gate: the device by which packets of this host's processes to Services come to the
    /// programs if sockets have no hooks (V21), else [`IfIndex::NONE`]. Added at the end of the
    /// layout.
    pub gate: IfIndex,
    /// Always zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<Config>() == 40);

impl Config {
    /// Translated packets go through the stack, so that the host's firewall for forwarded packets
    /// filters them.
    pub const THROUGH_STACK: u32 = 1;
    /// NetworkPolicy isolates a pod of this node: packets are judged.
    pub const POLICY: u32 = 2;
    /// Connections of unknown pods are denied (P31).
    pub const DENY_UNKNOWN: u32 = 4;
    /// Denied packets are answered with an ICMP error.
    pub const REJECT_DENIED: u32 = 8;

    /// Returns true if all bits of `flag` are set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}
