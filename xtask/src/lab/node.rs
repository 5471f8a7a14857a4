//! Owns a running node and its pods: namespaces, addresses, the servers that play pods, the cgroup
//! and the state directory.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::host::{OwnedDir, Tools};
use super::netns::Namespace;
use super::owned::LabId;
use super::probe::{Answer, Kind, Tally};
use super::process::Process;
use super::topology::{self, Addresses, Network, PodSpec, Serves, Topology};
use super::wire;

/// A running node; its fields are dropped in this order, so that processes go before their cgroup.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    used: u8,
    topology: Arc<Topology>,
    lab: LabId,
    tools: Tools,
    pods: Vec<Pod>,
    ns: Arc<Namespace>,
    state: OwnedDir,
    cgroup: OwnedDir,
}

/// A running pod, which answers.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    addresses: Addresses,
    device: Option<String>,
    server: Process,
    ns: Arc<Namespace>,
}

impl Node {
    /// A node in the namespace `ns`, wired to the others but without pods.
    pub(super) fn new(topology: Arc<Topology>, number: u8, place: Place, ns: Namespace) -> Self {
        let name = topology.nodes[usize::from(number) - 1].name.clone();
        let Place {
            lab,
            tools,
            cgroup,
            state,
        } = place;
        Self {
            name,
            number,
            used: 0,
            topology,
            lab,
            tools,
            pods: Vec::new(),
            ns: Arc::new(ns),
            state,
            cgroup,
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's number, counted from 1: the N in 10.244.N.0/24.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The node's addresses on the LAN.
    pub fn addresses(&self) -> Addresses {
        topology::node(self.number)
    }

    /// The node's namespace.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// The cgroup of everything that runs on this node.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The directory in bpffs that the node's agent may make and use.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The devices by which the node's traffic comes and goes, pods' aside.
    pub fn devices(&self) -> Vec<&'static str> {
        let uplink = self.topology.uplink.device();
        match self.topology.join {
            topology::Join::Routes => vec![uplink],
            topology::Join::Vxlan => vec![uplink, "flannel.1"],
        }
    }

    /// The pods that run here.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Starts a process in the node's namespace and cgroup.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.ns.spawn(command, Some(self.cgroup()))
    }

    /// Asks from a process of the node, in the node's cgroup, where socket hooks see it.
    ///
    /// # Errors
    /// If the process cannot be started, or prints what is no answer.
    pub fn survey_as_process(&self, kind: Kind, addr: SocketAddr, count: usize) -> Result<Tally> {
        let mut command = Command::new(&self.tools.xtask);
        let kind = clap::ValueEnum::to_possible_value(&kind).context("name the kind of probe")?;
        command.args([
            "probe",
            "--kind",
            kind.get_name(),
            "--count",
            &count.to_string(),
            &addr.to_string(),
        ]);
        let text = self.spawn(piped(command))?.all_output()?;
        text.lines().map(str::parse::<Answer>).collect()
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// If there is no address left, or its namespace or its server cannot be made.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        self.add_pods(vec![spec])?;
        self.pods.last().context("find the pod just added")
    }

    /// Starts pods, all at once.
    ///
    /// # Errors
    /// As [`Self::add_pod`]; then none of them runs.
    pub fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<()> {
        let own = |spec: &PodSpec| spec.network == Network::Pod;
        let names: Vec<String> = specs
            .iter()
            .filter(|spec| own(spec))
            .map(|spec| self.lab.name(&spec.qualified_name()))
            .collect();
        let mut namespaces = Namespace::create(&names)?.into_iter();
        let mut started = Vec::with_capacity(specs.len());
        let mut on_node = String::new();
        for spec in specs {
            let seat = match spec.network {
                Network::Host => Seat {
                    ns: self.ns.clone(),
                    addresses: self.addresses(),
                    device: None,
                },
                Network::Pod => {
                    let seat =
                        self.next_seat(namespaces.next().context("find the pod's namespace")?)?;
                    let device = seat.device.as_deref().unwrap_or_default();
                    on_node +=
                        &wire::pod_on_node(&self.topology, device, seat.ns.name(), &seat.addresses);
                    seat
                }
            };
            started.push((spec, seat));
        }
        self.wire_pods(&on_node, &started)?;
        let pods: Result<Vec<Pod>> = started
            .into_iter()
            .map(|(spec, seat)| self.play(spec, seat))
            .collect();
        let mut pods = pods?;
        pods.iter_mut().try_for_each(|pod| {
            pod.server
                .first_line()
                .map(drop)
                .with_context(|| format!("start pod {}", pod.spec.name))
        })?;
        self.pods.extend(pods);
        Ok(())
    }

