//! Nodes, packets and accidents that nobody thought of, from a seed.

use std::env;
use std::net::IpAddr;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use proxy_common::flow::FlowKey;
use proxy_common::net::{
    Address as _, AddressFlags, Device, IfIndex, LocalPod, Port, Protocol, RangeKind, V4, V6,
};
use proxy_common::service::{
    Backend, BackendFlags, BackendKey, Config, Service, ServiceFlags, ServiceKey, SourceKey,
};
use proxy_ebpf::Table;
use proxy_ebpf::fake::Memory;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::family::{Dotted, End, LOOPBACK, Net, end};
use crate::namespace::Network;
use crate::programs::{CAPACITY, Hook};
use crate::segment::{ACK, FIN, RST, SYN, Segment};

/// A client outside, the only one with a known MAC address on the first device.
pub const CLIENT: Dotted = [198, 51, 100, 7];
/// The node's addresses: nodePorts are served on the first.
pub const NODE: Dotted = [192, 0, 2, 1];
pub const NODE_B: Dotted = [192, 0, 2, 3];
/// Another node.
pub const NODE2: Dotted = [192, 0, 2, 2];
/// Pods of this node.
pub const POD_A: Dotted = [10, 244, 1, 10];
pub const POD_B: Dotted = [10, 244, 1, 11];
/// A pod of another node.
pub const REMOTE: Dotted = [10, 244, 2, 10];
/// Stands for every address that nodePorts are served on.
const NODE_PORTS: Dotted = [0; 4];
const VIP: Dotted = [10, 96, 0, 10];
const VIP_B: Dotted = [10, 96, 0, 11];
/// An address next to them that no Service has.
const NOBODY: Dotted = [10, 96, 0, 9];
const EXTERNAL: Dotted = [203, 0, 113, 200];

const CLIENTS: [Dotted; 5] = [
    CLIENT,
    [198, 51, 100, 8],
    [203, 0, 113, 5],
    [203, 0, 113, 6],
    [192, 0, 2, 9],
];
const PODS: [Dotted; 3] = [POD_A, POD_B, [10, 244, 1, 12]];
const BACKENDS: [Dotted; 11] = [
    POD_A,
    POD_B,
    PODS[2],
    NODE,
    NODE2,
    REMOTE,
    [10, 244, 2, 11],
    [10, 244, 2, 12],
    [10, 244, 3, 10],
    [10, 244, 3, 11],
    [198, 51, 100, 8],
];
const FRONTENDS: [End; 6] = [
    (NODE_PORTS, NODE_PORT),
    (NODE_PORTS, 30053),
    (VIP, 80),
    (VIP, 53),
    (VIP_B, 80),
    (EXTERNAL, 443),
];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// A nodePort.
pub const NODE_PORT: u16 = 30080;
/// First port of the masquerade range.
pub const MASQUERADE_FIRST: u16 = 2000;
/// The longest payload: longer than any device's MTU.
const LONG: usize = 1700;
/// Bytes of the link-layer header.
const LINK: usize = 14;
/// Jiffies in a second, for the programs: more than any kernel has, so that nothing grows old while
/// a test runs.
const HZ: u32 = 10_000;

/// The source of all that is random here.
pub struct Dice(StdRng);

impl Dice {
    /// The seed that the environment gives, else the time.
    pub fn seed() -> Result<u64> {
        match env::var("PORTWAY_TEST_SEED") {
            Ok(seed) => seed.parse().context("read the seed in PORTWAY_TEST_SEED"),
            Err(_) => Ok(SystemTime::UNIX_EPOCH
                .elapsed()
                .context("tell the time")?
                .as_nanos() as u64),
        }
    }
    /// The dice that this seed makes.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }
    /// Returns true in `percent` of a hundred calls.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn number(&mut self) -> u64 {
        self.0.random()
    }
}

