//! The loaded programs over real maps that hold what was placed, in a network namespace with the devices that the cases mean.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portway::contents::Contents;
use portway::dataplane::{FlowTable, Maps};
use portway::place::{Actual, Write, place, retire};
use proxy_common::event::Reason;
use proxy_common::net::{Address, IfIndex};
use proxy_ebpf::Action;

use crate::programs::{Hook, Loaded};
use crate::world::{DEVICE, FIRST_POD, PODS};

/// The programs with their maps.
pub struct Kernel {
    loaded: Loaded,
    maps: Maps,
    actual: Actual,
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
            ip(&format!("link add {name} index {index} type veth peer name {name}-peer index {}", index + 100))?;
            ip(&format!("link set {name} up"))?;
            ip(&format!("link set {name}-peer up"))?;
        }
        ip("route add default dev dev0 scope link")?;
        ip("-6 route add default dev dev0")?;
        let mut loaded = Loaded::new()?;
        let ebpf = &mut loaded.ebpf;
        let maps = Maps::open(|name| ebpf.take_map(name).with_context(|| format!("find the map {name}")))?;
        Ok(Self { loaded, maps, actual: Actual::default() })
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

    /// Forgets all flows.
    pub fn forget_flows(&mut self) -> Result<()> {
        let Maps { v4, v6, .. } = &mut self.maps;
        empty(&mut v4.flows)?;
        empty(&mut v4.opening)?;
        empty(&mut v6.flows)?;
        empty(&mut v6.opening)
    }

    /// Runs a packet through the program of a hook.
    pub fn run(&mut self, hook: Hook, device: IfIndex, bytes: &[u8]) -> Result<(Result<Action, Reason>, Vec<u8>)> {
        // No refusal is left out for having been the thousandth of its second.
        self.loaded.set_refusals(0, 0)?;
        self.loaded.tc(hook, device, bytes)
    }
}

fn empty<A: Address>(table: &mut impl FlowTable<A>) -> Result<()> {
    table.all()?.iter().try_for_each(|(key, _)| table.delete(key))
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("start ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
