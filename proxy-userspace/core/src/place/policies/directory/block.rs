//! Blocks of IPv4 addresses.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::place::policies::write::PolicyWrite;

/// The prefix length at the end of each level of the directory.
pub(super) const WIDTHS: [u8; 3] = [16, 24, 32];

/// A block of IPv4: its first address and its prefix length.
pub(super) type Block = (u32, u8);

/// Returns the first address of a block.
pub(super) fn first(addr: u32, bits: u8) -> u32 {
    if bits == 0 {
        0
    } else {
        addr & (u32::MAX << (32 - bits))
    }
}

/// Returns the last address of a block.
pub(super) fn last(addr: u32, bits: u8) -> u32 {
    if bits == 0 {
        u32::MAX
    } else {
        addr | !(u32::MAX << (32 - bits))
    }
}

pub(super) fn network((addr, bits): Block) -> IpNet {
    IpNet::new(IpAddr::V4(Ipv4Addr::from(addr)), bits)
        .unwrap_or_else(|_| IpNet::from(IpAddr::V4(addr.into())))
}

pub(super) fn delete(block: Block) -> PolicyWrite {
    PolicyWrite::DeletePrefix(network(block))
}