/// The place of the backends of [`node_port_to`].
#[derive(Clone, Copy)]
pub enum Remote {
    /// A pod of another node.
    Pod,
    /// A pod of this node, behind the second device; its slot is 1.
    Here,
}

/// A node with nothing but a nodePort.
pub fn node_port_to<F: Net>(network: &Network, backends: &[Remote]) -> Memory<F> {
    let mut memory = Memory::<F>::default();
    network.tell_routes(&mut memory);
    memory.capacity = CAPACITY as usize;
    memory.config = Config {
        hz: HZ,
        masquerade_first: MASQUERADE_FIRST,
        masquerade_len: 1,
        ..memory.config
    };
    memory.addresses.insert(
        F::at(NODE),
        AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS),
    );
    memory
        .devices
        .insert(network.device(0), device(NODE, 1500, 0));
    memory.pods.insert(
        F::at(POD_A),
        LocalPod {
            device: network.device(1),
            pod_id: 1,
        },
    );
    let addr = |backend: &Remote| match backend {
        Remote::Pod => REMOTE,
        Remote::Here => POD_A,
    };
    let backends: Vec<_> = backends
        .iter()
        .map(|to| backend::<F>(addr(to), 8080, BackendFlags::POD))
        .collect();
    let keys = PROTOCOLS.map(|protocol| {
        (
            frontend::<F>((NODE_PORTS, NODE_PORT), protocol),
            ServiceFlags::NODE_PORT,
        )
    });
    memory.serve(1, &keys, &backends);
    memory
}

/// Returns the key of a frontend; zeros stand for a nodePort, with the unspecified address in both
/// families.
fn frontend<F: Net>((dotted, port): End, protocol: Protocol) -> ServiceKey<F::Addr> {
    let addr = if dotted == NODE_PORTS {
        F::Addr::ZERO
    } else {
        F::at(dotted)
    };
    ServiceKey::new(addr, Port::new(port), protocol)
}

fn device(masquerade: Dotted, mtu: u32, flags: u32) -> Device {
    let (node6, node4) = (V6::at(NODE), V4::at(NODE));
    Device {
        masquerade6: V6::at(masquerade),
        masquerade4: V4::at(masquerade),
        node6,
        node4,
        mtu,
        flags,
    }
}

fn backend<F: Net>(dotted: Dotted, port: u16, flags: u16) -> Backend<F::Addr> {
    Backend {
        addr: F::at(dotted),
        port: Port::new(port),
        flags,
        generation: 0,
    }
}

/// A node as it may be: what addresses are, where pods are, what devices can, which Services there
/// are.
pub fn node<F: Net>(dice: &mut Dice, network: &Network) -> Memory<F> {
    let mut memory = Memory::<F>::default();
    network.tell_routes(&mut memory);
    memory.capacity = CAPACITY as usize;
    memory.config = Config {
        secret: dice.number(),
        hz: HZ,
        masquerade_len: 1,
        ..memory.config
    };
    furnish(dice, network, &mut memory);
    serve(dice, &mut memory);
    memory
}

