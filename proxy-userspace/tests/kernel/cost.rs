//! Costs of packets of an established connection, compared with its first packet and with another
//! version's programs: `PORTWAY_OTHER_OBJECT` is the path of their object.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use proxy_common::net::{AddressFlags, IfIndex, Protocol, V4, V6};
use proxy_common::service::ServiceFlags;
use proxy_ebpf::Action;

use crate::family::{Net, end};
use crate::generate::{self, CLIENT, NODE, NODE_PORT, NODE2, POD_A, Remote};
use crate::is_emulated;
use crate::maps::Maps;
use crate::namespace::{Network, in_namespace};
use crate::programs::{Hook, Loaded};
use crate::segment::{ACK, SYN, Segment};

/// Runs of each packet, in turns.
const ROUNDS: usize = 4001;
/// Repetitions in an emulated machine.
const FEW: usize = 101;
/// Largest accepted ratio to the median of the other version: runs of one program differ by more.
const NOISE: f64 = 1.1;

/// A packet at a hook.
struct Hop {
    name: String,
    hook: Hook,
    device: IfIndex,
    bytes: Vec<u8>,
}

#[test]
fn packets_of_an_established_connection_cost_less_than_its_first() -> Result<()> {
    let other = std::env::var_os("PORTWAY_OTHER_OBJECT")
        .map(fs::read)
        .transpose()
        .context("read the other object")?;
    in_namespace(move |network| {
        for remote in [Remote::Here, Remote::Pod] {
            compare::<V4>(network, remote, other.as_deref())?;
            compare::<V6>(network, remote, other.as_deref())?;
        }
        direct::<V4>(network)?;
        direct::<V6>(network)?;
        let load = fs::read_to_string("/proc/loadavg").context("read the load")?;
        println!("load {}", load.trim_end());
        Ok(())
    })
}

fn compare<F: Maps>(network: &Network, remote: Remote, other: Option<&[u8]>) -> Result<()> {
    let mut loaded = vec![Loaded::of_full_size()?];
    if let Some(other) = other {
        loaded.push(Loaded::other(other).context("load the other object")?);
    }
    let mut hops = Vec::new();
    for loaded in &mut loaded {
        let mut memory = generate::node_port_to::<F>(network, &[remote]);
        (memory.config.masquerade_first, memory.config.masquerade_len) = (1024, 28_976);
        F::fill(loaded, &memory)?;
        hops.push(connection::<F>(loaded, network, remote)?);
    }
    let first = first::<F>();
    let mut times = vec![vec![Vec::new(); hops[0].len() + 1]; loaded.len()];
    for round in 0..if is_emulated() { FEW } else { ROUNDS } {
        for ((loaded, hops), times) in loaded.iter().zip(&hops).zip(&mut times) {
            for (hop, times) in hops.iter().zip(times.iter_mut()) {
                times.push(loaded.time_once(hop.hook, hop.device, &hop.bytes)?);
            }
            // A new client each time.
            let syn = first
                .clone()
                .from(end::<F>((CLIENT, 50_000 + (round % 10_000) as u16)));
            times[hops.len()].push(loaded.time_once(
                Hook::FromDevice,
                network.device(0),
                &syn.bytes(),
            )?);
        }
    }
    let medians: Vec<Vec<u32>> = times
        .into_iter()
        .map(|all| all.into_iter().map(median).collect())
        .collect();
    let opening = medians[0][hops[0].len()];
    for (index, hop) in hops[0].iter().enumerate() {
        let ours = medians[0][index];
        println!("{}: {ours} ns, its first packet {opening} ns", hop.name);
        ensure!(
            is_emulated() || ours < opening,
            "{} takes {ours} ns, and the first packet {opening}",
            hop.name
        );
        if let Some(others) = medians.get(1) {
            let ratio = f64::from(ours) / f64::from(others[index].max(1));
            println!(
                "  {} ns by the other object: {ratio:.2} times",
                others[index]
            );
            ensure!(
                ratio <= NOISE,
                "{}: {ours} ns, {} by the other object",
                hop.name,
                others[index]
            );
        }
    }
    Ok(())
}

