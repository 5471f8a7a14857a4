//! The incremental compiler of Services. It remembers the claims of each Service, conflicts, and
//! the Services that depend on each object, so that a changed object costs only its dependents.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::RangeKind;

use super::addresses::{devices, node_port_addresses};
use super::config::{config, service_ranges};
use super::conflict::Conflict;
use super::endpoints::Place;
use super::pods::PodNetwork;
use super::services::{self, Claim, Claimant, Order};
use super::touched::Touched;
use crate::contents::{Contents, Delta, Frontend, Target, set};
use crate::model::{EndpointSlice, ObjectName, Proxied, Service, Snapshot};

/// Compiles Services, and remembers the result for the next time.
#[derive(Debug, Default)]
pub struct Compiler {
    contents: Contents,
    conflicts: BTreeMap<Frontend, Vec<Conflict>>,
    /// The result for each Service.
    services: BTreeMap<ObjectName, Compiled>,
    claims: BTreeMap<Frontend, BTreeMap<Order, Target>>,
    /// The elements of the contents' `sources` for each Service.
    sources: BTreeMap<ObjectName, BTreeSet<Source>>,
    /// The Service of each slice. `slices` is the inverse.
    owners: BTreeMap<ObjectName, ObjectName>,
    slices: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// The Services that have an endpoint at an address.
    endpoints: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    /// The Services of other proxies that have a cluster IP.
    foreign: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    pods: PodNetwork,
    node_ports: BTreeSet<IpAddr>,
    /// The pod network's prefixes and the Service ranges.
    prefixes: BTreeMap<IpNet, RangeKind>,
}

/// The result for one Service.
#[derive(Debug, Default)]
struct Compiled {
    claims: Vec<(Frontend, Order)>,
    /// The clients of its load balancer IPs; empty means all.
    ranges: Vec<IpNet>,
    endpoints: BTreeSet<IpAddr>,
    foreign: Vec<IpAddr>,
}

/// A service port, and a prefix of clients that may use its load balancer IPs.
type Source = (Arc<str>, IpNet);

/// The elements to compute again.
#[derive(Default)]
struct Concerned {
    services: BTreeSet<ObjectName>,
    frontends: BTreeSet<Frontend>,
    /// Services with source ranges that may have come into force or ceased to be.
    sources: BTreeSet<ObjectName>,
    addresses: BTreeSet<IpAddr>,
    /// Addresses that are or were pods' or nodes'.
    pods: BTreeSet<IpAddr>,
}