/// Addresses, pods and devices anew.
pub fn furnish<F: Net>(dice: &mut Dice, network: &Network, memory: &mut Memory<F>) {
    memory.addresses.clear();
    memory.config.flags &= !Config::THROUGH_STACK;
    memory.config.flags |= if dice.chance(30) {
        Config::THROUGH_STACK
    } else {
        0
    };
    let served = if dice.chance(90) {
        AddressFlags::NODE_PORTS
    } else {
        0
    };
    memory.addresses.insert(
        F::at(NODE),
        AddressFlags(AddressFlags::HOST | AddressFlags::NODE | served),
    );
    memory
        .addresses
        .insert(F::at(NODE_B), AddressFlags(AddressFlags::HOST));
    memory
        .addresses
        .insert(F::at(NODE2), AddressFlags(AddressFlags::NODE));
    memory
        .addresses
        .insert(F::at(VIP), AddressFlags(AddressFlags::CLUSTER_IP));
    memory
        .addresses
        .insert(F::at(VIP_B), AddressFlags(AddressFlags::CLUSTER_IP));
    memory.pods.clear();
    for (number, dotted) in PODS.into_iter().enumerate() {
        let device = if dice.chance(90) {
            network.pod(number)
        } else {
            IfIndex::NONE
        };
        memory
            .pods
            .insert(F::at(dotted), LocalPod { device, pod_id: 0 });
    }
    memory.devices.clear();
    for (number, dotted) in [(0, NODE), (1, NODE_B)] {
        let known = if dice.chance(95) {
            Some(dice.pick(&[1500, 1500, 576]))
        } else {
            None
        };
        let flags = dice.pick(&[0, Device::XDP_TARGET]);
        let Some(mtu) = known else { continue };
        let mut device = device(dotted, mtu, flags);
        if dice.chance(5) {
            (device.masquerade4, device.masquerade6) = Default::default();
        }
        if dice.chance(5) {
            (device.node4, device.node6) = Default::default();
        }
        memory.devices.insert(network.device(number), device);
    }
    memory.config.gate = if dice.chance(50) {
        network.device(1)
    } else {
        IfIndex::NONE
    };
    memory.config.least_mtu = memory
        .devices
        .values()
        .map(|device| device.mtu)
        .min()
        .unwrap_or(0);
    let ends = [
        &CLIENTS[..],
        &PODS,
        &BACKENDS,
        &[NODE, NODE_B, VIP, EXTERNAL],
    ]
    .concat();
    crate::policies::furnish(dice, memory, &ends);
}

/// Source ranges of service ports, and the cluster's Service ranges, anew.
fn ranges<F: Net>(dice: &mut Dice, memory: &mut Memory<F>) {
    let whole = if F::V6 { 128 } else { 32 };
    memory.sources.clear();
    memory.ranges.clear();
    for service in 1..=FRONTENDS.len() as u32 {
        let (addr, short) = (F::at(dice.pick(&CLIENTS)), dice.pick(&[0, 1, 8, 20]));
        memory
            .sources
            .insert((SourceKey { service, addr }, whole - short));
    }
    if dice.chance(80) {
        memory.ranges.insert(
            (F::at(VIP), whole - dice.pick(&[4, 8, 16])),
            RangeKind::SERVICES,
        );
    }
    if dice.chance(50) {
        let kind = dice.pick(&[RangeKind::PODS, RangeKind::NONE, RangeKind::SERVICES]);
        memory.ranges.insert(
            (
                F::at(dice.pick(&CLIENTS)),
                whole - dice.pick(&[0, 1, 8, 20]),
            ),
            kind,
        );
    }
}

/// Services anew: frontends of all kinds, intervals of all shapes, now and then a slot that is
/// missing or another's.
pub fn serve<F: Net>(dice: &mut Dice, memory: &mut Memory<F>) {
    memory.services.clear();
    memory.backends.clear();
    ranges(dice, memory);
    for (number, (dotted, port)) in FRONTENDS.into_iter().enumerate() {
        let (id, generation) = (number as u32 + 1, dice.number() as u32);
        let slots = if dice.chance(15) {
            0
        } else {
            1 + dice.below(4)
        };
        for slot in 0..slots as u32 {
            let (addr, flags) = (
                dice.pick(&BACKENDS),
                dice.pick(&[BackendFlags::POD, BackendFlags::POD, 0]),
            );
            let port = dice.pick(&[8080, 9090]);
            let generation_there = if dice.chance(2) {
                generation.wrapping_add(1)
            } else {
                generation
            };
            if !dice.chance(2) {
                let value = Backend {
                    generation: generation_there,
                    ..backend::<F>(addr, port, flags)
                };
                memory
                    .backends
                    .insert(BackendKey { generation, slot }, value);
            }
        }
        let local_len = dice.below(slots + 1);
        let cluster_first = dice.below(slots + 1);
        let service = Service {
            flags: flags(dice, dotted),
            id,
            generation,
            affinity: dice.pick(&[0, 0, 0, 60]),
            local_len: local_len as u32,
            cluster_first: cluster_first as u32,
            cluster_len: (slots - cluster_first) as u32,
        };
        for protocol in PROTOCOLS {
            if dice.chance(90) {
                memory
                    .services
                    .insert(frontend::<F>((dotted, port), protocol), service);
            }
        }
    }
}

