//! Owns the lab: clients, nodes and pods in network namespaces of one host, which are all gone when
//! the value is.

pub mod agent;
pub mod capture;
pub mod cluster;
pub mod container;
pub mod controlplane;
pub mod counters;
pub mod dns;
pub mod facts;
mod family;
pub mod haproxy;
pub mod hold;
pub mod host;
pub mod load;
pub mod netns;
pub mod node;
pub mod objects;
pub mod owned;
pub mod probe;
pub mod process;
pub mod sctp;
pub mod server;
pub mod topology;
pub mod wire;
mod xdp;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use self::host::{Host, OwnedDir, Tools};
use self::netns::Namespace;
use self::node::{Node, Place, Pod};
use self::owned::LabId;
use self::topology::Topology;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    tools: Tools,
    nodes: Vec<Node>,
    near: Namespace,
    far: Namespace,
    router: Namespace,
    lan: Namespace,
    /// Programs at the switch's ports.
    far_ends: Vec<OwnedFd>,
    directory: OwnedDir,
    _cgroup: OwnedDir,
}

impl Lab {
    /// Brings up what `topology` describes, after removing what labs of dead processes left behind.
    ///
    /// # Errors
    /// If this is not root, or anything cannot be made; what was made is removed again.
    pub fn start(topology: Topology, tools: Tools) -> Result<Self> {
        owned::clean_up_on_signals();
        let host = Host::prepare()?;
        owned::sweep(&host.cgroups, &host.bpffs)?;
        let id = LabId::fresh();
        let cgroup = OwnedDir::cgroup(host.cgroups.join(id.as_str()))?;
        let directory = OwnedDir::directory(std::env::temp_dir().join(id.as_str()))?;
        let topology = Arc::new(topology);
        let mut spaces = Spaces::create(&id, &topology)?;
        spaces.wire(&topology)?;
        let places = topology
            .nodes
            .iter()
            .map(|node| place(&id, &tools, &host, cgroup.path(), &node.name));
        let places = places.collect::<Result<Vec<Place>>>()?;
        let nodes = (1..).zip(places).zip(spaces.nodes.drain(..));
        let nodes = nodes
            .map(|((n, place), ns)| Node::new(topology.clone(), n, place, ns))
            .collect();
        let Spaces {
            lan,
            router,
            near,
            far,
            ..
        } = spaces;
        let mut lab = Self {
            id,
            tools,
            nodes,
            near,
            far,
            router,
            lan,
            far_ends: Vec::new(),
            directory,
            _cgroup: cgroup,
        };
        lab.start_pods(&topology)?;
        Ok(lab)
    }

    /// The lab's name, the beginning of all its namespaces' names.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The binaries that play in it.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// A directory for logs and manifests that goes with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The client on the nodes' LAN, [`topology::NEAR_CLIENT`].
    pub fn near_client(&self) -> &Namespace {
        &self.near
    }

    /// The client behind the router, [`topology::FAR_CLIENT`].
    pub fn far_client(&self) -> &Namespace {
        &self.far
    }

    /// The router between the LAN and the far client.
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The switch between the nodes, the near client and the router.
    pub fn lan(&self) -> &Namespace {
        &self.lan
    }

