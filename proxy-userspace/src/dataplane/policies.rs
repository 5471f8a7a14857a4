//! The policy tables in the kernel. Arrays are mapped into this process: one element changes by one
//! store, which is all that a packet sees.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::{Array, Map, MapData};
use ipnet::IpNet;
use memmap2::{MmapOptions, MmapRaw};
use proxy_common::maps;
use proxy_common::net::{Addr4, Addr6, IfIndex, Veth};
use proxy_common::policy::{CHUNK_CLASSES, Chunk, Node, PodRows, PortSet, ROOTS, Row, VerdictKey};

use super::maps::{Hash, delete, gone, open, open_trie};
use crate::place::policies::{PolicyWrite, Room};

/// Numbers by prefix.
pub(super) type PrefixMap<A> = LpmTrie<MapData, A, u32>;

/// The policy tables.
pub struct PolicyMaps {
    pub(super) rows: Words<PodRows>,
    veths: Hash<IfIndex, Veth>,
    pub(super) directory: Words<Node>,
    pub(super) exact: Hash<Addr6, u32>,
    pub(super) prefixes4: PrefixMap<Addr4>,
    pub(super) prefixes6: PrefixMap<Addr6>,
    pub(super) matrix: Words<Chunk>,
    pub(super) verdicts: PrefixMap<VerdictKey>,
    pub(super) sets: Array<MapData, PortSet>,
}

impl PolicyMaps {
    /// The tables that `take` gives by name.
    pub fn open(mut take: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            rows: Words::open(maps::ROWS, &mut take)?,
            veths: open(maps::VETHS, &mut take)?,
            directory: Words::open(maps::CLASSES4, &mut take)?,
            exact: open(maps::CLASSES6, &mut take)?,
            prefixes4: open_trie(maps::PREFIXES.v4, &mut take)?,
            prefixes6: open_trie(maps::PREFIXES.v6, &mut take)?,
            matrix: Words::open(maps::MATRIX, &mut take)?,
            verdicts: open_trie(maps::VERDICTS, &mut take)?,
            sets: Array::try_from(take(maps::PORTSETS)?).context("open the map PORTSETS")?,
        })
    }

    /// Returns the size that the tables were made with.
    pub fn room(&self) -> Room {
        Room {
            nodes: self.directory.elements,
            chunks: self.matrix.elements,
            ..Room::default()
        }
    }

    /// Makes one write.
    pub fn write(&mut self, write: &PolicyWrite) -> Result<()> {
        match write {
            PolicyWrite::Set(number, set) => Ok(self.sets.set(*number, *set, 0)?),
            PolicyWrite::Chunk(chunk, classes) => (0..)
                .zip(classes.iter())
                .try_for_each(|(class, set)| self.matrix.store_u16(*chunk, class, *set)),
            PolicyWrite::Verdict { chunk, class, set } => {
                self.matrix.store_u16(*chunk, *class, *set)
            }
            PolicyWrite::Hashed(key, set) => Ok(self.verdicts.insert(&whole(*key), *set, 0)?),
            PolicyWrite::Unhash(key) => gone(self.verdicts.remove(&whole(*key))),
            PolicyWrite::Node(node, words) if *node >= ROOTS => (0..)
                .zip(words.iter())
                .try_for_each(|(byte, word)| self.directory.store_u32(*node, byte, word.0)),
            PolicyWrite::Node(node, _) => bail!("node {node} is a root"),
            PolicyWrite::Word(node, byte, word) => {
                self.directory.store_u32(*node, (*byte).into(), word.0)
            }
            PolicyWrite::Words {
                node,
                from,
                len,
                word,
            } => self
                .directory
                .fill_u32(*node, (*from).into(), (*len).into(), word.0),
            PolicyWrite::Exact(addr, class) => Ok(self.exact.insert(six(*addr)?, *class, 0)?),
            PolicyWrite::DeleteExact(addr) => delete(&mut self.exact, six(*addr)?),
            PolicyWrite::Prefix(prefix, class) => match prefix.addr() {
                IpAddr::V4(addr) => {
                    Ok(self
                        .prefixes4
                        .insert(&key(*prefix, addr.into()), *class, 0)?)
                }
                IpAddr::V6(addr) => {
                    Ok(self
                        .prefixes6
                        .insert(&key(*prefix, addr.into()), *class, 0)?)
                }
            },
            PolicyWrite::DeletePrefix(prefix) => match prefix.addr() {
                IpAddr::V4(addr) => gone(self.prefixes4.remove(&key(*prefix, addr.into()))),
                IpAddr::V6(addr) => gone(self.prefixes6.remove(&key(*prefix, addr.into()))),
            },
            PolicyWrite::Rows(slot, rows) => self.rows.store_u64(*slot, rows),
            PolicyWrite::Veth(device, veth) => Ok(self.veths.insert(device, *veth, 0)?),
            PolicyWrite::DeleteVeth(device) => delete(&mut self.veths, *device),
        }
        .with_context(|| format!("write to the policy tables: {}", short(write)))
    }
}

