//! Random tables of a node: addresses, pods, devices, Services.

use super::*;

/// The place of the backends of [`node_port_to`].
#[derive(Clone, Copy)]
pub enum Remote {
    /// A pod of another node.
    Pod,
    /// A pod of this node, behind the second device; its pod_id is 1.
    Here,
}

/// Returns a node with one nodePort and nothing else.
pub fn node_port_to<F: Net>(network: &Network, backends: &[Remote]) -> Memory<F> {
    let mut memory = Memory::<F>::default();
    network.copy_routes(&mut memory);
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

/// Returns a random node: addresses, pods, devices and Services.
pub fn node<F: Net>(dice: &mut Dice, network: &Network) -> Memory<F> {
    let mut memory = Memory::<F>::default();
    network.copy_routes(&mut memory);
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

/// Replaces addresses, pods and devices.
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

/// Replaces the source ranges of service ports, and the Service ranges.
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

/// Replaces the Services: frontends of all kinds, intervals of all shapes, sometimes a slot missing
/// or of another generation.
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
