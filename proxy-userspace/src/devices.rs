//! The devices of this host that programs are attached to: found by `links`, used by `dataplane`.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::net::IfIndex;

/// The devices of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Every device of this host.
    pub present: BTreeSet<IfIndex>,
    /// Names of node devices and of the pods' devices.
    pub names: BTreeMap<IfIndex, String>,
    /// The pods' devices, with those that look like one of a pod not known yet (P31).
    pub pods: BTreeSet<IfIndex>,
    /// Node devices, and loopback where processes go by a gate.
    pub drivers: BTreeMap<IfIndex, Driver>,
}

/// The driver of a device, as far as XDP cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A network card, real or paravirtual: XDP may run in the driver.
    Card,
    /// Ethernet made of software (veth, bridge, bond): native XDP would break partial checksums and
    /// segmentation offload.
    Software,
    /// A tunnel, or a device without Ethernet headers: not for XDP.
    Tunnel,
    /// Loopback. Used together with a gate only; all that it receives is this host's own.
    Loopback,
}
