//! The cluster of a case compiled and placed, in memory and in the kernel: all its pods are this node's, so that both ends are judged.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use portway::compile::{PolicyCompiler, Touched};
use portway::contents::policies::Policies;
use portway::model::{self, ObjectRef, Snapshot, Update};
use portway::place::policies::{PolicyTables, PolicyWrite};
use portway::place::{Entry, Key, Write};
use proxy_common::event::Reason;
use proxy_common::net::{Addr4, Addr6, AddressFlags, IfIndex, LocalPod, Protocol, V4, V6};
use proxy_common::policy::PodRows;
use proxy_common::service::Config;
use proxy_ebpf::Action;
use proxy_ebpf::fake::Memory;
use proxy_ebpf::policy::allows;
use serde_json::{Value, json};

use super::cases::Step;
use super::oracle::{End, Port};
use crate::kernel::Kernel;
use crate::programs::Hook;
use crate::segment::{SYN, Segment};
use crate::world::FIRST_POD;

#[path = "../../support/policy_tables.rs"]
mod policy_tables;

const HERE: &str = "here";
/// All pods are behind one device: which one does not matter to policy.
const DEVICE: IfIndex = IfIndex(FIRST_POD);

/// What a case's states come to, one after the other.
#[derive(Default)]
pub struct Tables {
    snapshot: Snapshot,
    compiler: PolicyCompiler,
    tables: PolicyTables,
    known: BTreeSet<ObjectRef>,
    v4: Memory<V4>,
    v6: Memory<V6>,
}

impl Tables {
    /// Hears of a step's objects as an agent would, and writes what they come to.
    pub fn bring_to(&mut self, step: &Step, kernel: &mut Kernel) -> Result<()> {
        if self.known.is_empty() {
            self.snapshot.settings.node_name = HERE.into();
            let config = Config { hz: 250, opening_timeout: 30, flags: Config::POLICY, ..Config::default() };
            kernel.write(Write::Put(Entry::Config(config)))?;
        }
        let mut touched = Touched { everything: self.known.is_empty(), ..Touched::default() };
        let mut objects = BTreeSet::new();
        for object in objects_of(step) {
            let update = model::k8s::seen_json(object)?;
            let name = update.object().context("name an object")?;
            objects.insert(name);
            self.hear(update, &mut touched);
        }
        let gone: Vec<_> = self.known.difference(&objects).cloned().collect();
        gone.into_iter().for_each(|object| self.hear(Update::Delete(object), &mut touched));
        self.known = objects;
        let addresses = step.pods.iter().flat_map(|pod| &pod.ips);
        self.snapshot.links.pods = addresses.map(|ip| (*ip, DEVICE)).collect();
        touched.addresses.extend(self.snapshot.links.pods.keys());
        self.write(&touched, kernel)
    }

    /// Takes everything away again.
    pub fn empty(&mut self, kernel: &mut Kernel) -> Result<()> {
        let mut touched = Touched::default();
        let known: Vec<_> = std::mem::take(&mut self.known).into_iter().collect();
        known.into_iter().for_each(|object| self.hear(Update::Delete(object), &mut touched));
        self.write(&touched, kernel)?;
        if *self.compiler.policies() != Policies::default() {
            bail!("without objects there are still {:?}", self.compiler.policies());
        }
        kernel.forget_policies()
    }

    fn hear(&mut self, update: Update, touched: &mut Touched) {
        touched.note(&update);
        _ = self.snapshot.state.apply(update);
    }

    fn write(&mut self, touched: &Touched, kernel: &mut Kernel) -> Result<()> {
        let delta = self.compiler.compile(&self.snapshot, touched);
        let mut writes = self.tables.place(self.compiler.policies(), &delta);
        // Twice: what one step leaves is free before the next.
        writes.extend([(); 2].into_iter().flat_map(|()| self.tables.rest()));
        for write in &writes {
            policy_tables::write(write, &mut self.v4, &mut self.v6);
            kernel.write_policy(write)?;
        }
        let slots: Vec<_> = self.tables.slots().collect();
        kernel.put_pods(slots.into_iter().map(|(ip, slot)| (ip, LocalPod { device: DEVICE, slot })).collect())?;
        kernel.forget_flows()
    }

    /// The rows of the pod that owns an address.
    fn rows(&self, ip: IpAddr) -> Option<PodRows> {
        let slot = self.tables.slots().find(|(addr, _)| *addr == ip)?.1;
        self.v4.rows.get(&slot).copied()
    }

