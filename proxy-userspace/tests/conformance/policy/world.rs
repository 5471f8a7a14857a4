//! The cluster of a case compiled and placed in memory: all its pods are this node's, so that both
//! ends are judged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use portway::compile::{PolicyCompiler, Touched};
use portway::contents::policies::Policies;
use portway::model::{self, ObjectRef, Snapshot, Update};
use portway::place::policies::{PolicyTables, PolicyWrite};
use proxy_common::net::{Addr4, Addr6, IfIndex, Protocol, V4, V6};
use proxy_common::policy::PodRows;
use proxy_ebpf::fake::Memory;
use proxy_ebpf::policy::allows;
use serde_json::{Value, json};

use super::cases::{ContainerPort, Step};
use super::oracle::{End, Port};

#[path = "../../../core/tests/support/policy_tables.rs"]
mod policy_tables;

const HERE: &str = "here";

/// The states of a case, one after the other.
pub struct World {
    snapshot: Snapshot,
    compiler: PolicyCompiler,
    tables: PolicyTables,
    known: BTreeSet<ObjectRef>,
    v4: Memory<V4>,
    v6: Memory<V6>,
    /// The device of all pods; policy does not depend on it.
    device: IfIndex,
}

impl World {
    /// Without objects.
    pub fn new(device: IfIndex) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = HERE.into();
        let (compiler, tables, known) = Default::default();
        Self {
            snapshot,
            compiler,
            tables,
            known,
            v4: Memory::default(),
            v6: Memory::default(),
            device,
        }
    }

    /// Applies a step's objects as an agent would; returns the writes.
    pub fn bring_to(&mut self, step: &Step) -> Result<Vec<PolicyWrite>> {
        let mut touched = Touched::default();
        let mut objects = BTreeSet::new();
        for object in objects_of(step) {
            let update = model::k8s::seen_json(object)?;
            objects.insert(update.object().context("name an object")?);
            self.hear(update, &mut touched);
        }
        let gone: Vec<_> = self.known.difference(&objects).cloned().collect();
        gone.into_iter()
            .for_each(|object| self.hear(Update::Delete(object), &mut touched));
        self.known = objects;
        let addresses = step.pods.iter().flat_map(|pod| &pod.ips);
        self.snapshot.links.pods = addresses.map(|ip| (*ip, self.device)).collect();
        touched.addresses.extend(self.snapshot.links.pods.keys());
        Ok(self.write(&touched))
    }

    /// Compiles and places the same objects from nothing.
    pub fn made_anew(&self, step: &Step) -> Result<Self> {
        let mut fresh = Self::new(self.device);
        fresh.bring_to(step)?;
        let (changed, whole) = (self.compiler.policies(), fresh.compiler.policies());
        ensure!(
            changed == whole,
            "step by step the objects came to {changed:?}, from nothing to {whole:?}"
        );
        Ok(fresh)
    }

    /// Takes everything away again.
    pub fn empty(&mut self) -> Result<Vec<PolicyWrite>> {
        let mut touched = Touched::default();
        let known = std::mem::take(&mut self.known);
        known
            .into_iter()
            .for_each(|object| self.hear(Update::Delete(object), &mut touched));
        let writes = self.write(&touched);
        let left = self.compiler.policies();
        ensure!(
            *left == Policies::default(),
            "without objects there are still {left:?}"
        );
        Ok(writes)
    }

    fn hear(&mut self, update: Update, touched: &mut Touched) {
        touched.record(&update);
        _ = self.snapshot.state.apply(update);
    }

    fn write(&mut self, touched: &Touched) -> Vec<PolicyWrite> {
        let delta = self.compiler.compile(&self.snapshot, touched);
        let mut writes = self.tables.place(self.compiler.policies(), &delta);
        // Twice: elements that the first call releases are free at the second.
        writes.extend([(); 2].into_iter().flat_map(|()| self.tables.rest()));
        writes
            .iter()
            .for_each(|write| policy_tables::write(write, &mut self.v4, &mut self.v6));
        writes
    }

    /// The pod_ids of the pods' addresses.
    pub fn pod_ids(&self) -> BTreeMap<IpAddr, u32> {
        self.tables.pod_ids().collect()
    }

    /// The rows of the pod that owns an address.
    pub fn rows(&self, ip: IpAddr) -> Option<PodRows> {
        let pod_id = self.tables.pod_ids().find(|(addr, _)| *addr == ip)?.1;
        self.v4.rows.get(&pod_id).copied()
    }

    /// Returns the verdicts on a connection, in and out, by the functions that the programs run.
    pub fn verdict(&self, from: End, to: End, port: Port) -> (bool, bool) {
        let protocol = protocol(port.protocol);
        let allows = |row, other| match other {
            IpAddr::V4(addr) => {
                allows::<V4, _>(&self.v4, row, &Addr4::from(addr), protocol, port.number)
            }
            IpAddr::V6(addr) => {
                allows::<V6, _>(&self.v6, row, &Addr6::from(addr), protocol, port.number)
            }
        };
        let ingress = own_node(from, to)
            || self
                .rows(to.ip)
                .is_none_or(|rows| allows(rows.ingress, from.ip));
        (
            ingress,
            self.rows(from.ip)
                .is_none_or(|rows| allows(rows.egress, to.ip)),
        )
    }
}

/// P18: returns true if the source is the destination pod's own node.
pub fn own_node(from: End, to: End) -> bool {
    to.pod
        .is_some_and(|pod| pod.node.is_some() && pod.node.as_deref() == from.node)
}

/// A protocol by the name that Kubernetes gives it.
pub fn protocol(name: &str) -> Protocol {
    match name {
        "UDP" => Protocol::UDP,
        "SCTP" => Protocol::SCTP,
        _ => Protocol::TCP,
    }
}

/// A step's objects as an API server would show them.
fn objects_of(step: &Step) -> Vec<Value> {
    let namespaces = step
        .namespaces
        .iter()
        .map(|namespace| json!({ "kind": "Namespace", "metadata": { "name": namespace.name, "labels": namespace.labels } }));
    let pods = step.pods.iter().map(|pod| {
        let port = |p: &ContainerPort| json!({ "name": p.name, "containerPort": p.container_port, "protocol": p.protocol });
        // P15: port names belong to the pod, in any container; every third port is a sidecar's.
        let of = |container: usize| -> Vec<_> { pod.container_ports.iter().skip(container).step_by(3).map(port).collect() };
        let containers = [json!({ "name": "a", "ports": of(0) }), json!({ "name": "b", "ports": of(1) })];
        let sidecars = [json!({ "name": "c", "restartPolicy": "Always", "ports": of(2) })];
        let ips: Vec<_> = pod.ips.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "kind": "Pod",
            "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": pod.labels },
            "spec": { "nodeName": HERE, "hostNetwork": pod.host_network, "containers": containers, "initContainers": sidecars },
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
