//! Random policies: rows of the pods, classes of addresses, verdicts and port sets.

use std::net::IpAddr;

use proxy_common::net::{Address as _, IfIndex, LocalPod, Protocol, Veth};
use proxy_common::policy::{PodRows, PortRange, PortSet, ROOTS, Row, VerdictKey, Word};
use proxy_common::service::Config;
use proxy_ebpf::fake::Memory;

use crate::family::{Dotted, Net};
use crate::generate::Dice;

/// The most pods, sets, chunks and nodes of the directory that are used; the rest of the maps stays
/// empty.
pub const PODS: u32 = 4;
/// Sets of ports.
pub const SETS: u32 = 6;
/// Chunks of the matrix.
pub const CHUNKS: u32 = 6;
/// Nodes of the directory.
pub const NODES: u32 = ROOTS + 64;
const CLASSES: u32 = 5;

/// Gives pods rows and addresses classes.
pub fn furnish<F: Net>(dice: &mut Dice, memory: &mut Memory<F>, addresses: &[Dotted]) {
    memory.config.flags &= !(Config::POLICY | Config::DENY_UNKNOWN | Config::REJECT_DENIED);
    if dice.chance(60) {
        memory.config.flags |= Config::POLICY;
        memory.config.flags |= if dice.chance(50) {
            Config::DENY_UNKNOWN
        } else {
            0
        };
        memory.config.flags |= if dice.chance(50) {
            Config::REJECT_DENIED
        } else {
            0
        };
    }
    let row = |dice: &mut Dice| {
        dice.pick(&[
            Row::OPEN,
            Row::OPEN,
            Row::CLOSED,
            Row(2),
            Row(3),
            Row(Row::HASHED | 1),
        ])
    };
    memory.rows = (1..PODS)
        .map(|pod_id| {
            (
                pod_id,
                PodRows {
                    ingress: row(dice),
                    egress: row(dice),
                },
            )
        })
        .collect();
    let pods: Vec<_> = memory.pods.keys().copied().collect();
    memory.veths.clear();
    for (number, addr) in pods.into_iter().enumerate() {
        let pod_id = 1 + number as u32 % (PODS - 1);
        let device = memory.pods[&addr].device;
        memory.pods.insert(addr, LocalPod { device, pod_id });
        if device != IfIndex::NONE && dice.chance(90) {
            let flags = if dice.chance(10) { Veth::ANY_SOURCE } else { 0 };
            memory.veths.insert(device, Veth { pod_id, flags });
        }
    }
    sets(dice, memory);
    classes(dice, memory, addresses);
    memory.matrix.clear();
    memory.verdicts.clear();
    for class in 0..CLASSES {
        let set = |dice: &mut Dice| dice.below(SETS as usize) as u16;
        for chunk in 2..CHUNKS {
            memory.matrix.insert((chunk, class), set(dice));
        }
        if dice.chance(70) {
            memory.verdicts.insert(
                VerdictKey {
                    row: Row(Row::HASHED | 1),
                    class,
                },
                set(dice).into(),
            );
        }
    }
}

fn sets<F: Net>(dice: &mut Dice, memory: &mut Memory<F>) {
    let range = |protocol, first, last| PortRange {
        first,
        last,
        protocol,
        zero: [0; 3],
    };
    let whole = dice.pick(&[PortSet::TCP, PortSet::UDP, PortSet::SCTP | PortSet::UDP]);
    let mut several = PortSet {
        len: 3,
        ..PortSet::default()
    };
    several.ranges[0] = range(Protocol::TCP, 0, 79);
    several.ranges[1] = range(Protocol::TCP, 8080, 65535);
    several.ranges[2] = range(Protocol::UDP, 53, 8080);
    let mut chained = PortSet {
        len: PortSet::RANGES as u16,
        next: 3,
        ..PortSet::default()
    };
    chained.ranges.fill(range(Protocol::UDP, 9090, 9090));
    memory.port_sets = [
        PortSet::default(),
        PortSet {
            flags: PortSet::EVERYTHING,
            ..PortSet::default()
        },
        PortSet {
            flags: whole,
            ..PortSet::default()
        },
        several,
        chained,
        PortSet {
            len: 1,
            ranges: several.ranges,
            ..PortSet::default()
        },
    ]
    .into_iter()
    .enumerate()
    .map(|(number, set)| (number as u32, set))
    .collect();
}

fn classes<F: Net>(dice: &mut Dice, memory: &mut Memory<F>, addresses: &[Dotted]) {
    let class = |dice: &mut Dice| dice.below(CLASSES as usize) as u32;
    memory.exact.clear();
    memory.prefixes.clear();
    memory.directory.clear();
    let mut next = ROOTS;
    for dotted in addresses {
        let addr = F::at(*dotted);
        let bits = if F::V6 { 128 } else { 32 };
        if dice.chance(40) {
            memory
                .prefixes
                .insert((addr, bits - dice.below(12) as u32), class(dice));
        }
        let class = class(dice);
        let IpAddr::V4(v4) = addr.ip() else {
            if class != 0 {
                memory.exact.insert(addr, class);
            }
            continue;
        };
        let [a, b, c, d] = v4.octets();
        let mut at = (u32::from(a), b);
        for byte in [c, d] {
            if dice.chance(10) {
                break;
            }
            let node = memory
                .directory
                .get(&at)
                .and_then(|word| word.as_node())
                .unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
            memory.directory.insert(at, Word::node(node));
            at = (node, byte);
        }
        if memory
            .directory
            .get(&at)
            .is_none_or(|word| word.as_node().is_none())
        {
            memory.directory.insert(
                at,
                if dice.chance(10) {
                    Word::ELSEWHERE
                } else {
                    Word::class(class)
                },
            );
        }
    }
    assert!(next <= NODES, "{next} nodes");
}
