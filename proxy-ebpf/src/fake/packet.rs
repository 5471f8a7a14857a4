//! A packet in a vector.

use std::vec::Vec;

use proxy_common::checksum::checksum_update;
use proxy_common::net::{Family as _, V6};

use crate::{Change, Packet, Wire};

/// A packet in memory, with all checksums finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// The bytes, from the link-layer header on.
    pub bytes: Vec<u8>,
    /// True if this host has made the packet.
    pub from_host: bool,
}

impl Bytes {
    /// Makes a packet that a device received.
    pub fn received(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            from_host: false,
        }
    }
}

impl Packet for Bytes {
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(offset as usize..)?.get(..size_of::<T>())?;
        // SAFETY: as many bytes as a T has, and any bytes are a T.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        let bytes = self
            .bytes
            .get_mut(offset as usize..)?
            .get_mut(..size_of::<T>())?;
        // SAFETY: as many bytes as a T has.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(*value) };
        Some(())
    }
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(offset)?);
        if change.udp && old == 0 {
            return Some(());
        }
        let fix = |checksum, diff| match checksum_update(checksum, diff) {
            0 if change.udp => 0xffff,
            new => new,
        };
        self.store(
            offset,
            &fix(fix(old, change.addresses), change.ports).to_ne_bytes(),
        )
    }
    fn account(&mut self, _change: u32) {}
    fn truncate(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }
    fn insert(&mut self, room: u32) -> Option<()> {
        let at = crate::parse::LINK as usize;
        self.bytes
            .splice(at..at, core::iter::repeat_n(0, room as usize));
        Some(())
    }
    fn encapsulate(&mut self, room: u32, _v6: bool) -> Option<()> {
        self.insert(room)
    }
    fn decapsulate(&mut self, room: u32) -> Option<()> {
        let (at, room) = (crate::parse::LINK as usize, room as usize);
        let v6 = crate::parse::ethertype(self)? == V6::ETHERTYPE;
        let least = if v6 { 40 } else { 20 };
        if self.bytes.len() < at + room + least {
            return None;
        }
        self.bytes.drain(at..at + room);
        Some(())
    }
    fn segment(&self) -> u32 {
        0
    }
    fn was_received(&self) -> bool {
        !self.from_host
    }
    fn is_answer_of_ours(&self) -> bool {
        false
    }
}
