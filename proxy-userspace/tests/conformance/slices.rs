//! Endpoints and Services while slices and Services are added, changed and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use portway::compile::{compile, known_endpoints, local_ready_endpoints};
use portway::contents::Contents;
use portway::model::k8s::seen_json;
use portway::model::{
    Changed, EndpointSlice, Family, ObjectName, ServicePort, SliceEndpoint, SlicePort, Snapshot,
    State, TargetPort,
};
use portway::sync::{Trigger, Triggers, serving_endpoints};
use proxy_common::net::RangeKind;
use serde_json::json;

use crate::cases::{
    EventCase, EventExpect, EventStep, KnownEndpoint, RangeCase, ReadyCase, SliceFile,
};
use crate::packet::protocol;
use crate::report::{Tally, Weight};
use crate::rules::{Row, Rule};
use crate::world::prefixes;
use crate::{cluster, services};

/// Checks a file.
pub fn check(file: &SliceFile, tally: &mut Tally) -> Result<()> {
    let SliceFile {
        endpoint_maps,
        slice_updates,
        endpoint_updates,
        slice_changes,
        cache_cleanup,
        service_updates,
        ..
    } = file;
    for cases in [
        endpoint_maps,
        slice_updates,
        endpoint_updates,
        slice_changes,
        cache_cleanup,
        service_updates,
    ] {
        check_events(cases, tally)?;
    }
    for case in &file.service_ports {
        services::check(case, tally)?;
    }
    file.local_ready_ips
        .iter()
        .try_for_each(|case| check_ready(case, tally))?;
    check_events(&file.trigger_times, tally)?;
    file.service_cidrs
        .iter()
        .try_for_each(|case| check_ranges(case, tally))
}

/// Checks cases of objects that change.
pub fn check_events(cases: &[EventCase], tally: &mut Tally) -> Result<()> {
    for case in cases {
        let mut before = State::default();
        let mut placed = Contents::default();
        for (number, step) in case.steps.iter().enumerate() {
            let name = format!("{}, step {}", case.name, number + 1);
            let view = View {
                case,
                step,
                name: &name,
                before: &before,
                placed: &placed,
            };
            let after = view.check(tally).with_context(|| name.clone())?;
            // The changes are pending, not applied.
            if step.expect.pending_services.is_none() {
                placed = contents(&after, case);
            }
            before = after;
        }
    }
    Ok(())
}

fn contents(state: &State, case: &EventCase) -> Contents {
    let mut snapshot = Snapshot {
        state: state.clone(),
        ..Snapshot::default()
    };
    snapshot.settings.node_name = case.config.node_name.as_str().into();
    compile(&snapshot)
}

/// A step, with the state before it.
struct View<'a> {
    case: &'a EventCase,
    step: &'a EventStep,
    name: &'a str,
    before: &'a State,
    placed: &'a Contents,
}

