//! The agreement between the packet path and the agent: keys and values of the maps, names of the
//! maps, drop reasons and counters, checksum and hash arithmetic.
//!
//! The crate allocates nothing, does no I/O, and has no dependency in the kernel build. Each type
//! that lies in a map is `repr(C)`, has no padding, and has its size asserted where it is defined.
//!
//! | module | owns |
//! |---|---|
//! | [`net`] | addresses, ports, protocol numbers, device indices |
//! | [`node`] | addresses, ranges, pods and devices of a node |
//! | [`service`] | frontends, backends, affinity, names of service ports |
//! | [`flow`] | flows, hooks and ways |
//! | [`policy`] | rows, address classes, port sets |
//! | [`socket`] | addresses of sockets that were sent to a backend |
//! | [`config`] | settings |
//! | [`reason`] | drop reasons, counters, denials |
//! | [`maps`] | names of the maps |
//! | [`checksum`] | checksum and hash arithmetic |
//!
//! The rules that the code cites (V… for Services, P… for policies) are in `rules/`.
#![no_std]

pub mod checksum;
pub mod config;
pub mod flow;
pub mod maps;
pub mod net;
pub mod node;
#[cfg(feature = "aya")]
mod pod;
pub mod policy;
pub mod reason;
pub mod service;
pub mod socket;

/// Declares an enum of numbered values, and its `from_number`, which returns the value after `else`
/// for a number that no value has.
#[macro_export]
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $number:ident, else $default:ident {
            $($(#[$doc:meta])* $variant:ident = $value:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr($number)]
        pub enum $name {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $name {
            #[doc = concat!("Returns the value of a number; [`Self::", stringify!($default),
                "`] if it is no value's.")]
            #[inline(always)]
            pub const fn from_number(number: $number) -> Self {
                match number {
                    $($value => Self::$variant,)*
                    _ => Self::$default,
                }
            }
        }
    };
}
