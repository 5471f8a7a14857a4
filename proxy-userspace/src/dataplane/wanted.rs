//! The attachments that a host is to have, by its devices and the mode of XDP.

use std::collections::BTreeMap;

use proxy_common::net::IfIndex;
use tracing::warn;

use super::attachment::{AttachPoint, Attachment};
use crate::devices::{Devices, Driver};

/// Mode in which XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// In the driver of cards, nowhere else.
    Auto,
    /// In the driver of every device but tunnels.
    Native,
    /// In the stack.
    Generic,
    /// Not at all.
    Off,
}

/// Returns the attachments that the devices of this host are to have, with the device's name.
pub fn wanted(devices: &Devices, xdp: XdpChoice) -> BTreeMap<Attachment, String> {
    let mut points: Vec<(AttachPoint, IfIndex)> = Vec::new();
    for device in &devices.pods {
        points.extend([
            (AttachPoint::FromPod, *device),
            (AttachPoint::ToPod, *device),
        ]);
    }
    for (device, driver) in &devices.drivers {
        points.push((AttachPoint::ToDevice, *device));
        if *driver != Driver::Loopback {
            points.push((AttachPoint::FromDevice, *device));
        }
        points.extend(xdp_point(xdp, *driver).map(|point| (point, *device)));
    }
    points
        .into_iter()
        .filter_map(|(point, device)| {
            Some((
                Attachment { point, device },
                devices.names.get(&device)?.clone(),
            ))
        })
        .collect()
}

/// Native XDP belongs on cards: over a veth it breaks partial checksums and segmentation offload.
fn xdp_point(xdp: XdpChoice, driver: Driver) -> Option<AttachPoint> {
    match (xdp, driver) {
        (XdpChoice::Off, _)
        | (_, Driver::Tunnel | Driver::Loopback)
        | (XdpChoice::Auto, Driver::Software) => None,
        (XdpChoice::Auto, Driver::Card) | (XdpChoice::Native, _) => Some(AttachPoint::XdpNative),
        (XdpChoice::Generic, _) => Some(AttachPoint::XdpGeneric),
    }
}

/// Warns of XDP over a veth. Processes on this host send packets with a partial checksum by it,
/// which XDP cannot recognise, and breaks.
pub fn warn_of_partial_checksums(hook: Attachment, devices: &Devices) {
    if hook.point.is_xdp() && devices.drivers.get(&hook.device) == Some(&Driver::Software) {
        let device = devices
            .names
            .get(&hook.device)
            .map(String::as_str)
            .unwrap_or_default();
        warn!(
            device,
            "XDP on a device without hardware breaks packets with a partial checksum, which their sender left to the device; use --xdp auto or off"
        );
    }
}