impl View<'_> {
    /// Applies the step's events and compares all that it expects.
    fn check(&self, tally: &mut Tally) -> Result<State> {
        let mut state = self.before.clone();
        let (any, changed) = cluster::changes(&mut state, &self.step.events)?;
        let EventExpect {
            service,
            endpoints,
            changed: any_owed,
            udp_cleanup_needed,
            local_ready_endpoints: ready,
            changed_services,
            services_tracked,
            pending_services,
            change_trigger_times,
            service_ports,
            health_check_node_ports,
            updated_services,
        } = &self.step.expect;
        if let Some(owed) = change_trigger_times {
            self.compare(
                "trigger times",
                &Some(owed.clone()),
                &self.trigger_times()?,
                tally,
            );
        }
        if let Some(owed) = endpoints {
            self.endpoints(owed, service.as_deref(), &state, tally)?;
        }
        self.compare("changed", any_owed, &any, tally);
        if let Some(owed) = udp_cleanup_needed {
            self.udp_cleanup(*owed, &state, tally)?;
        }
        let here = local_ready_endpoints(&state, &self.case.config.node_name);
        self.compare(
            "local ready endpoints",
            ready,
            &here
                .iter()
                .map(|(name, ips)| (name.to_string(), ips.len()))
                .collect(),
            tally,
        );
        self.compare("changed Services", &set(changed_services), &changed, tally);
        self.compare(
            "Services tracked",
            services_tracked,
            &state.slices_by_service().len(),
            tally,
        );
        let updated = services::updated(self.placed, &contents(&state, self.case));
        self.compare("pending Services", pending_services, &updated.len(), tally);
        self.compare("updated Services", &set(updated_services), &updated, tally);
        self.compare(
            "service ports",
            &set(service_ports),
            &services::names(&state, &self.case.config)?,
            tally,
        );
        self.compare(
            "healthCheckNodePorts",
            health_check_node_ports,
            &services::health_check_ports(&state),
            tally,
        );
        Ok(state)
    }

    /// V24: returns the times of the step's changes by Service.
    fn trigger_times(&self) -> Result<BTreeMap<String, Vec<Timestamp>>> {
        let began = self
            .case
            .config
            .tracker_start
            .context("a tracker without a start")?;
        let (mut triggers, mut state) = (Triggers::since(began), self.before.clone());
        for event in &self.step.events {
            let update = cluster::update(event)?;
            let trigger = Trigger::of(&update, &state);
            if state.apply(update) == Changed::Yes {
                trigger
                    .into_iter()
                    .for_each(|trigger| triggers.wait(trigger));
            }
        }
        let times = |all: Vec<(_, Timestamp)>| all.into_iter().map(|(_, time)| time).collect();
        Ok(triggers
            .take()
            .into_iter()
            .map(|(service, all)| (service.to_string(), times(all)))
            .collect())
    }

    /// Compares a value that the step expects.
    fn compare<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        owed: &Option<T>,
        found: &T,
        tally: &mut Tally,
    ) {
        if let Some(owed) = owed {
            tally.compare(
                &format!("{}: {what}", self.name),
                self.case.weight(),
                owed,
                found,
            );
        }
    }

    fn endpoints(
        &self,
        owed: &BTreeMap<String, Vec<KnownEndpoint>>,
        service: Option<&str>,
        state: &State,
        tally: &mut Tally,
    ) -> Result<()> {
        let node = &self.case.config.node_name;
        let v4 = services::family_is_v4(&self.case.config);
        let mut found = BTreeMap::<String, BTreeMap<SocketAddr, Told>>::new();
        for (name, slices) in state.slices_by_service() {
            if service.is_some_and(|service| service != name.to_string()) {
                continue;
            }
            for port in ports(&slices) {
                let known = known_endpoints(&port, &slices)
                    .into_iter()
                    .filter(|(addr, _)| addr.is_ipv4() == v4);
                let told: BTreeMap<_, _> = known.map(|(addr, e)| (addr, told(e, node))).collect();
                if !told.is_empty() {
                    found.insert(services::port_name(name, &port), told);
                }
            }
        }
        let told = |e: &KnownEndpoint, key: &str| {
            let known = found
                .get(key)
                .and_then(|endpoints| endpoints.get(&e.endpoint));
            // Values that the case does not expect are not compared.
            let [ready, serving, terminating] = known.map_or([false; 3], |t| t.conditions);
            let conditions = [
                e.ready.unwrap_or(ready),
                e.serving.unwrap_or(serving),
                e.terminating.unwrap_or(terminating),
            ];
            (
                e.endpoint,
                Told {
                    local: e.local,
                    conditions,
                },
            )
        };
        let owed = owed
            .iter()
            .map(|(key, list)| (key.clone(), list.iter().map(|e| told(e, key)).collect()))
            .collect();
        tally.compare(
            &format!("{}: endpoints", self.name),
            self.case.weight(),
            &owed,
            &found,
        );
        Ok(())
    }

    /// The sweep runs whenever the serving endpoints change; other changes end no flow (V14).
    fn udp_cleanup(&self, owed: bool, state: &State, tally: &mut Tally) -> Result<()> {
        let found = udp(self.before)? != udp(state)?;
        if owed && !found && self.before.slices != state.slices {
            tally.otherwise(Rule::UdpEndsWithBackend);
            return Ok(());
        }
        tally.row = Row::UdpFlows;
        tally.compare(
            &format!("{}: UDP cleanup", self.name),
            self.case.weight(),
            &owed,
            &found,
        );
        tally.row = Row::Objects;
        Ok(())
    }
}

fn set(list: &Option<Vec<String>>) -> Option<BTreeSet<String>> {
    list.as_ref().map(|list| list.iter().cloned().collect())
}

/// A case's view of an endpoint.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Told {
    local: bool,
    /// Ready, serving, terminating.
    conditions: [bool; 3],
}

