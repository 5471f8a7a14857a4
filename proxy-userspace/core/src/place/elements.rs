//! Elements of the Service maps in numbers, and the writes that change them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::{AddressFlags, Device, IfIndex, LocalPod, RangeKind};
use proxy_common::service::{Config, MaglevChunk, MaglevKey, Service};

use crate::contents::Frontend;

/// An address family: each has its own maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for Side {
    fn from(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl From<&MaglevKey> for Side {
    fn from(key: &MaglevKey) -> Self {
        if key.set & MaglevKey::V6 == 0 {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// The key of a backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// The family of the map.
    pub side: Side,
    /// Unique across services and families.
    pub generation: u32,
    /// 0-based.
    pub slot: u32,
}

/// A backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Its address and port.
    pub addr: SocketAddr,
    /// Bits of `BackendFlags`.
    pub flags: u16,
    /// The key's generation again; a reader compares it to notice that the element was reused.
    pub generation: u32,
}

/// A backend of a generation: the key of its slot's number, the inverse of [`SlotKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointAt {
    /// Unique across services and families.
    pub generation: u32,
    /// Its address and port.
    pub addr: SocketAddr,
}

/// One element of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Of `SERVICES*`.
    Service(Frontend, Service),
    /// Of `BACKENDS*`.
    Backend(SlotKey, Slot),
    /// Of `SLOTS*`.
    Endpoint(EndpointAt, u32),
    /// Of `MAGLEV`.
    Maglev(MaglevKey, Box<MaglevChunk>),
    /// Of `SOURCES*`: a prefix of clients that the service port of an id serves.
    Source(u32, IpNet),
    /// Of `RANGES*`.
    Range(IpNet, RangeKind),
    /// Of `ADDRESSES*`.
    Address(IpAddr, AddressFlags),
    /// Of `PODS*`.
    Pod(IpAddr, LocalPod),
    /// Of `DEVICES`.
    Device(IfIndex, Device),
    /// Of `NAMES`.
    Name(u32, Arc<str>),
    /// The element of `CONFIG`.
    Config(Config),
}

/// The key of an element that can be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// Of `SERVICES*`.
    Service(Frontend),
    /// Of `BACKENDS*`.
    Backend(SlotKey),
    /// Of `SLOTS*`.
    Endpoint(EndpointAt),
    /// Of `MAGLEV`.
    Maglev(MaglevKey),
    /// Of `SOURCES*`.
    Source(u32, IpNet),
    /// Of `RANGES*`.
    Range(IpNet),
    /// Of `ADDRESSES*`.
    Address(IpAddr),
    /// Of `PODS*`.
    Pod(IpAddr),
    /// Of `DEVICES`.
    Device(IfIndex),
    /// Of `NAMES`.
    Name(u32),
}

/// One change of one element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Insert or replace.
    Put(Entry),
    /// Remove.
    Delete(Key),
}
