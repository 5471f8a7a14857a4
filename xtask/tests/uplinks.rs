//! Frames over VLANs and bonds, ordinary and jumbo, masqueraded and encapsulated, from processes of
//! nodes too, on kernels that have them: `cargo xtask vm --uplinks`.

#[path = "wires/frames.rs"]
mod frames;

use anyhow::Result;
use xtask::lab::topology::{Uplink, Wiring};

#[test]
fn vlan() -> Result<()> {
    frames::are_right(Uplink::Vlan, Wiring::PointToPoint, 1500, &[])
}

#[test]
fn vlan_jumbo() -> Result<()> {
    frames::are_right(Uplink::Vlan, Wiring::Bridge, 9000, &[])
}

#[test]
fn bond() -> Result<()> {
    frames::are_right(Uplink::Bond, Wiring::Bridge, 1500, &[])
}

#[test]
fn bond_jumbo() -> Result<()> {
    frames::are_right(Uplink::Bond, Wiring::PointToPoint, 9000, &[])
}

#[test]
fn vlan_encapsulated() -> Result<()> {
    frames::are_right(Uplink::Vlan, Wiring::Bridge, 1500, &["--forwarding", "dsr"])
}

#[test]
fn vlan_processes_by_packets() -> Result<()> {
    frames::are_right(Uplink::Vlan, Wiring::Bridge, 1500, frames::BY_PACKETS)
}
