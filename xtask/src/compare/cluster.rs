//! Owns one side of the comparison: a lab with a control plane of its own, the objects, and one of
//! the two data planes on its nodes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::rows::{Client, Protocol, Row, Target};
use super::scene::{self, FAR_WAY, NEAR_WAY, SERVICES, Service};
use crate::lab::agent::{Agent, AgentSpec};
use crate::lab::controlplane::{ControlPlane, KubeProxy, ObjectRef, ProxySpec, wait_for};
use crate::lab::host::Tools;
use crate::lab::netns::Namespace;
use crate::lab::topology::{FAR_CLIENT, Family, Join, Wiring};
use crate::lab::{Lab, cluster};
use crate::lab::{probe, sctp};

/// Time limit for slices to follow pods, and for data planes to follow slices; generous, since
/// machines are slow in CI.
const PATIENCE: Duration = Duration::from_secs(30);
/// Refusals are counted here, so that none may be lost to the kernel's own limit of one a second
/// for each client.
const UNLIMITED_ICMP: &[(&str, &str)] =
    &[("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")];

/// The data plane under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// kube-proxy in nftables mode.
    KubeProxy,
    /// Portway.
    Portway,
    /// Portway where it may not use the cgroup: processes of nodes reach Services by packets.
    PortwayByPackets,
}

/// The processes that forward on the nodes, for as long as this value lives.
#[derive(Debug)]
pub struct DataPlane {
    _running: Running,
}

#[derive(Debug)]
enum Running {
    KubeProxies { _each: Vec<KubeProxy> },
    Agents { _each: Vec<Agent> },
}

/// A side that runs; its data plane goes first.
#[derive(Debug)]
pub struct Cluster {
    _data_plane: DataPlane,
    _plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    /// Brings up a side, and returns when its data plane serves.
    ///
    /// # Errors
    /// If any of it does not start, or does not serve in time.
    pub fn start(side: Side, wiring: Wiring, join: Join, tools: Tools) -> Result<Self> {
        let lab = Lab::start(scene::topology(wiring, join), tools)?;
        lab.router().ip(&scene::routes(FAR_WAY))?;
        lab.near_client().ip(&scene::routes(NEAR_WAY))?;
        stop_loops(lab.router())?;
        narrow(lab.router())?;
        associate(&lab)?;
        lab.nodes()
            .iter()
            .try_for_each(|node| node.ns().sysctls(UNLIMITED_ICMP))?;
        let plane = cluster::begin(&lab)?;
        apply(&plane)?;
        let data_plane = DataPlane::start(side, &plane, &lab)?;
        let cluster = Self {
            _data_plane: data_plane,
            _plane: plane,
            lab,
        };
        cluster.wait_until_served(side)?;
        Ok(cluster)
    }

    /// The lab that it runs in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The namespace of a client.
    ///
    /// # Errors
    /// If there is no such pod or node.
    pub fn namespace(&self, client: Client) -> Result<&Namespace> {
        Ok(match client {
            Client::Near => self.lab.near_client(),
            Client::Far => self.lab.far_client(),
            Client::Pod(name, _) => self.lab.pod(name)?.ns(),
            Client::Process(node) | Client::Unhooked(node) => {
                self.lab.node(&format!("node{node}"))?.ns()
            }
        })
    }

    /// Waits until the first and the last Service are served at every node and to every pod: they
    /// come to the kernel all at once, devices of pods one by one.
    fn wait_until_served(&self, side: Side) -> Result<()> {
        let clients = [("client-1", 1), ("client-3", 3), ("web-1", 1)]
            .map(|(name, node)| (Client::Pod(name, node), Target::ClusterIp));
        let nodes = [1, 2, 3].map(|node| (Client::Far, Target::NodePort(node)));
        // The devices that their packets go through are made when all else is there.
        let processes = [1, 3].map(|node| (Client::Unhooked(node), Target::NodePort(node)));
        let processes = processes
            .into_iter()
            .filter(|_| side == Side::PortwayByPackets);
        let services = [&SERVICES[0], &SERVICES[7]];
        for (client, target) in clients.into_iter().chain(nodes).chain(processes) {
            for (service, family) in services
                .into_iter()
                .flat_map(|service| Family::BOTH.map(|family| (service, family)))
            {
                let row = Row {
                    client,
                    service,
                    target,
                    family,
                    protocol: Protocol::Tcp,
                };
                wait_for(&row.to_string(), PATIENCE, || self.serves(&row))?;
            }
        }
        Ok(())
    }

