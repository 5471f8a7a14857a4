//! Reads the contents of the maps as entries of `place`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapError;
use ipnet::IpNet;
use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::Address;
use proxy_common::service::{
    Backend, BackendKey, EndpointKey, SOURCE_KEY_BITS, ServiceKey, SourceKey,
};
use proxy_common::socket::{Peer, PeerKey};

use super::super::batch;
use super::{FamilyMaps, Maps, Trie};
use crate::contents::Frontend;
use crate::place::{Actual, EndpointAt, Entry, Side, Slot, SlotKey};

impl Maps {
    /// Returns the contents of the maps, except flows.
    pub fn read(&self) -> Result<Actual> {
        let devices = batch::all(&self.devices).context("read DEVICES")?;
        let names = batch::all(&self.names).context("read NAMES")?;
        let maglev = batch::all(&self.maglev).context("read MAGLEV")?;
        let config = self.config.get(&0, 0).context("read CONFIG")?;
        let shared = devices
            .into_iter()
            .map(|(index, device)| Entry::Device(index, device));
        let named = names
            .iter()
            .map(|(id, name)| Entry::Name(*id, name.as_str().into()));
        let families = self
            .v4
            .read(Side::V4)
            .context("IPv4")?
            .into_iter()
            .chain(self.v6.read(Side::V6).context("IPv6")?);
        let chunks = maglev
            .into_iter()
            .map(|(key, chunk)| Entry::Maglev(key, Box::new(chunk)));
        let mut actual: Actual = families
            .chain(chunks)
            .chain(shared)
            .chain(named)
            .chain([Entry::Config(config)])
            .collect();
        actual.reserve_id(self.v4.highest_id()?.max(self.v6.highest_id()?));
        Ok(actual)
    }
}

impl<A: Address> FamilyMaps<A>
where
    A: Pod,
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
    EndpointKey<A>: Pod,
    SourceKey<A>: Pod,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    PeerKey<A>: Pod,
    Peer<A>: Pod,
{
    fn read(&self, side: Side) -> Result<Vec<Entry>> {
        let frontend = |key: &ServiceKey<A>| Frontend {
            addr: key.addr.ip(),
            port: key.port.number(),
            protocol: key.protocol,
        };
        let services = batch::all(&self.services).context("read SERVICES")?;
        let backends = batch::all(&self.backends).context("read BACKENDS")?;
        let slots = batch::all(&self.slots).context("read SLOTS")?;
        let addresses = batch::all(&self.addresses).context("read ADDRESSES")?;
        let pods = batch::all(&self.pods).context("read PODS")?;
        let sources = prefixes(&self.sources).context("read SOURCES")?;
        let ranges = prefixes(&self.ranges).context("read RANGES")?;
        let sources = sources.into_iter().filter_map(|(bits, key, _)| {
            Some(Entry::Source(
                key.service,
                network(key.addr.ip(), bits.checked_sub(SOURCE_KEY_BITS)?)?,
            ))
        });
        let ranges = ranges
            .into_iter()
            .filter_map(|(bits, addr, kind)| Some(Entry::Range(network(addr.ip(), bits)?, kind)));
        let services = services
            .iter()
            .map(|(key, service)| Entry::Service(frontend(key), *service));
        let backends = backends
            .iter()
            .map(|(key, backend)| slot_entry(side, key, backend));
        let slots = slots.iter().map(|(key, slot)| {
            let addr = SocketAddr::new(key.addr.ip(), key.port.number());
            Entry::Endpoint(
                EndpointAt {
                    generation: key.generation,
                    addr,
                },
                *slot,
            )
        });
        let addresses = addresses
            .iter()
            .map(|(addr, flags)| Entry::Address(addr.ip(), *flags));
        let pods = pods.iter().map(|(addr, pod)| Entry::Pod(addr.ip(), *pod));
        Ok(services
            .chain(backends)
            .chain(slots)
            .chain(sources)
            .chain(ranges)
            .chain(addresses)
            .chain(pods)
            .collect())
    }

    /// Returns the highest id of a service port in a flow.
    fn highest_id(&self) -> Result<u32> {
        let (mut walk, mut highest) = (batch::Walk::default(), 0);
        while let Some(flows) = walk.next(&self.flows).context("read FLOWS")? {
            highest = flows
                .iter()
                .map(|(_, flow)| flow.service)
                .fold(highest, u32::max);
        }
        Ok(highest)
    }
}

fn slot_entry<A: Address>(side: Side, key: &BackendKey, backend: &Backend<A>) -> Entry {
    let addr = SocketAddr::new(backend.addr.ip(), backend.port.number());
    let slot = Slot {
        addr,
        flags: backend.flags,
        generation: backend.generation,
    };
    Entry::Backend(
        SlotKey {
            side,
            generation: key.generation,
            slot: key.slot,
        },
        slot,
    )
}

/// Returns the elements of a trie: number of bits, key and value.
fn prefixes<K: Pod, V: Pod>(trie: &Trie<K, V>) -> Result<Vec<(u32, K, V)>> {
    let all: Result<Vec<_>, MapError> = trie.iter().collect();
    Ok(all?
        .into_iter()
        .map(|(key, value)| (key.prefix_len(), key.data(), value))
        .collect())
}

fn network(addr: IpAddr, bits: u32) -> Option<IpNet> {
    IpNet::new(addr, u8::try_from(bits).ok()?).ok()
}