/// A write without the contents of what is written whole.
fn short(write: &PolicyWrite) -> String {
    match write {
        PolicyWrite::Chunk(chunk, _) => format!("chunk {chunk}"),
        PolicyWrite::Node(node, _) => format!("node {node}"),
        other @ (PolicyWrite::Set(..)
        | PolicyWrite::Verdict { .. }
        | PolicyWrite::Hashed(..)
        | PolicyWrite::Unhash(_)
        | PolicyWrite::Word(..)
        | PolicyWrite::Words { .. }
        | PolicyWrite::Exact(..)
        | PolicyWrite::DeleteExact(_)
        | PolicyWrite::Prefix(..)
        | PolicyWrite::DeletePrefix(_)
        | PolicyWrite::Rows(..)
        | PolicyWrite::Veth(..)
        | PolicyWrite::DeleteVeth(_)) => format!("{other:?}"),
    }
}

fn six(addr: IpAddr) -> Result<Addr6> {
    match addr {
        IpAddr::V6(addr) => Ok(addr.into()),
        IpAddr::V4(addr) => bail!("{addr} is no address of IPv6"),
    }
}

/// A key with all its bits.
pub(super) fn whole<K: Pod>(key: K) -> Prefix<K> {
    Prefix::new(8 * size_of::<K>() as u32, key)
}

fn key<A: Pod>(prefix: IpNet, addr: A) -> Prefix<A> {
    Prefix::new(u32::from(prefix.prefix_len()), addr)
}

/// An array map of `T`, mapped into this process.
pub(super) struct Words<T> {
    memory: MmapRaw,
    /// Programs are loaded by its descriptor.
    _map: MapData,
    elements: u32,
    _of: std::marker::PhantomData<T>,
}

impl<T> Words<T> {
    fn open(name: &str, take: &mut impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let Map::Array(data) = take(name)? else {
            bail!("the map {name} is no array")
        };
        let found = data
            .info()
            .with_context(|| format!("look at the map {name}"))?;
        let elements = found.max_entries();
        if found.value_size() as usize != size_of::<T>() {
            bail!(
                "the map {name} has elements of {} bytes",
                found.value_size()
            );
        }
        let len = elements as usize * size_of::<T>().next_multiple_of(8);
        let memory = MmapOptions::new()
            .len(len)
            .map_raw(data.fd().as_fd().as_raw_fd());
        Ok(Self {
            memory: memory.with_context(|| format!("map {name}"))?,
            _map: data,
            elements,
            _of: std::marker::PhantomData,
        })
    }

    /// Returns the address of a part of an element; `part` is an index in units of `P`.
    fn at<P>(&self, element: u32, part: u32) -> Result<*mut P> {
        let stride = size_of::<T>().next_multiple_of(8);
        let offset = part as usize * size_of::<P>();
        if element >= self.elements || offset + size_of::<P>() > size_of::<T>() {
            bail!("no part {part} of element {element}");
        }
        // SAFETY: within the mapping, as just checked.
        Ok(unsafe {
            self.memory
                .as_mut_ptr()
                .add(element as usize * stride + offset)
        }
        .cast())
    }

    pub(super) fn load_u16(&self, element: u32, part: u32) -> Result<u16> {
        // SAFETY: aligned, within a mapping that lives as long as this value, and only ever
        // accessed whole.
        Ok(unsafe { AtomicU16::from_ptr(self.at(element, part)?) }.load(Ordering::Acquire))
    }

    pub(super) fn load_u32(&self, element: u32, part: u32) -> Result<u32> {
        // SAFETY: as above.
        Ok(unsafe { AtomicU32::from_ptr(self.at(element, part)?) }.load(Ordering::Acquire))
    }

    fn store_u16(&self, element: u32, part: u32, value: u16) -> Result<()> {
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(self.at(element, part)?) }.store(value, Ordering::Release);
        Ok(())
    }

    /// Makes parts side by side equal, each by a store of its own.
    fn fill_u32(&self, element: u32, first: u32, len: u32, value: u32) -> Result<()> {
        let Some(last) = len.checked_sub(1) else {
            return Ok(());
        };
        let (from, to) = (
            self.at::<u32>(element, first)?,
            self.at::<u32>(element, first + last)?,
        );
        let mut at = from;
        while at <= to {
            // SAFETY: between two parts of one element that lie within the mapping; else as above.
            unsafe {
                AtomicU32::from_ptr(at).store(value, Ordering::Release);
                at = at.add(1);
            }
        }
        Ok(())
    }

    fn store_u32(&self, element: u32, part: u32, value: u32) -> Result<()> {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at(element, part)?) }.store(value, Ordering::Release);
        Ok(())
    }
}

impl Words<PodRows> {
    /// Both rows at once, as they are now.
    pub(super) fn load_u64(&self, element: u32) -> Result<PodRows> {
        // SAFETY: as above; the element is aligned to its eight bytes.
        let both = unsafe { AtomicU64::from_ptr(self.at(element, 0)?) }.load(Ordering::Acquire);
        let [a, b, c, d, e, f, g, h] = both.to_ne_bytes();
        Ok(PodRows {
            ingress: Row(u32::from_ne_bytes([a, b, c, d])),
            egress: Row(u32::from_ne_bytes([e, f, g, h])),
        })
    }

    /// Both rows at once.
    fn store_u64(&self, element: u32, rows: &PodRows) -> Result<()> {
        let ([a, b, c, d], [e, f, g, h]) =
            (rows.ingress.0.to_ne_bytes(), rows.egress.0.to_ne_bytes());
        let both = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        // SAFETY: as above; the element is aligned to its eight bytes.
        unsafe { AtomicU64::from_ptr(self.at(element, 0)?) }.store(both, Ordering::Release);
        Ok(())
    }
}

const _: () = assert!(size_of::<Chunk>() == 2 * CHUNK_CLASSES as usize);