    /// Lets XDP in the nodes' devices send frames, as it can on cards: a frame that goes through a
    /// veth pair has its whole checksum, which XDP corrects, and the switch takes frames that were
    /// sent by XDP.
    ///
    /// # Errors
    /// If ethtool is missing or fails, or the kernel refuses.
    pub fn let_xdp_send(&mut self) -> Result<()> {
        let hosts = [&self.near, &self.far, &self.router]
            .into_iter()
            .chain(self.nodes.iter().map(Node::ns));
        hosts
            .chain(self.pods().map(|(_, pod)| pod.ns()))
            .try_for_each(|ns| ns.switch_checksum_offload_off("eth0"))?;
        self.router.switch_checksum_offload_off("eth1")?;
        for port in (0..2 + self.nodes.len()).map(wire::switch_port) {
            self.lan.switch_checksum_offload_off(&port)?;
            self.far_ends.push(xdp::pass_all(&self.lan, &port)?);
        }
        Ok(())
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("find node {name}"))
    }

    /// The node `name`, to add or remove pods.
    ///
    /// # Errors
    /// If there is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.name() == name)
            .with_context(|| format!("find node {name}"))
    }

    /// All pods with their nodes.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes
            .iter()
            .flat_map(|node| node.pods().iter().map(move |pod| (node, pod)))
    }

    /// The pod `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods()
            .map(|(_, pod)| pod)
            .find(|pod| pod.name() == name)
            .with_context(|| format!("find pod {name}"))
    }

    fn start_pods(&mut self, topology: &Topology) -> Result<()> {
        in_parallel(
            self.nodes.iter_mut().zip(&topology.nodes),
            |(node, spec)| node.add_pods(spec.pods.clone()),
        )
    }
}

fn place(id: &LabId, tools: &Tools, host: &Host, cgroup: &Path, node: &str) -> Result<Place> {
    let state = OwnedDir::to_be_made(host.bpffs.join(id.name(node)));
    let cgroup = OwnedDir::cgroup(cgroup.join(node))?;
    Ok(Place {
        lab: id.clone(),
        tools: tools.clone(),
        cgroup,
        state,
    })
}

/// The namespaces that are there before any pod is.
struct Spaces {
    lan: Namespace,
    router: Namespace,
    near: Namespace,
    far: Namespace,
    nodes: Vec<Namespace>,
}

impl Spaces {
    fn create(id: &LabId, topology: &Topology) -> Result<Self> {
        let fixed = ["lan", "router", "client", "far-client"];
        let names = fixed
            .into_iter()
            .chain(topology.nodes.iter().map(|node| node.name.as_str()));
        let names: Vec<String> = names.map(|name| id.name(name)).collect();
        let mut spaces = Namespace::create(&names)?.into_iter();
        let mut next = || spaces.next().context("find a namespace just made");
        Ok(Self {
            lan: next()?,
            router: next()?,
            near: next()?,
            far: next()?,
            nodes: spaces.collect(),
        })
    }

    /// Gives all of them their devices, addresses and routes; each pair of devices is made by one
    /// of its ends, first.
    fn wire(&self, topology: &Topology) -> Result<()> {
        let clients = [&self.near, &self.far];
        let all = [&self.lan, &self.router]
            .into_iter()
            .chain(clients)
            .chain(&self.nodes);
        all.clone()
            .try_for_each(|ns| ns.sysctls(wire::EVERYWHERE))?;
        clients
            .into_iter()
            .try_for_each(|ns| ns.sysctls(wire::CLIENT))?;
        [&self.router]
            .into_iter()
            .chain(&self.nodes)
            .try_for_each(|ns| ns.sysctls(wire::FORWARDING))?;
        self.nodes
            .iter()
            .try_for_each(|ns| ns.sysctls(&wire::rp_filter(topology.rp_filter)))?;
        let hosts = [&self.router, &self.near].map(Namespace::name);
        self.lan.ip(&wire::switch(
            topology,
            hosts,
            self.nodes.iter().map(Namespace::name),
        ))?;
        self.router.ip(&wire::router(topology, self.far.name()))?;
        self.near.ip(&wire::near_client())?;
        self.far.ip(&wire::far_client())?;
        in_parallel((1..).zip(&self.nodes), |(n, ns)| {
            ns.ip(&wire::node_script(topology, n))?;
            match topology.join {
                topology::Join::Routes => Ok(()),
                topology::Join::Vxlan => ns.bridge(&wire::forwarding_database(topology, n)),
            }
        })
    }
}

/// Does `work` for all items at once, and gives the first error.
fn in_parallel<T: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(move || work(item))).collect();
        let results = threads.into_iter().map(|t| {
            t.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        results.collect::<Result<Vec<()>>>().map(drop)
    })
}