fn flags(dice: &mut Dice, dotted: Dotted) -> u32 {
    let kind = match dotted {
        NODE_PORTS => ServiceFlags::NODE_PORT,
        VIP | VIP_B => ServiceFlags::CLUSTER_IP,
        _ => dice.pick(&[ServiceFlags::EXTERNAL_IP, ServiceFlags::LOAD_BALANCER]),
    };
    let sources = if dice.chance(15) {
        ServiceFlags::SOURCE_RANGES
    } else {
        0
    };
    let dsr = if dice.chance(30) {
        ServiceFlags::DSR
    } else {
        0
    };
    kind | sources
        | dsr
        | dice.pick(&[
            0,
            0,
            0,
            ServiceFlags::LOCAL,
            ServiceFlags::LOCAL | ServiceFlags::LOCAL_DROP,
        ])
}

/// A packet at a hook.
#[derive(Debug)]
pub struct Shot {
    pub hook: Hook,
    pub device: IfIndex,
    pub bytes: Vec<u8>,
}

/// The next packet: of a flow that there is, the first one of a new connection, or any.
pub fn shot<F: Net>(dice: &mut Dice, network: &Network, memory: &Memory<F>) -> Shot {
    let (hook, segment) = match dice.below(10) {
        0..5 => continuing(dice, memory),
        5..9 => opening::<F>(dice),
        _ => (dice.pick(&Hook::ALL), anything::<F>(dice)),
    };
    let hook = if hook == Hook::FromDevice && dice.chance(40) {
        Hook::Xdp
    } else {
        hook
    };
    let number = dice.below(2);
    let device = match hook {
        Hook::FromPod | Hook::ToPod => network.pod(number),
        Hook::Xdp | Hook::FromDevice | Hook::ToDevice => network.device(number),
    };
    let segment = segment.ttl(dice.pick(&[64, 64, 64, 64, 64, 64, 64, 255, 2, 1, 0]));
    let payload = payload(dice);
    let mut bytes = bend(dice, segment.payload(&payload));
    if hook == Hook::FromDevice && dice.chance(15) {
        bytes = carried(dice, memory, &bytes);
    }
    bytes.resize(bytes.len().max(shortest(hook, &bytes)), 0);
    Shot {
        hook,
        device,
        bytes,
    }
}

/// Returns a packet encapsulated by another node, or by somebody who plays one; now and then in a
/// router's error about it to this node.
fn carried<F: Net>(dice: &mut Dice, memory: &Memory<F>, frame: &[u8]) -> Vec<u8> {
    let (link, packet) = frame.split_at(LINK);
    let mine = dice.chance(20);
    let src = if mine {
        NODE
    } else {
        dice.pick(&[NODE2, NODE2, NODE2, CLIENT])
    };
    let known: Vec<_> = memory
        .backends
        .values()
        .filter(|backend| mine || memory.pods.contains_key(&backend.addr))
        .collect();
    let (dst, port) = match dice.chance(90) && !known.is_empty() {
        true => dice.pick(
            &known
                .iter()
                .map(|backend| (backend.addr.ip(), backend.port.number()))
                .collect::<Vec<_>>(),
        ),
        false => (F::ip(dice.pick(&PODS)), dice.pick(&[8080, 9090])),
    };
    let carrier = [
        carrier(
            (F::ip(src), dst),
            if F::V6 { 41 } else { 4 },
            port,
            packet.len(),
        ),
        packet.to_vec(),
    ]
    .concat();
    if !dice.chance(20) {
        return [link, &carrier].concat();
    }
    let too_big = if F::V6 {
        [2, 0]
    } else {
        [3, dice.pick(&[4, 4, 1])]
    };
    let icmp = [
        &too_big[..],
        &[0, 0, 0, 0],
        &1280_u16.to_be_bytes(),
        &carrier,
    ]
    .concat();
    let header = carrier_of_error::<F>(dice, icmp.len());
    [link, &header, &icmp].concat()
}

