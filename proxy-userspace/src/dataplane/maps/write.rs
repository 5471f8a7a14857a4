//! Carries out the writes that `place` has planned.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::Key as Prefix;
use ipnet::IpNet;
use proxy_common::net::{Addr4, Addr6, Port};
use proxy_common::service::{
    Backend, BackendKey, EndpointKey, Name, SOURCE_KEY_BITS, ServiceKey, SourceKey,
};

use super::{Hash, Maps, delete, gone};
use crate::contents::Frontend;
use crate::place::{EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};

/// Runs `$body` with the address and the maps of its family.
macro_rules! family {
    ($self:ident, $addr:expr, |$a:ident, $maps:ident| $body:expr) => {
        match $addr {
            IpAddr::V4(addr) => {
                let ($a, $maps) = (Addr4::from(addr), &mut $self.v4);
                $body
            }
            IpAddr::V6(addr) => {
                let ($a, $maps) = (Addr6::from(addr), &mut $self.v6);
                $body
            }
        }
    };
}

impl Maps {
    /// Applies one write. Deleting an element that does not exist succeeds.
    pub fn write(&mut self, write: &Write) -> Result<()> {
        match write {
            Write::Put(entry) => self.put(entry),
            Write::Delete(key) => self.delete(key),
        }
    }

    fn put(&mut self, entry: &Entry) -> Result<()> {
        match entry {
            Entry::Service(frontend, service) => {
                family!(self, frontend.addr, |addr, maps| put(
                    &mut maps.services,
                    service_key(frontend, addr),
                    *service
                ))
            }
            Entry::Backend(key, slot) => self.put_backend(key, slot),
            Entry::Endpoint(EndpointAt { generation, addr }, slot) => {
                family!(self, addr.ip(), |key, maps| {
                    put(
                        &mut maps.slots,
                        EndpointKey::new(*generation, key, Port::new(addr.port())),
                        *slot,
                    )
                })
            }
            Entry::Maglev(key, chunk) => put(&mut self.maglev, *key, **chunk),
            Entry::Source(id, range) => {
                family!(self, range.addr(), |key, maps| Ok(maps.sources.insert(
                    &source_key(*id, key, *range),
                    1,
                    0
                )?))
            }
            Entry::Range(range, kind) => family!(self, range.addr(), |key, maps| {
                Ok(maps.ranges.insert(
                    &Prefix::new(u32::from(range.prefix_len()), key),
                    *kind,
                    0,
                )?)
            }),
            Entry::Address(addr, flags) => family!(self, *addr, |key, maps| put(
                &mut maps.addresses,
                key,
                *flags
            )),
            Entry::Pod(addr, pod) => {
                family!(self, *addr, |key, maps| put(&mut maps.pods, key, *pod))
            }
            Entry::Device(index, device) => put(&mut self.devices, *index, *device),
            Entry::Name(id, name) => put(&mut self.names, *id, Name::new(name)),
            Entry::Config(config) => self.config.set(0, *config, 0).map_err(Into::into),
        }
        .with_context(|| format!("write {entry:?}"))
    }

    fn put_backend(&mut self, key: &SlotKey, slot: &Slot) -> Result<()> {
        if Side::from(slot.addr.ip()) != key.side {
            bail!("an address of the other family");
        }
        let port = Port::new(slot.addr.port());
        family!(self, slot.addr.ip(), |addr, maps| {
            let backend = Backend {
                addr,
                port,
                flags: slot.flags,
                generation: slot.generation,
            };
            put(
                &mut maps.backends,
                BackendKey {
                    generation: key.generation,
                    slot: key.slot,
                },
                backend,
            )
        })
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        match key {
            Key::Service(frontend) => {
                family!(self, frontend.addr, |addr, maps| delete(
                    &mut maps.services,
                    service_key(frontend, addr)
                ))
            }
            Key::Backend(SlotKey {
                side,
                generation,
                slot,
            }) => {
                let key = BackendKey {
                    generation: *generation,
                    slot: *slot,
                };
                match side {
                    Side::V4 => delete(&mut self.v4.backends, key),
                    Side::V6 => delete(&mut self.v6.backends, key),
                }
            }
            Key::Endpoint(EndpointAt { generation, addr }) => {
                family!(self, addr.ip(), |key, maps| {
                    delete(
                        &mut maps.slots,
                        EndpointKey::new(*generation, key, Port::new(addr.port())),
                    )
                })
            }
            Key::Maglev(key) => delete(&mut self.maglev, *key),
            Key::Source(id, range) => {
                family!(self, range.addr(), |key, maps| gone(
                    maps.sources.remove(&source_key(*id, key, *range))
                ))
            }
            Key::Range(range) => {
                family!(self, range.addr(), |key, maps| gone(
                    maps.ranges
                        .remove(&Prefix::new(u32::from(range.prefix_len()), key))
                ))
            }
            Key::Address(addr) => {
                family!(self, *addr, |key, maps| delete(&mut maps.addresses, key))
            }
            Key::Pod(addr) => family!(self, *addr, |key, maps| delete(&mut maps.pods, key)),
            Key::Device(index) => delete(&mut self.devices, *index),
            Key::Name(id) => delete(&mut self.names, *id),
        }
        .with_context(|| format!("delete {key:?}"))
    }
}

fn service_key<A>(frontend: &Frontend, addr: A) -> ServiceKey<A> {
    ServiceKey::new(addr, Port::new(frontend.port), frontend.protocol)
}

fn put<K: Pod, V: Pod>(map: &mut Hash<K, V>, key: K, value: V) -> Result<()> {
    Ok(map.insert(key, value, 0)?)
}

fn source_key<A: Pod>(service: u32, addr: A, range: IpNet) -> Prefix<SourceKey<A>>
where
    SourceKey<A>: Pod,
{
    Prefix::new(
        SOURCE_KEY_BITS + u32::from(range.prefix_len()),
        SourceKey { service, addr },
    )
}
