//! Asks the policy tables that an agent has pinned, by the same steps as its programs: what does
//! this node say of a connection?

use std::cell::RefCell;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{Map, MapError};
use proxy_common::maps;
use proxy_common::net::{Addr4, Addr6, Family, LocalPod, Protocol, V4, V6};
use proxy_common::policy::{CHUNK_CLASSES, NO_CLASS, PodRows, PortSet, VerdictKey, Word};
use proxy_ebpf::Verdicts;
use proxy_ebpf::parse::Ip;
use proxy_ebpf::policy::allows;

use super::maps::{Hash, open, pinned};
use super::policies::{PolicyMaps, PrefixMap, whole};
use super::statedir::StateDir;

/// The open policy tables of a node.
pub struct NodeVerdicts {
    pods4: Hash<Addr4, LocalPod>,
    pods6: Hash<Addr6, LocalPod>,
    tables: Asked,
}

/// The verdicts of a node's tables on a connection; `None` where an end is no pod of that node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableVerdicts {
    /// True if the source may reach the destination.
    pub egress: Option<bool>,
    /// True if the destination may be reached by the source.
    pub ingress: Option<bool>,
}

impl NodeVerdicts {
    /// The tables that are pinned in `dir`.
    ///
    /// # Errors
    /// If one is missing, or is not what this version makes.
    pub fn from_pins(dir: &StateDir) -> Result<Self> {
        Self::open(pinned(|name| dir.map(name)))
    }

    /// Opens the tables that `take` returns by name.
    ///
    /// # Errors
    /// As of [`Self::from_pins`].
    pub fn open(mut take: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            pods4: open(maps::PODS.v4, &mut take)?,
            pods6: open(maps::PODS.v6, &mut take)?,
            tables: Asked {
                maps: PolicyMaps::open(take)?,
                failed: RefCell::default(),
            },
        })
    }

    /// Returns their verdicts on a new connection between two addresses of one family; port 0 where
    /// the protocol has none.
    ///
    /// # Errors
    /// If the kernel does not let a table be read.
    pub fn verdicts(
        &self,
        from: IpAddr,
        to: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Result<TableVerdicts> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                self.tables
                    .verdicts::<V4>(&self.pods4, from.into(), to.into(), protocol, port)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                self.tables
                    .verdicts::<V6>(&self.pods6, from.into(), to.into(), protocol, port)
            }
            _ => Ok(TableVerdicts::default()),
        }
    }
}

/// The tables, and the first failure to read one: the trait of the packet path has no errors.
struct Asked {
    maps: PolicyMaps,
    failed: RefCell<Option<MapError>>,
}

impl Asked {
    fn verdicts<F: Ip>(
        &self,
        pods: &Hash<F::Addr, LocalPod>,
        from: F::Addr,
        to: F::Addr,
        protocol: Protocol,
        port: u16,
    ) -> Result<TableVerdicts>
    where
        Self: Verdicts<F>,
        F::Addr: Pod,
    {
        let rows = |addr: F::Addr| {
            self.read(pods.get(&addr, 0))
                .map(|pod| self.rows(pod.pod_id))
        };
        let says = |row, other| allows::<F, _>(self, row, &other, protocol, port);
        let verdicts = TableVerdicts {
            egress: rows(from).map(|rows| says(rows.egress, to)),
            ingress: rows(to).map(|rows| says(rows.ingress, from)),
        };
        self.failed.take().map_or(Ok(verdicts), |error| {
            Err(error).context("read the policy tables")
        })
    }

    fn read<T>(&self, found: Result<T, MapError>) -> Option<T> {
        match found {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }

    fn longest<A: Pod>(&self, prefixes: &PrefixMap<A>, addr: A) -> u32 {
        self.read(prefixes.get(&whole(addr), 0)).unwrap_or(NO_CLASS)
    }
}

/// The steps that are the same for both families.
macro_rules! verdicts {
    ($family:ty, $exact:expr, $prefixes:ident) => {
        impl Verdicts<$family> for Asked {
            type Ports<'a> = Box<PortSet>;

            fn rows(&self, slot: u32) -> PodRows {
                self.maps.rows.load_u64(slot).unwrap_or_default()
            }
            fn word(&self, node: u32, byte: u8) -> Word {
                Word(
                    self.maps
                        .directory
                        .load_u32(node, byte.into())
                        .unwrap_or_default(),
                )
            }
            fn exact_class(&self, addr: &<$family as Family>::Addr) -> Option<u32> {
                $exact(self, addr)
            }
            fn prefix_class(&self, addr: &<$family as Family>::Addr) -> u32 {
                self.longest(&self.maps.$prefixes, *addr)
            }
            fn verdict(&self, chunk: u32, class: u32) -> u32 {
                let set = self
                    .maps
                    .matrix
                    .load_u16(chunk + class / CHUNK_CLASSES, class % CHUNK_CLASSES);
                set.map_or(PortSet::NONE, u32::from)
            }
            fn hashed_verdict(&self, key: &VerdictKey) -> u32 {
                self.read(self.maps.verdicts.get(&whole(*key), 0))
                    .unwrap_or(PortSet::NONE)
            }
            fn ports(&self, set: u32) -> Option<Box<PortSet>> {
                self.read(self.maps.sets.get(&set, 0)).map(Box::new)
            }
        }
    };
}

verdicts!(V4, |_, _| None, prefixes4);
verdicts!(
    V6,
    |asked: &Self, addr| asked.read(asked.maps.exact.get(addr, 0)),
    prefixes6
);