    /// By the functions that the programs run, over tables in memory.
    pub fn verdict(&self, from: End, to: End, port: Port) -> (bool, bool) {
        let protocol = protocol(port.protocol);
        let allows = |row, other| match other {
            IpAddr::V4(addr) => allows::<V4, _>(&self.v4, row, &Addr4::from(addr), protocol, port.number),
            IpAddr::V6(addr) => allows::<V6, _>(&self.v6, row, &Addr6::from(addr), protocol, port.number),
        };
        let ingress = own_node(from, to) || self.rows(to.ip).is_none_or(|rows| allows(rows.ingress, from.ip));
        (ingress, self.rows(from.ip).is_none_or(|rows| allows(rows.egress, to.ip)))
    }

    /// By the loaded programs: the first packet of a connection at the source's device, and at the destination's.
    pub fn verdict_of_programs(&self, from: End, to: End, port: Port, kernel: &mut Kernel) -> Result<(bool, bool)> {
        let bytes = packet(from.ip, to.ip, port);
        let egress = self.rows(from.ip).is_none() || passes(kernel, Hook::FromPod, &bytes)?;
        if self.rows(to.ip).is_none() {
            return Ok((true, egress));
        }
        let own = own_node(from, to);
        if own {
            kernel.write(Write::Put(Entry::Address(from.ip, AddressFlags(AddressFlags::HOST))))?;
        }
        // What passed the source's device is followed, and would be judged as what it is there.
        kernel.forget_flows_of(from.ip, to.ip, protocol(port.protocol), SPORT, port.number)?;
        let ingress = passes(kernel, Hook::ToPod, &bytes)?;
        if own {
            kernel.write(Write::Delete(Key::Address(from.ip)))?;
            kernel.forget_flows_of(from.ip, to.ip, protocol(port.protocol), SPORT, port.number)?;
        }
        Ok((ingress, egress))
    }
}

const SPORT: u16 = 40000;

fn own_node(from: End, to: End) -> bool {
    to.pod.is_some_and(|pod| pod.node.is_some() && pod.node.as_deref() == from.node)
}

fn passes(kernel: &mut Kernel, hook: Hook, bytes: &[u8]) -> Result<bool> {
    match kernel.run(hook, DEVICE, bytes)?.0 {
        Ok(Action::Untouched) => Ok(true),
        Err(Reason::DeniedIngress) if hook == Hook::ToPod => Ok(false),
        Err(Reason::DeniedEgress) if hook == Hook::FromPod => Ok(false),
        other => bail!("{hook:?} says {other:?}"),
    }
}

fn protocol(name: &str) -> Protocol {
    match name {
        "UDP" => Protocol::UDP,
        "SCTP" => Protocol::SCTP,
        _ => Protocol::TCP,
    }
}

/// The first packet of a connection; SCTP's has an INIT chunk where UDP's has a payload.
fn packet(from: IpAddr, to: IpAddr, port: Port) -> Vec<u8> {
    let carrier = if port.protocol == "TCP" { Protocol::TCP } else { Protocol::UDP };
    let segment = Segment::new(carrier, (from, SPORT).into(), (to, port.number).into());
    let mut bytes = segment.flags(SYN).payload(&[1; 24]).bytes();
    if port.protocol == "SCTP" {
        bytes[if from.is_ipv4() { 23 } else { 20 }] = Protocol::SCTP.0;
    }
    bytes
}

/// A step's objects as an API server would show them.
fn objects_of(step: &Step) -> Vec<Value> {
    let namespaces = step
        .namespaces
        .iter()
        .map(|namespace| json!({ "kind": "Namespace", "metadata": { "name": namespace.name, "labels": namespace.labels } }));
    let pods = step.pods.iter().map(|pod| {
        let port = |p: &super::cases::ContainerPort| json!({ "name": p.name, "containerPort": p.container_port, "protocol": p.protocol });
        let ports: Vec<_> = pod.container_ports.iter().map(port).collect();
        let ips: Vec<_> = pod.ips.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "kind": "Pod",
            "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": pod.labels },
            "spec": { "nodeName": HERE, "hostNetwork": pod.host_network, "containers": [{ "name": "c", "ports": ports }] },
            "status": { "phase": pod.phase, "podIPs": ips },
        })
    });
    let policies = step.policies.iter().flatten().map(|policy| {
        let mut policy = policy.clone();
        policy["kind"] = json!("NetworkPolicy");
        policy
    });
    namespaces.chain(pods).chain(policies).collect()
}
