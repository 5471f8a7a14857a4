//! What the packet path and the agent agree on: keys and values of the maps, reasons, checksum and hash arithmetic.
//!
//! Allocates nothing, does no I/O, and depends on nothing in the kernel build. Every type that lies in a map is `repr(C)`,
//! has no padding, and its size is asserted where it is defined.
#![no_std]

pub mod flow;
pub mod maps;
pub mod net;
#[cfg(feature = "aya")]
mod pod;
pub mod policy;
pub mod reason;
pub mod service;
pub mod socket;

/// Declares an enum of numbered values that is handed on as a number, and its `from_number`: any
/// number that is no value's means the value after `else`.
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