    /// Ends the pod `name` at once, its devices and addresses with it.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let at = self
            .pods
            .iter()
            .position(|pod| pod.spec.name == name)
            .with_context(|| format!("find pod {name} on {}", self.name))?;
        drop(self.pods.remove(at));
        Ok(())
    }

    fn next_seat(&mut self, ns: Namespace) -> Result<Seat> {
        if self.used > 200 {
            bail!("{} has no pod address left", self.name);
        }
        let addresses = topology::pod(self.number, self.used);
        let device = Some(wire::pod_device(&self.topology, self.used));
        self.used += 1;
        Ok(Seat {
            ns: Arc::new(ns),
            addresses,
            device,
        })
    }

    fn wire_pods(&self, on_node: &str, pods: &[(PodSpec, Seat)]) -> Result<()> {
        let own: Vec<&Seat> = pods
            .iter()
            .map(|(_, seat)| seat)
            .filter(|seat| seat.device.is_some())
            .collect();
        own.iter()
            .try_for_each(|seat| seat.ns.sysctls(wire::EVERYWHERE))?;
        self.ns.ip(on_node)?;
        let sysctls = own
            .iter()
            .flat_map(|seat| &seat.device)
            .flat_map(|device| wire::pod_device_sysctls(&self.topology, device));
        let sysctls: Vec<(String, &str)> = sysctls.collect();
        self.ns.sysctls(
            &sysctls
                .iter()
                .map(|(key, value)| (key.as_str(), *value))
                .collect::<Vec<_>>(),
        )?;
        own.iter().try_for_each(|seat| {
            seat.ns.ip(&wire::pod_script(
                &self.topology,
                self.number,
                &seat.addresses,
            ))
        })
    }

    /// Starts the server that plays the pod.
    fn play(&self, spec: PodSpec, seat: Seat) -> Result<Pod> {
        let mut command = Command::new(&self.tools.xtask);
        command.args(["pod-server", "--name", &spec.name]);
        for port in &spec.ports {
            let flag = match port.serves {
                Serves::Http => "--http",
                Serves::TcpEcho => "--tcp-echo",
                Serves::UdpEcho => "--udp-echo",
                Serves::Dns => "--dns",
            };
            for ip in seat.addresses.both() {
                command.args([flag, &SocketAddr::new(ip, port.port).to_string()]);
            }
        }
        command.args(
            spec.records
                .iter()
                .flat_map(|record| ["--record".to_owned(), record.to_string()]),
        );
        let Seat {
            ns,
            addresses,
            device,
        } = seat;
        let server = ns
            .spawn(piped(command), Some(self.cgroup()))
            .with_context(|| format!("start pod {}", spec.name))?;
        Ok(Pod {
            spec,
            addresses,
            device,
            server,
            ns,
        })
    }
}

/// The parts of a node that its lab provides.
pub(super) struct Place {
    pub lab: LabId,
    pub tools: Tools,
    pub cgroup: OwnedDir,
    pub state: OwnedDir,
}

/// The place of a pod: its namespace and addresses, and the node's device towards it.
struct Seat {
    ns: Arc<Namespace>,
    addresses: Addresses,
    device: Option<String>,
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

impl Pod {
    /// Returns the spec that it was made from.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its addresses; with hostNetwork those of its node.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its namespace; with hostNetwork that of its node.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// The node's device towards it; none with hostNetwork.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}
