//! Many flows at once, in maps of the size that the agent uses: masquerade ports hold, and a flood evicts none that is established.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use proxy_common::net::{Protocol, V4};
use proxy_ebpf::Action;

use crate::family::{Dotted, end};
use crate::generate::{self, NODE, NODE_PORT, Remote};
use crate::maps::Maps;
use crate::namespace::{Network, in_namespace};
use crate::programs::{Hook, Loaded};
use crate::segment::{SYN, Segment};

/// V12: so many concurrent flows to one remote backend.
const CONCURRENT: u16 = 25_000;
/// V18: so many idle ones survive a flood.
const IDLE: u16 = 1_000;
/// At two entries a flow, more than the table of half-open flows takes.
const FLOOD: u32 = 36_000;

#[test]
fn v12_25000_flows_to_one_backend_each_get_a_port_of_their_own() -> Result<()> {
    in_namespace(|network| {
        let loaded = node(network)?;
        let mut ports = BTreeSet::new();
        for port in 1..=CONCURRENT {
            ensure!(ports.insert(connect(&loaded, network, port)?.src), "a masquerade port twice, at flow {port}");
        }
        ensure!(ports.iter().all(|end| (1024..30_000).contains(&end.port())), "a port outside of the range");
        Ok(())
    })
}

#[test]
fn v18_a_flood_of_half_open_flows_evicts_no_established_one() -> Result<()> {
    in_namespace(|network| {
        let loaded = node(network)?;
        let idle = (1..=IDLE).map(|port| connect(&loaded, network, port)).collect::<Result<Vec<_>>>()?;
        for number in 0..FLOOD {
            let [_, a, b, c] = number.to_be_bytes();
            // Whether the flood's own packets get a port does not matter.
            let (_any, _) = loaded.tc(Hook::FromDevice, network.device(0), &syn([203, a, b, c], 7).bytes())?;
        }
        for there in idle {
            let (said, _) = loaded.tc(Hook::FromDevice, network.device(0), &there.answer().bytes())?;
            ensure!(said == Ok(Action::Neighbour(network.device(0))), "the reply to {} came out {said:?}", there.src);
        }
        Ok(())
    })
}

/// The node with a nodePort that leads to a pod of another node, and the agent's own settings.
fn node(network: &Network) -> Result<Loaded> {
    let mut loaded = Loaded::of_full_size()?;
    let mut memory = generate::node_port_to::<V4>(network, &[Remote::Pod]);
    (memory.config.masquerade_first, memory.config.masquerade_len) = (1024, 28_976);
    V4::fill(&mut loaded, &memory)?;
    Ok(loaded)
}

fn syn(from: Dotted, port: u16) -> Segment {
    Segment::new(Protocol::TCP, end::<V4>((from, port)), end::<V4>((NODE, NODE_PORT))).flags(SYN)
}

/// A connection that the backend has answered; its packet as the backend saw it.
fn connect(loaded: &Loaded, network: &Network, port: u16) -> Result<Segment> {
    let device = network.device(0);
    let (said, bytes) = loaded.tc(Hook::FromDevice, device, &syn(generate::CLIENT, port).bytes())?;
    ensure!(said == Ok(Action::Neighbour(device)), "flow {port} came out {said:?}");
    let there = Segment::read(&bytes).map_err(anyhow::Error::msg)?;
    let (said, _) = loaded.tc(Hook::FromDevice, device, &there.answer().bytes())?;
    ensure!(said == Ok(Action::Neighbour(device)), "the answer to flow {port} came out {said:?}");
    Ok(there)
}