/// Costs of encapsulating and decapsulating packets (direct server return): no more than the first
/// packet.
fn direct<F: Maps>(network: &Network) -> Result<()> {
    let (outside, pod) = (network.device(0), network.device(1));
    let family = if F::V6 { "IPv6" } else { "IPv4" };
    for (remote, name) in [
        (Remote::Pod, "put into another"),
        (Remote::Here, "taken out of another"),
    ] {
        let loaded = &mut Loaded::of_full_size()?;
        let mut memory = generate::node_port_to::<F>(network, &[remote]);
        memory
            .services
            .values_mut()
            .for_each(|service| service.flags |= ServiceFlags::DSR);
        memory
            .addresses
            .insert(F::at(NODE2), AddressFlags(AddressFlags::NODE));
        F::fill(loaded, &memory)?;
        let (to, way) = match remote {
            Remote::Pod => (NODE, Action::Neighbour(outside)),
            Remote::Here => (NODE2, Action::Pod(pod)),
        };
        let sent = |client: u16, flags: u8| {
            let packet = Segment::new(
                Protocol::TCP,
                end::<F>((CLIENT, client)),
                end::<F>((to, NODE_PORT)),
            )
            .flags(flags);
            match remote {
                Remote::Pod => packet.bytes(),
                Remote::Here => generate::encapsulated_for::<F>((POD_A, 8080), &packet.bytes()),
            }
        };
        for flags in [SYN, ACK] {
            let (said, _) = loaded.tc(Hook::FromDevice, outside, &sent(40000, flags))?;
            ensure!(said == Ok(way), "it came out {said:?}");
        }
        let (mut first, mut next) = (Vec::new(), Vec::new());
        for round in 0..if is_emulated() { FEW } else { ROUNDS } {
            next.push(loaded.time_once(Hook::FromDevice, outside, &sent(40000, ACK))?);
            first.push(loaded.time_once(
                Hook::FromDevice,
                outside,
                &sent(50_000 + (round % 10_000) as u16, SYN),
            )?);
        }
        let (first, next) = (median(first), median(next));
        println!("{family}, {name}: {next} ns, its first packet {first} ns");
        ensure!(
            is_emulated() || next < first,
            "{name} takes {next} ns, and the first packet {first}"
        );
    }
    Ok(())
}

fn median(mut times: Vec<u32>) -> u32 {
    times.sort_unstable();
    times[times.len() / 2]
}

fn first<F: Net>() -> Segment {
    Segment::new(
        Protocol::TCP,
        end::<F>((CLIENT, 40000)),
        end::<F>((NODE, NODE_PORT)),
    )
    .flags(SYN)
}

/// Opens a connection by a nodePort; the data packets of both directions, where they meet the
/// programs.
fn connection<F: Net>(loaded: &Loaded, network: &Network, remote: Remote) -> Result<Vec<Hop>> {
    let (outside, pod) = (network.device(0), network.device(1));
    let (there, back, name) = match remote {
        Remote::Here => (Action::Pod(pod), (Hook::FromPod, pod), "a pod of this node"),
        Remote::Pod => (
            Action::Neighbour(outside),
            (Hook::FromDevice, outside),
            "a pod of another",
        ),
    };
    let syn = first::<F>();
    let (said, bytes) = loaded.tc(Hook::FromDevice, outside, &syn.bytes())?;
    ensure!(said == Ok(there), "the first packet came out {said:?}");
    let answer = Segment::read(&bytes).map_err(anyhow::Error::msg)?.answer();
    let (said, _) = loaded.tc(back.0, back.1, &answer.bytes())?;
    ensure!(
        said == Ok(Action::Neighbour(outside)),
        "its answer came out {said:?}"
    );
    let family = if F::V6 { "IPv6" } else { "IPv4" };
    Ok(vec![
        Hop {
            name: format!("{family}, to {name}"),
            hook: Hook::FromDevice,
            device: outside,
            bytes: syn.flags(ACK).bytes(),
        },
        Hop {
            name: format!("{family}, from {name}"),
            hook: back.0,
            device: back.1,
            bytes: answer.flags(ACK).bytes(),
        },
    ])
}
