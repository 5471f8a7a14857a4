//! Frames over plain devices and bridges, ordinary and jumbo, masqueraded and encapsulated, from
//! clients, pods and processes of nodes.

mod frames;

use anyhow::Result;
use xtask::lab::topology::{Uplink, Wiring};

#[test]
fn plain() -> Result<()> {
    frames::are_right(Uplink::Plain, Wiring::PointToPoint, 1500, &[])
}

#[test]
fn plain_jumbo() -> Result<()> {
    frames::are_right(Uplink::Plain, Wiring::Bridge, 9000, &[])
}

#[test]
fn bridge() -> Result<()> {
    frames::are_right(Uplink::Bridge, Wiring::Bridge, 1500, &[])
}

#[test]
fn bridge_jumbo() -> Result<()> {
    frames::are_right(Uplink::Bridge, Wiring::PointToPoint, 9000, &[])
}

#[test]
fn encapsulated() -> Result<()> {
    frames::are_right(
        Uplink::Plain,
        Wiring::PointToPoint,
        1500,
        &["--forwarding", "dsr"],
    )
}

#[test]
fn encapsulated_jumbo() -> Result<()> {
    frames::are_right(
        Uplink::Plain,
        Wiring::Bridge,
        9000,
        &["--forwarding", "dsr"],
    )
}

#[test]
fn processes_by_packets() -> Result<()> {
    frames::are_right(
        Uplink::Plain,
        Wiring::PointToPoint,
        1500,
        frames::BY_PACKETS,
    )
}
