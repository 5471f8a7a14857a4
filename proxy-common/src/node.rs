//! Addresses, address ranges, pods and devices of a node, as values of maps.

use crate::net::{Addr4, Addr6, IfIndex};

/// Bits that describe an address; value of the `ADDRESSES` maps.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// It is an address of this host: packets to it are delivered to the host's stack.
    pub const HOST: u32 = 1;
    /// nodePorts are served at it (V8).
    pub const NODE_PORTS: u32 = 2;
    /// It is the cluster IP of a Service: unknown ports are rejected.
    pub const CLUSTER_IP: u32 = 4;
    /// It is the cluster IP of a Service that another proxy serves (V1): packets to it pass.
    pub const FOREIGN: u32 = 8;
    /// It is the address of a node of the cluster.
    pub const NODE: u32 = 16;

    /// Returns true if all bits of `flag` are set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag == flag
    }
}

/// The kind of a prefix's addresses; value of the `RANGES` maps, in which the longest prefix
/// counts.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RangeKind(pub u32);

impl RangeKind {
    /// Neither of the others: a node's address inside a wider prefix.
    pub const NONE: Self = Self(0);
    /// Cluster IPs: packets to one that no Service has are dropped.
    pub const SERVICES: Self = Self(1);
    /// The pod network: clients of other nodes with such an address are pods (V11).
    pub const PODS: Self = Self(2);
}

/// A pod of this node; value of the `PODS` maps. The key is an address of the pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LocalPod {
    /// The host-side device of the pod's veth pair; [`IfIndex::NONE`] while it is not found.
    pub device: IfIndex,
    /// Index of the pod's element in `ROWS`, which both families share; 0 if it has none.
    pub pod_id: u32,
}
const _: () = assert!(size_of::<LocalPod>() == 8);

/// The host side of a known pod's veth pair; value of `VETHS`. The key is its [`IfIndex`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Veth {
    /// [`LocalPod::pod_id`] of the pod.
    pub pod_id: u32,
    /// Bits: [`Veth::ANY_SOURCE`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Veth>() == 8);

impl Veth {
    /// The pod may send from any address (P33: an annotation exempts it).
    pub const ANY_SOURCE: u32 = 1;
}

/// A device that the programs are attached to or send through; value of `DEVICES`. The key is its
/// [`IfIndex`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Device {
    /// The IPv6 address that masquerade uses for packets that leave by the device (V12: the route's
    /// preferred source); zero if none.
    pub masquerade6: Addr6,
    /// The IPv4 address that masquerade uses; zero if none.
    pub masquerade4: Addr4,
    /// MTU, in bytes without the link-layer header.
    pub mtu: u32,
    /// Bits: [`Device::XDP_TARGET`], [`Device::HAS_PODS`].
    pub flags: u32,
    /// This node's IPv6 address in the cluster: the source of encapsulated packets, whichever
    /// device they leave by; zero if none. Added at the end of the layout: earlier agents write
    /// zero.
    pub node6: Addr6,
    /// This node's IPv4 address in the cluster; zero if none.
    pub node4: Addr4,
}
const _: () = assert!(size_of::<Device>() == 48);

impl Device {
    /// The device sends frames that XDP of another device redirects to it: its driver has an XDP
    /// program attached.
    pub const XDP_TARGET: u32 = 1;
    /// Pods of this node are on the device (a bridge): packets from it may be theirs.
    pub const HAS_PODS: u32 = 2;
    /// Link-layer address of both ends of the gate.
    pub const GATE_MAC: [u8; 6] = [0x02, 0x70, 0x6f, 0x72, 0x74, 0x01];
}
