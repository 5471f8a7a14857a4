//! The loaded programs over real maps, in a network namespace with the devices of the cases.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use portway::contents::Contents;
use portway::dataplane::{FlowTable, Maps, NodeVerdicts, PolicyMaps};
use portway::place::policies::PolicyWrite;
use portway::place::{Actual, Entry, Key, Write, place, retire};
use proxy_common::flow::FlowKey;
use proxy_common::net::{Addr4, Addr6, Address, IfIndex, LocalPod, Port, Protocol};
use proxy_common::reason::Reason;
use proxy_common::service::Config;
use proxy_ebpf::Action;

use crate::cgroup::Own;
use crate::programs::{Hook, Loaded};
use crate::sockets;
use crate::world::{DEVICE, FIRST_POD, PODS};

/// The programs with their maps.
pub struct Kernel {
    loaded: Loaded,
    maps: Maps,
    policies: PolicyMaps,
    verdicts: NodeVerdicts,
    actual: Actual,
    _cgroup: Own,
}

impl Kernel {
    /// Makes the devices in this thread's namespace and loads the programs.
    pub fn new() -> Result<Self> {
        for family in ["ipv4", "ipv6"] {
            let switch = format!("/proc/sys/net/{family}/conf/all/forwarding");
            fs::write(&switch, "1").with_context(|| format!("write {switch}"))?;
        }
        let pods = (0..PODS).map(|number| (format!("pod{number}"), FIRST_POD + number));
        for (name, index) in pods.chain([("dev0".to_owned(), DEVICE.0)]) {
            ip(&format!(
                "link add {name} index {index} type veth peer name {name}-peer index {}",
                index + 100
            ))?;
            ip(&format!("link set {name} up"))?;
            ip(&format!("link set {name}-peer up"))?;
        }
        ip("route add default dev dev0 scope link")?;
        ip("-6 route add default dev dev0")?;
        let mut loaded = Loaded::new()?;
        let verdicts = NodeVerdicts::open(|name| again(&loaded.ebpf, name))?;
        let ebpf = &mut loaded.ebpf;
        let maps = Maps::open(|name| {
            ebpf.take_map(name)
                .with_context(|| format!("find the map {name}"))
        })?;
        let policies = PolicyMaps::open(|name| {
            ebpf.take_map(name)
                .with_context(|| format!("find the map {name}"))
        })?;
        let cgroup = sockets::attach(ebpf)?;
        Ok(Self {
            loaded,
            maps,
            policies,
            verdicts,
            actual: Actual::default(),
            _cgroup: cgroup,
        })
    }

    /// The maps of Services and flows.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Returns the policy tables that `portway explain` reads.
    pub fn verdicts(&self) -> &NodeVerdicts {
        &self.verdicts
    }

    /// Brings the maps to these contents, as the agent does, and reads them back.
    pub fn place(&mut self, contents: &Contents) -> Result<()> {
        self.apply(place(contents, &self.actual))?;
        self.apply(retire(&self.actual))?;
        let found = self.maps.read().context("read the maps back")?.contents();
        ensure!(found == *contents, "the maps do not hold what was compiled");
        Ok(())
    }

    fn apply(&mut self, writes: Vec<Write>) -> Result<()> {
        for write in writes {
            self.maps.write(&write)?;
            self.actual.apply(write);
        }
        Ok(())
    }

    /// Makes one write.
    pub fn write(&mut self, write: Write) -> Result<()> {
        self.apply(vec![write])
    }

    /// Makes one write to the policy tables.
    pub fn write_policy(&mut self, write: &PolicyWrite) -> Result<()> {
        self.policies.write(write)
    }

    /// Replaces the pods of this node.
    pub fn put_pods(&mut self, pods: BTreeMap<IpAddr, LocalPod>) -> Result<()> {
        let gone: Vec<_> = self
            .actual
            .pods()
            .keys()
            .filter(|addr| !pods.contains_key(addr))
            .copied()
            .collect();
        let gone = gone.into_iter().map(|addr| Write::Delete(Key::Pod(addr)));
        let writes = gone
            .chain(
                pods.into_iter()
                    .map(|(addr, pod)| Write::Put(Entry::Pod(addr, pod))),
            )
            .collect();
        self.apply(writes)
    }

    /// Removes all pods and policies at the end of a case.
    pub fn forget_policies(&mut self) -> Result<()> {
        self.put_pods(BTreeMap::new())?;
        self.write(Write::Put(Entry::Config(Config::default())))
    }

    /// Forgets the flow of a packet.
    pub fn forget_flows_of(
        &mut self,
        from: IpAddr,
        to: IpAddr,
        protocol: Protocol,
        sport: u16,
        dport: u16,
    ) -> Result<()> {
        let Maps { v4, v6, .. } = &mut self.maps;
        let (sport, dport) = (Port::new(sport), Port::new(dport));
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let key = FlowKey::new(protocol, Addr4::from(from), sport, Addr4::from(to), dport);
                [key, key.reversed()]
                    .iter()
                    .try_for_each(|key| v4.opening.delete(key))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let key = FlowKey::new(protocol, Addr6::from(from), sport, Addr6::from(to), dport);
                [key, key.reversed()]
                    .iter()
                    .try_for_each(|key| v6.opening.delete(key))
            }
            _ => Ok(()),
        }
    }

    /// Forgets all flows.
    pub fn forget_flows(&mut self) -> Result<()> {
        let Maps { v4, v6, .. } = &mut self.maps;
        empty(&mut v4.flows)?;
        empty(&mut v4.opening)?;
        empty(&mut v6.flows)?;
        empty(&mut v6.opening)
    }

    /// Runs a packet through the program of a hook.
    pub fn run(
        &mut self,
        hook: Hook,
        device: IfIndex,
        bytes: &[u8],
    ) -> Result<(Result<Action, Reason>, Vec<u8>)> {
        // Resets the rate limit, so that no refusal is suppressed.
        self.loaded.set_refusals(0, 0)?;
        self.loaded.tc(hook, device, bytes)
    }
}

fn empty<A: Address>(table: &mut impl FlowTable<A>) -> Result<()> {
    table
        .all()?
        .iter()
        .try_for_each(|(key, _)| table.delete(key))
}

/// Opens a map of the object a second time.
fn again(ebpf: &Ebpf, name: &str) -> Result<Map> {
    let map = ebpf
        .map(name)
        .with_context(|| format!("find the map {name}"))?;
    let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) = map else {
        bail!("{name} is an unexpected kind of map")
    };
    let fd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .with_context(|| format!("open {name} again"))?;
    Ok(Map::from_map_data(MapData::from_fd(fd)?)?)
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("start ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