fn told(endpoint: &SliceEndpoint, node: &str) -> Told {
    Told {
        local: endpoint.is_on(node),
        conditions: [endpoint.ready, endpoint.serving, endpoint.terminating],
    }
}

/// The service ports that slices have endpoints for.
fn ports(slices: &[&EndpointSlice]) -> Vec<ServicePort> {
    let all: BTreeSet<_> = slices
        .iter()
        .flat_map(|slice| &slice.ports)
        .map(|p| (p.name.clone(), p.protocol))
        .collect();
    let port = |(name, protocol)| ServicePort {
        name,
        protocol,
        port: 1,
        node_port: None,
        target: TargetPort::Number(1),
    };
    all.into_iter().map(port).collect()
}

/// Returns the serving UDP endpoints by service port, as the sweep gets them, for a cluster with
/// these slices and a Service for each that they name.
fn udp(state: &State) -> Result<BTreeMap<Arc<str>, BTreeSet<SocketAddr>>> {
    let mut with_services = state.clone();
    for (name, slices) in state.slices_by_service() {
        let ports = ports(&slices);
        let numbered = ports.iter().zip(1..);
        let described: Vec<_> =
            numbered.map(|(p, number)| json!({"name": &*p.name, "protocol": p.protocol.name(), "port": number})).collect();
        let service = json!({
            "kind": "Service", "metadata": {"namespace": &*name.namespace, "name": &*name.name},
            "spec": {"clusterIP": "10.96.0.1", "ports": described},
        });
        _ = with_services.apply(seen_json(service)?);
    }
    Ok(serving_endpoints(&with_services)
        .into_iter()
        .filter(|(_, endpoints)| !endpoints.is_empty())
        .collect())
}

/// The ranges of a family in which addresses that no Service has are dropped.
fn check_ranges(case: &RangeCase, tally: &mut Tally) -> Result<()> {
    tally.row = Row::ServiceCidrs;
    let v4 = services::family_is_v4(&case.config);
    for step in &case.steps {
        let mut snapshot = Snapshot::default();
        snapshot.settings.service_cidrs = prefixes(&step.service_cidrs)?;
        let of_services = compile(&snapshot)
            .ranges
            .into_iter()
            .filter(|(_, kind)| *kind == RangeKind::SERVICES);
        let found: BTreeSet<_> = of_services
            .map(|(range, _)| range)
            .filter(|range| range.addr().is_ipv4() == v4)
            .collect();
        let owed = prefixes(&step.expect.service_cidrs)?.into_iter().collect();
        tally.compare(&case.name, Weight::Binding, &owed, &found);
    }
    Ok(())
}

/// V22, for endpoints that are named by service port.
fn check_ready(case: &ReadyCase, tally: &mut Tally) -> Result<()> {
    const HERE: &str = "here";
    let mut state = State::default();
    for (key, endpoints) in &case.endpoints {
        let (service, port, protocol_name) = services::split(key)?;
        for (number, e) in endpoints.iter().enumerate() {
            let endpoint = SliceEndpoint {
                addr: e.endpoint.ip(),
                ready: e.ready.unwrap_or(true),
                serving: e.serving.unwrap_or(true),
                terminating: e.terminating.unwrap_or(false),
                node: Some(if e.local { HERE } else { "elsewhere" }.into()),
                zone_hints: BTreeSet::new(),
                node_hints: BTreeSet::new(),
            };
            let port = SlicePort {
                name: port.into(),
                protocol: protocol(protocol_name)?,
                port: e.endpoint.port(),
            };
            let family = Family::of(endpoint.addr);
            let slice = EndpointSlice {
                service: service.clone(),
                ports: vec![port],
                family,
                endpoints: vec![endpoint],
                triggered: None,
            };
            state.slices.insert(
                ObjectName::new(&service.namespace, &format!("{key} {number}")),
                slice,
            );
        }
    }
    let owed: BTreeMap<String, BTreeSet<IpAddr>> = case
        .expect
        .local_ready_ips
        .iter()
        .map(|(name, ips)| (name.clone(), ips.iter().copied().collect()))
        .collect();
    let found = local_ready_endpoints(&state, HERE)
        .into_iter()
        .map(|(name, ips)| (name.to_string(), ips))
        .collect();
    tally.compare(&case.name, Weight::Binding, &owed, &found);
    Ok(())
}