impl Compiler {
    /// Returns the contents of the maps, by the last [`Self::compile`].
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Returns the conflicts of Services that claim one frontend, in order.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.values().flatten()
    }

    /// Brings the contents in step with the snapshot, and returns the difference. `touched` names
    /// all objects that changed since the last time.
    pub fn compile(&mut self, snapshot: &Snapshot, touched: &Touched) -> Delta {
        if !touched.everything {
            let mut delta = Delta::default();
            self.follow(snapshot, touched, &mut delta);
            return delta;
        }
        let before = std::mem::take(self);
        self.begin(snapshot);
        Delta::between(&before.contents, &self.contents)
    }

    /// Compiles from nothing: first the facts that do not depend on single objects, then all
    /// objects.
    fn begin(&mut self, snapshot: &Snapshot) {
        self.pods = PodNetwork::without_pods(snapshot);
        self.node_ports = node_port_addresses(snapshot);
        let pods = self.pods.prefixes().map(|prefix| (prefix, RangeKind::PODS));
        self.prefixes = pods
            .chain(service_ranges(snapshot).map(|range| (range, RangeKind::SERVICES)))
            .collect();
        self.contents.ranges = self.prefixes.clone();
        self.contents.devices = devices(snapshot);
        self.contents.config = config(snapshot);
        let hosts = snapshot.links.host_addresses.keys();
        let touched = Touched {
            everything: false,
            services: snapshot.state.services.keys().cloned().collect(),
            slices: snapshot.state.slices.keys().cloned().collect(),
            pods: snapshot.state.pods.keys().cloned().collect(),
            namespaces: snapshot.state.namespaces.keys().cloned().collect(),
            policies: snapshot.state.policies.keys().cloned().collect(),
            addresses: hosts
                .copied()
                .chain(self.pods.nodes())
                .chain(self.node_ports.iter().copied())
                .collect(),
        };
        self.follow(snapshot, &touched, &mut Delta::default());
    }

    fn follow(&mut self, snapshot: &Snapshot, touched: &Touched, delta: &mut Delta) {
        self.contents.config = config(snapshot);
        let mut concerned = Concerned {
            services: touched.services.clone(),
            ..Concerned::default()
        };
        for slice in &touched.slices {
            self.slice(slice, snapshot, &mut concerned.services);
        }
        concerned.pods.extend(&touched.addresses);
        concerned.addresses.extend(&touched.addresses);
        for pod in &touched.pods {
            concerned.pods.extend(self.pods.update(pod, snapshot));
        }
        let at_pods = concerned
            .pods
            .iter()
            .filter_map(|addr| self.endpoints.get(addr))
            .flatten();
        concerned.services.extend(at_pods.cloned());
        self.compile_services(snapshot, &mut concerned);
        for frontend in std::mem::take(&mut concerned.frontends) {
            self.settle(frontend, &mut concerned.sources, delta);
            // nodePorts, thousands of them, have no address of their own.
            if !frontend.addr.is_unspecified() {
                concerned.addresses.insert(frontend.addr);
            }
        }
        concerned
            .sources
            .iter()
            .for_each(|name| self.settle_sources(name, delta));
        for addr in concerned.pods {
            let range = IpNet::from(addr);
            let kind = match self.prefixes.get(&range) {
                Some(services @ &RangeKind::SERVICES) => Some(*services),
                other => self.pods.range(snapshot, addr).or(other.copied()),
            };
            set(&mut self.contents.ranges, range, kind, &mut delta.ranges);
            set(
                &mut self.contents.pods,
                addr,
                self.pods.local(snapshot, addr),
                &mut delta.pods,
            );
        }
        for addr in concerned.addresses {
            let flags = self.address(snapshot, addr);
            set(
                &mut self.contents.addresses,
                addr,
                flags,
                &mut delta.addresses,
            );
        }
    }

    /// Indexes a slice as it is in the snapshot. Adds to `services` those that it belonged to and
    /// belongs to.
    fn slice(
        &mut self,
        name: &ObjectName,
        snapshot: &Snapshot,
        services: &mut BTreeSet<ObjectName>,
    ) {
        if let Some(before) = self.owners.remove(name) {
            forget(&mut self.slices, &before, name);
            services.insert(before);
        }
        if let Some(slice) = snapshot.state.slices.get(name) {
            self.owners.insert(name.clone(), slice.service.clone());
            self.slices
                .entry(slice.service.clone())
                .or_default()
                .insert(name.clone());
            services.insert(slice.service.clone());
        }
    }

    fn compile_services(&mut self, snapshot: &Snapshot, concerned: &mut Concerned) {
        let own_node = snapshot
            .state
            .nodes
            .get(&ObjectName::cluster(&snapshot.settings.node_name));
        let place = Place {
            node: &snapshot.settings.node_name,
            zone: own_node.and_then(|node| node.zone.as_deref()),
        };
        for name in std::mem::take(&mut concerned.services) {
            let before = self.services.remove(&name).unwrap_or_default();
            let (mut after, claims) = match snapshot.state.services.get(&name) {
                Some(service) => self.service(&name, service, snapshot, &place),
                None => Default::default(),
            };
            for (frontend, order) in &before.claims {
                if let Some(claims) = self.claims.get_mut(frontend) {
                    claims.remove(order);
                }
            }
            for Claim {
                frontend,
                order,
                target,
            } in claims
            {
                after.claims.push((frontend, order.clone()));
                self.claims
                    .entry(frontend)
                    .or_default()
                    .insert(order, target);
            }
            concerned.frontends.extend(
                before
                    .claims
                    .iter()
                    .chain(&after.claims)
                    .map(|(frontend, _)| *frontend),
            );
            concerned
                .addresses
                .extend(before.foreign.iter().chain(&after.foreign));
            before
                .endpoints
                .iter()
                .for_each(|addr| forget(&mut self.endpoints, addr, &name));
            after.endpoints.iter().for_each(|addr| {
                _ = self
                    .endpoints
                    .entry(*addr)
                    .or_default()
                    .insert(name.clone())
            });
            before
                .foreign
                .iter()
                .for_each(|addr| forget(&mut self.foreign, addr, &name));
            after
                .foreign
                .iter()
                .for_each(|addr| _ = self.foreign.entry(*addr).or_default().insert(name.clone()));
            concerned.sources.insert(name.clone());
            if snapshot.state.services.contains_key(&name) {
                self.services.insert(name, after);
            }
        }
    }

    /// Compiles one Service, regardless of others.
    fn service(
        &self,
        name: &ObjectName,
        service: &Service,
        snapshot: &Snapshot,
        place: &Place,
    ) -> (Compiled, Vec<Claim>) {
        if service.proxied != Proxied::Yes {
            let foreign = if service.proxied == Proxied::OtherProxy {
                service.cluster_ips.clone()
            } else {
                Vec::new()
            };
            return (
                Compiled {
                    foreign: foreign.into_iter().collect(),
                    ..Compiled::default()
                },
                Vec::new(),
            );
        }
        let slices: Vec<&EndpointSlice> = self
            .slices
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|slice| snapshot.state.slices.get(slice))
            .collect();
        let claims = services::claims(&Claimant {
            name,
            service,
            slices: &slices,
            place,
            pods: &self.pods,
            snapshot,
        });
        let endpoints = slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| endpoint.addr)
            .collect();
        let ranges = services::sources(snapshot, service);
        (
            Compiled {
                ranges,
                endpoints,
                ..Compiled::default()
            },
            claims,
        )
    }
}

/// Removes a value from a key's set, and the key with its last value.
fn forget<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
