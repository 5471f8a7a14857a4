//! Many flows at once, in maps of the agent's size: masquerade ports stay unique, and a flood
//! evicts no established flow.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use proxy_common::net::{Protocol, V4};
use proxy_common::policy::{PodRows, PortSet, Row, Word};
use proxy_common::reason::Reason;
use proxy_common::service::Config;
use proxy_ebpf::Action;

use crate::family::{Dotted, end};
use crate::generate::{self, NODE, NODE_PORT, Remote};
use crate::maps::Maps;
use crate::namespace::{Network, in_namespace};
use crate::programs::{Hook, Loaded};
use crate::segment::{SYN, Segment};

/// V12: number of concurrent flows to one remote backend.
const CONCURRENT: u16 = 25_000;
/// V18: number of idle flows that survive a flood.
const IDLE: u16 = 1_000;
/// Number of flows of a flood; with two entries each, more than the half-open table takes.
const FLOOD: u32 = 36_000;

#[test]
fn v12_25000_flows_to_one_backend_each_get_a_port_of_their_own() -> Result<()> {
    in_namespace(|network| {
        let loaded = node(network)?;
        let mut ports = BTreeSet::new();
        for port in 1..=CONCURRENT {
            ensure!(
                ports.insert(connect(&loaded, network, port)?.src),
                "a masquerade port twice, at flow {port}"
            );
        }
        ensure!(
            ports.iter().all(|end| (1024..30_000).contains(&end.port())),
            "a port outside of the range"
        );
        Ok(())
    })
}

#[test]
fn v18_a_flood_of_half_open_flows_evicts_no_established_one() -> Result<()> {
    in_namespace(|network| {
        let loaded = node(network)?;
        let idle = (1..=IDLE)
            .map(|port| connect(&loaded, network, port))
            .collect::<Result<Vec<_>>>()?;
        for number in 0..FLOOD {
            let [_, a, b, c] = number.to_be_bytes();
            // The flood's own packets may find no port.
            let (_any, _) = loaded.tc(
                Hook::FromDevice,
                network.device(0),
                &syn([203, a, b, c], 7).bytes(),
            )?;
        }
        for there in idle {
            let (said, _) =
                loaded.tc(Hook::FromDevice, network.device(0), &there.answer().bytes())?;
            ensure!(
                said == Ok(Action::Neighbour(network.device(0))),
                "the reply to {} came out {said:?}",
                there.src
            );
        }
        Ok(())
    })
}

/// V18, P25: the flow of a denied SYN is removed after the verdict: a flood of them evicts no flow,
/// not even a half-open one.
#[test]
fn v18_a_flood_of_denied_syns_evicts_no_flow() -> Result<()> {
    in_namespace(|network| {
        let mut loaded = Loaded::of_full_size()?;
        let mut memory = generate::node_port_to::<V4>(network, &[Remote::Here]);
        memory.config.flags |= Config::POLICY;
        memory.rows.insert(
            1,
            PodRows {
                ingress: Row(2),
                egress: Row::OPEN,
            },
        );
        let [a, b, ..] = generate::CLIENT;
        memory.directory.insert((a.into(), b), Word::class(1));
        memory.matrix.insert((2, 1), PortSet::ALL as u16);
        V4::fill(&mut loaded, &memory)?;
        let (outside, pod) = (network.device(0), network.device(1));
        let there = (1..=2 * IDLE).map(|port| {
            let (said, bytes) = loaded.tc(
                Hook::FromDevice,
                outside,
                &syn(generate::CLIENT, port).bytes(),
            )?;
            ensure!(
                said == Ok(Action::Pod(pod)),
                "flow {port} came out {said:?}"
            );
            Segment::read(&bytes).map_err(anyhow::Error::msg)
        });
        let there = there.collect::<Result<Vec<_>>>()?;
        let answered = |there: &Segment| -> Result<bool> {
            let (said, _) = loaded.tc(Hook::FromPod, pod, &there.answer().bytes())?;
            Ok(said == Ok(Action::Neighbour(outside)))
        };
        for there in &there[..IDLE.into()] {
            ensure!(
                answered(there)?,
                "the answer to {} is not sent on",
                there.src
            );
        }
        for number in 0..FLOOD {
            let [_, a, b, c] = number.to_be_bytes();
            let (said, _) =
                loaded.tc(Hook::FromDevice, outside, &syn([203, a, b, c], 7).bytes())?;
            ensure!(
                said == Err(Reason::DeniedIngress),
                "packet {number} of the flood came out {said:?}"
            );
        }
        let mut lost = [0; 2];
        for (number, there) in there.iter().enumerate() {
            lost[usize::from(number >= IDLE.into())] += u16::from(!answered(there)?);
        }
        println!(
            "{FLOOD} denied: {} of {IDLE} established and {} of {IDLE} half-open flows are lost",
            lost[0], lost[1]
        );
        ensure!(lost == [0, 0], "{lost:?} are lost");
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
    Segment::new(
        Protocol::TCP,
        end::<V4>((from, port)),
        end::<V4>((NODE, NODE_PORT)),
    )
    .flags(SYN)
}

/// Makes an established connection; returns its packet as the backend saw it.
fn connect(loaded: &Loaded, network: &Network, port: u16) -> Result<Segment> {
    let device = network.device(0);
    let (said, bytes) = loaded.tc(
        Hook::FromDevice,
        device,
        &syn(generate::CLIENT, port).bytes(),
    )?;
    ensure!(
        said == Ok(Action::Neighbour(device)),
        "flow {port} came out {said:?}"
    );
    let there = Segment::read(&bytes).map_err(anyhow::Error::msg)?;
    let (said, _) = loaded.tc(Hook::FromDevice, device, &there.answer().bytes())?;
    ensure!(
        said == Ok(Action::Neighbour(device)),
        "the answer to flow {port} came out {said:?}"
    );
    Ok(there)
}
