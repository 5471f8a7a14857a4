//! Addresses with one notation for both families, so that a test is written once.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxy_common::net::{Addr4, Addr6, V4, V6};
use proxy_ebpf::parse::Ip;

/// An address of either family: IPv6 maps it into 2001:db8::/96, except for loopback.
pub type Dotted = [u8; 4];
/// Address and port.
pub type End = (Dotted, u16);

/// A family, and its form of the tests' addresses.
pub trait Net: Ip {
    /// Returns the address in the maps' form.
    fn at(dotted: Dotted) -> Self::Addr;
    /// Returns the address as `std::net` has it.
    fn ip(dotted: Dotted) -> IpAddr;
}

impl Net for V4 {
    fn at(dotted: Dotted) -> Addr4 {
        Addr4::from_bytes(dotted)
    }
    fn ip(dotted: Dotted) -> IpAddr {
        IpAddr::from(dotted)
    }
}

impl Net for V6 {
    fn at(dotted: Dotted) -> Addr6 {
        Addr6::from(six(dotted))
    }
    fn ip(dotted: Dotted) -> IpAddr {
        IpAddr::V6(six(dotted))
    }
}

/// The loopback address.
pub const LOOPBACK: Dotted = [127, 0, 0, 1];

fn six([a, b, c, d]: Dotted) -> Ipv6Addr {
    if [a, b, c, d] == LOOPBACK {
        return Ipv6Addr::LOCALHOST;
    }
    let [ab, cd] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, ab, cd)
}

/// Returns the address and port of an end.
pub fn end<F: Net>((dotted, port): End) -> SocketAddr {
    SocketAddr::new(F::ip(dotted), port)
}
