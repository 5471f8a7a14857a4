//! Elements that depend on several Services: frontends, source ranges, flags of addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy_common::net::{AddressFlags, Protocol};
use proxy_common::service::ServiceFlags;

use super::{Compiled, Compiler, Source};
use crate::compile::services::{self};
use crate::contents::{Delta, Frontend, set};
use crate::model::{ObjectName, Snapshot};

impl Compiler {
    pub(super) fn settle(
        &mut self,
        frontend: Frontend,
        claimants: &mut BTreeSet<ObjectName>,
        delta: &mut Delta,
    ) {
        let Some(claims) = self.claims.get(&frontend) else {
            return;
        };
        claimants.extend(claims.keys().map(|order| order.name.clone()));
        let (winner, conflicts) = services::settle(frontend, claims);
        set(
            &mut self.contents.frontends,
            frontend,
            winner.cloned(),
            &mut delta.frontends,
        );
        if conflicts.is_empty() {
            self.conflicts.remove(&frontend);
        } else {
            self.conflicts.insert(frontend, conflicts);
        }
        if claims.is_empty() {
            self.claims.remove(&frontend);
        }
    }

    /// V3: source ranges of the service ports that are served at load balancer IPs, for each family
    /// by itself.
    pub(super) fn settle_sources(&mut self, name: &ObjectName, delta: &mut Delta) {
        let after = self
            .services
            .get(name)
            .map(|compiled| self.sources_of(compiled))
            .unwrap_or_default();
        let before = self.sources.remove(name).unwrap_or_default();
        for gone in before.difference(&after) {
            self.contents.sources.remove(gone);
        }
        self.contents
            .sources
            .extend(after.difference(&before).cloned());
        delta
            .sources
            .extend(before.symmetric_difference(&after).cloned());
        if !after.is_empty() {
            self.sources.insert(name.clone(), after);
        }
    }

    pub(super) fn sources_of(&self, compiled: &Compiled) -> BTreeSet<Source> {
        if compiled.ranges.is_empty() {
            return BTreeSet::new();
        }
        let won = compiled.claims.iter().filter_map(|(frontend, order)| {
            let (first, target) = self.claims.get(frontend)?.first_key_value()?;
            (first == order).then_some((frontend, target))
        });
        let restricted = won.filter(|(_, target)| target.flags & ServiceFlags::SOURCE_RANGES != 0);
        let ports: BTreeSet<_> = restricted
            .map(|(frontend, target)| (&target.service, frontend.addr.is_ipv4()))
            .collect();
        let of_family = |v4: bool| {
            compiled
                .ranges
                .iter()
                .filter(move |range| range.addr().is_ipv4() == v4)
        };
        ports
            .into_iter()
            .flat_map(|(id, v4)| of_family(v4).map(|range| (id.clone(), *range)))
            .collect()
    }

    /// Returns the flags of an address: of this host, with nodePorts (V8), a cluster IP, ….
    pub(super) fn address(&self, snapshot: &Snapshot, addr: IpAddr) -> Option<AddressFlags> {
        let at = |port| Frontend {
            addr,
            port,
            protocol: Protocol(0),
        };
        let last = Frontend {
            protocol: Protocol(u8::MAX),
            ..at(u16::MAX)
        };
        let mut frontends = self
            .contents
            .frontends
            .range(at(0)..=last)
            .map(|(_, target)| target);
        let flags = [
            (
                snapshot.links.host_addresses.contains_key(&addr),
                AddressFlags::HOST,
            ),
            (self.node_ports.contains(&addr), AddressFlags::NODE_PORTS),
            (self.foreign.contains_key(&addr), AddressFlags::FOREIGN),
            (self.pods.is_announced(addr), AddressFlags::NODE),
            (
                frontends.any(|target| target.flags & ServiceFlags::CLUSTER_IP != 0),
                AddressFlags::CLUSTER_IP,
            ),
        ];
        let all = flags
            .into_iter()
            .filter(|(is, _)| *is)
            .fold(0, |all, (_, flag)| all | flag);
        (all != 0).then_some(AddressFlags(all))
    }
}