fn carrier_of_error<F: Net>(dice: &mut Dice, len: usize) -> Vec<u8> {
    let ends = (
        F::ip(dice.pick(&[NODE2, CLIENT])),
        F::ip(dice.pick(&[NODE, NODE, NODE_B])),
    );
    carrier(ends, if F::V6 { 58 } else { 1 }, 0, len)
}

/// A frame in a packet of another node for a backend here.
pub fn carried_for<F: Net>((pod, port): End, frame: &[u8]) -> Vec<u8> {
    let (link, packet) = frame.split_at(LINK);
    let protocol = if F::V6 { 41 } else { 4 };
    [
        link,
        &carrier((F::ip(NODE2), F::ip(pod)), protocol, port, packet.len()),
        packet,
    ]
    .concat()
}

/// An IP header; the programs verify none of its checksums.
fn carrier((src, dst): (IpAddr, IpAddr), protocol: u8, number: u16, len: usize) -> Vec<u8> {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let [a, b] = number.to_be_bytes();
    let head = if src.is_ipv6() {
        [
            &[0x60, 0, a, b][..],
            &(len as u16).to_be_bytes(),
            &[protocol, 64],
        ]
        .concat()
    } else {
        [
            &[0x45, 0][..],
            &(len as u16 + 20).to_be_bytes(),
            &[a, b, 0x40, 0, 64, protocol, 0, 0],
        ]
        .concat()
    };
    [head, octets(src), octets(dst)].concat()
}

/// The shortest frame that a test run takes, of this EtherType: XDP wants the link-layer header, tc
/// something behind it, and on kernels of today the network header that is announced.
pub fn shortest(hook: Hook, bytes: &[u8]) -> usize {
    match (hook, &bytes[12..14]) {
        (Hook::Xdp, _) => LINK,
        (_, [0x08, 0x00]) => LINK + 20,
        (_, [0x86, 0xdd]) => LINK + 40,
        _ => LINK + 1,
    }
}

fn payload(dice: &mut Dice) -> Vec<u8> {
    let len = match dice.below(10) {
        0 => dice.below(LONG),
        1 => 0,
        _ => dice.below(40),
    };
    (0..len).map(|_| dice.number() as u8).collect()
}

fn continuing<F: Net>(dice: &mut Dice, memory: &Memory<F>) -> (Hook, Segment) {
    let Some((_, key)) = any_flow(dice, memory) else {
        return opening::<F>(dice);
    };
    let hooks = [
        (1, Hook::FromDevice),
        (2, Hook::FromPod),
        (4, Hook::ToPod),
        (8, Hook::ToDevice),
    ];
    let flow = memory
        .established
        .borrow()
        .get(&key)
        .or(memory.opening.borrow().get(&key))
        .copied();
    let named = hooks
        .into_iter()
        .filter(|(bit, _)| flow.is_some_and(|flow| flow.hooks & bit != 0));
    let named: Vec<_> = named.map(|(_, hook)| hook).collect();
    let hook = if dice.chance(90) && !named.is_empty() {
        dice.pick(&named)
    } else {
        dice.pick(&Hook::ALL)
    };
    let (src, dst) = (
        (key.src.ip(), key.sport.number()).into(),
        (key.dst.ip(), key.dport.number()).into(),
    );
    let flags = dice.pick(&[
        SYN,
        SYN | ACK,
        SYN | ACK,
        ACK,
        ACK,
        ACK | 8,
        FIN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
    ]);
    (hook, Segment::new(key.protocol, src, dst).flags(flags))
}