    fn serves(&self, row: &Row) -> Result<Option<()>> {
        let answer = self
            .namespace(row.client)?
            .run(|| Ok(probe::ask(row.kind(), row.addr())))?;
        Ok(answer.served().map(drop))
    }
}

/// Drops packets that a node leaves untouched and sends to its default gateway, the router. The
/// router would send them back until their hop limit is used up, and the client would get an error
/// for that. The clients have other ways to the nodes.
fn stop_loops(router: &Namespace) -> Result<()> {
    for (family, network) in ["-4", "-6"].into_iter().zip(scene::ROUTED_NETWORKS) {
        let rule = ["rule", "add", "iif", "eth0", "to", network, "blackhole"];
        router.output(Command::new("ip").arg(family).args(rule))?;
    }
    Ok(())
}

/// Puts the routed client behind a hop with a smaller MTU than either end's device.
fn narrow(router: &Namespace) -> Result<()> {
    for ip in FAR_CLIENT.both() {
        let len = if ip.is_ipv4() { 32 } else { 128 };
        router.ip(&format!(
            "route add {ip}/{len} dev eth1 mtu lock {}\n",
            scene::NARROW
        ))?;
    }
    Ok(())
}

/// Lets the backends answer SCTP.
fn associate(lab: &Lab) -> Result<()> {
    scene::SCTP_SERVERS.iter().try_for_each(|(pod, port)| {
        lab.pod(pod)
            .map(|pod| sctp::start(pod.name(), pod.ns(), *port))
    })
}

impl DataPlane {
    /// Starts that of `side` on every node.
    ///
    /// # Errors
    /// If it does not start on one of them; Portway's account has to be known.
    pub fn start(side: Side, plane: &ControlPlane, lab: &Lab) -> Result<Self> {
        let running = match side {
            Side::KubeProxy => Running::KubeProxies {
                _each: start_kube_proxies(plane, lab)?,
            },
            Side::Portway => Running::Agents {
                _each: start_agents(plane, lab, &[])?,
            },
            Side::PortwayByPackets => Running::Agents {
                _each: start_agents(plane, lab, &["--cgroup", "off"])?,
            },
        };
        Ok(Self { _running: running })
    }
}

/// Gives the API server the Services, and waits until slices have followed.
fn apply(plane: &ControlPlane) -> Result<()> {
    for service in &SERVICES {
        let object = plane.client().apply(&service.object())?;
        plane
            .client()
            .patch_status(&ObjectRef::of(&object)?, &service.status())?;
    }
    SERVICES.iter().try_for_each(|service| {
        wait_for(&format!("the slices of {}", service.name), PATIENCE, || {
            has_slices(plane, service)
        })
    })
}

/// Returns true if both families' slices have all endpoints. A Service without endpoints has slices
/// too, which are empty.
fn has_slices(plane: &ControlPlane, service: &Service) -> Result<Option<()>> {
    let selector = format!("kubernetes.io/service-name={}", service.name);
    let slices = plane.client().list(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        Some("default"),
        &selector,
    )?;
    let endpoints: usize = slices
        .iter()
        .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
        .sum();
    Ok((slices.len() == 2 && endpoints == 2 * service.endpoints().len()).then_some(()))
}

fn start_kube_proxies(plane: &ControlPlane, lab: &Lab) -> Result<Vec<KubeProxy>> {
    let ranges =
        ["10.244.0.0/16", "fd00:244::/32"].map(|range| range.parse().context("read a pod range"));
    let cluster_cidrs = ranges.into_iter().collect::<Result<Vec<_>>>()?;
    let spec = |node: &crate::lab::node::Node| ProxySpec {
        netns: node.ns().path(),
        node: node.name().to_owned(),
        cluster_cidrs: cluster_cidrs.clone(),
    };
    lab.nodes()
        .iter()
        .map(|node| KubeProxy::start(plane, &spec(node)))
        .collect()
}

fn start_agents(plane: &ControlPlane, lab: &Lab, arguments: &[&str]) -> Result<Vec<Agent>> {
    let spec =
        AgentSpec::new(lab.tools(), cluster::source(plane)?, lab.directory()).with(arguments);
    lab.nodes().iter().map(|node| spec.start(node)).collect()
}
