//! The points at which programs are attached to devices, in one table.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use aya::programs::TcAttachType;
use aya::programs::xdp::XdpMode;
use proxy_common::net::IfIndex;

/// Mode in which a program is attached.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// By tc, in this direction. The program has the name of the point.
    Tc(TcAttachType),
    /// By XDP, in the stack or in the driver. The program depends on the kernel.
    Xdp(XdpMode),
}

/// The devices that a point belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Pod,
    Node,
}

/// Makes the enum and its properties from one table.
macro_rules! attach_points {
    ($($(#[$doc:meta])* $point:ident: $name:literal, $side:ident, $mode:expr;)+) => {
        /// The attach points, in the order of attaching: a program that reverses a translation
        /// comes before the one that makes it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum AttachPoint {
            $($(#[$doc])* $point,)+
        }

        impl AttachPoint {
            /// Every point.
            pub const ALL: &[Self] = &[$(Self::$point),+];

            /// Its name, in pins and for people.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }

            /// Its mode.
            pub const fn mode(self) -> Mode {
                match self {
                    $(Self::$point => $mode,)+
                }
            }

            const fn side(self) -> Side {
                match self {
                    $(Self::$point => Side::$side,)+
                }
            }
        }
    };
}

attach_points! {
    /// tc egress of the host side of a pod's veth.
    ToPod: "to_pod", Pod, Mode::Tc(TcAttachType::Egress);
    /// tc egress of a node device.
    ToDevice: "to_device", Node, Mode::Tc(TcAttachType::Egress);
    /// tc ingress of the host side of a pod's veth.
    FromPod: "from_pod", Pod, Mode::Tc(TcAttachType::Ingress);
    /// tc ingress of a node device.
    FromDevice: "from_device", Node, Mode::Tc(TcAttachType::Ingress);
    /// XDP in the stack of a node device.
    XdpGeneric: "xdp_generic", Node, Mode::Xdp(XdpMode::Skb);
    /// XDP in the driver of a node device.
    XdpNative: "xdp_native", Node, Mode::Xdp(XdpMode::Driver);
}

impl AttachPoint {
    /// Returns the names of the tc programs.
    pub fn tc_programs() -> impl Iterator<Item = &'static str> {
        Self::ALL
            .iter()
            .filter(|point| !point.is_xdp())
            .map(|point| point.name())
    }

    /// Returns true for a pod's device, where the program stays for as long as the device.
    pub const fn is_pods(self) -> bool {
        matches!(self.side(), Side::Pod)
    }

    /// Returns true for XDP, which runs before the kernel has a socket buffer.
    pub const fn is_xdp(self) -> bool {
        matches!(self.mode(), Mode::Xdp(_))
    }
}

/// A program's place: a point of a device. Its text is the name of the pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Attachment {
    /// The point.
    pub point: AttachPoint,
    /// The device.
    pub device: IfIndex,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.point.name(), self.device.0)
    }
}

impl FromStr for Attachment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, device) = text
            .rsplit_once('-')
            .with_context(|| format!("{text} is not the name of a hook"))?;
        let point = *AttachPoint::ALL
            .iter()
            .find(|point| point.name() == name)
            .with_context(|| format!("{text} is not the name of a hook"))?;
        let device = device
            .parse()
            .with_context(|| format!("{text} has no index of a device"))?;
        Ok(Self {
            point,
            device: IfIndex(device),
        })
    }
}