/// One of the flows that there are, and its table.
pub fn any_flow<F: Net>(dice: &mut Dice, memory: &Memory<F>) -> Option<(Table, FlowKey<F::Addr>)> {
    let (established, opening) = (memory.established.borrow(), memory.opening.borrow());
    let established = established.keys().map(|key| (Table::Established, *key));
    let flows: Vec<_> = established
        .chain(opening.keys().map(|key| (Table::Opening, *key)))
        .collect();
    if flows.is_empty() {
        None
    } else {
        Some(dice.pick(&flows))
    }
}

fn opening<F: Net>(dice: &mut Dice) -> (Hook, Segment) {
    let (dotted, port) = dice.pick(&FRONTENDS);
    let dotted = if dotted == NODE_PORTS {
        dice.pick(&[NODE, NODE, NODE, NODE_B, LOOPBACK])
    } else {
        dotted
    };
    let dotted = if dice.chance(3) { NOBODY } else { dotted };
    let (hook, src) = match dice.below(10) {
        0..5 => (Hook::FromDevice, dice.pick(&CLIENTS)),
        5..9 => (Hook::FromPod, dice.pick(&PODS)),
        // A process, whose packets meet a program twice.
        _ => (
            dice.pick(&[Hook::FromDevice, Hook::ToDevice]),
            if dotted == LOOPBACK { LOOPBACK } else { NODE },
        ),
    };
    let port = if dice.chance(5) { 81 } else { port };
    let client = (src, 40000 + dice.below(12) as u16);
    let flags = if dice.chance(90) {
        SYN
    } else {
        dice.number() as u8
    };
    (
        hook,
        Segment::new(
            dice.pick(&PROTOCOLS),
            end::<F>(client),
            end::<F>((dotted, port)),
        )
        .flags(flags),
    )
}

fn anything<F: Net>(dice: &mut Dice) -> Segment {
    let all = [
        &CLIENTS[..],
        &PODS,
        &BACKENDS,
        &[NODE, NODE_B, VIP, VIP_B, EXTERNAL],
    ]
    .concat();
    let ports = [NODE_PORT, 80, 53, 8080, 40000, 1024];
    let ends = [(); 2].map(|()| end::<F>((dice.pick(&all), dice.pick(&ports))));
    Segment::new(dice.pick(&PROTOCOLS), ends[0], ends[1]).flags(dice.number() as u8)
}

/// The frame, now and then bent: options, no UDP checksum, a fragment, other bytes, the end cut off
/// or something behind it.
fn bend(dice: &mut Dice, mut segment: Segment) -> Vec<u8> {
    let v4 = segment.src.is_ipv4();
    if v4 && dice.chance(5) {
        segment.options = [1, 1, 1, 0].repeat(1 + dice.below(10));
    }
    let mut bytes = segment.bytes();
    match dice.below(40) {
        0 if v4 && segment.protocol == Protocol::UDP && segment.options.is_empty() => {
            bytes[40..42].fill(0)
        }
        1 if v4 => bytes[20] |= dice.pick(&[0x20, 0x01]),
        2 => {
            // Not the EtherType: the other family's tables are not filled.
            let at = dice.below(78);
            let at = if at < 12 { at } else { at + 2 };
            if let Some(byte) = bytes.get_mut(at) {
                *byte = dice.number() as u8;
            }
        }
        3 => bytes.truncate(LINK + dice.below(bytes.len() - LINK)),
        4 => bytes.resize(bytes.len() + 1 + dice.below(20), 0),
        5 if !v4 => bytes[20] = dice.pick(&[0, 43, 44, 51, 60, 58]),
        6 => bytes[12..14].copy_from_slice(&dice.pick(&[
            [0x08, 0x06],
            [0x81, 0x00],
            [0x88, 0xa8],
            [0x88, 0xcc],
        ])),
        _ => {}
    }
    bytes
}
