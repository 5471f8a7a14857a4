//! Addresses that look alike in both families, so that a test is written once.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxy_common::net::{Addr4, Addr6, V4, V6};
use proxy_ebpf::parse::Ip;

/// An address, the same for both families: IPv6 has it behind 2001:db8::/96, but for loopback's.
pub type Dotted = [u8; 4];
/// Address and port.
pub type End = (Dotted, u16);

/// A family and how the tests' addresses look in it.
pub trait Net: Ip {
    /// The address as maps have it.
    fn at(dotted: Dotted) -> Self::Addr;
    /// The address in the words of the standard library.
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

/// By which a host reaches itself.
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
