//! Random packets: of known flows, opening ones, arbitrary bytes, and encapsulated ones.

use super::*;

/// A packet at a hook.
#[derive(Debug)]
pub struct Shot {
    pub hook: Hook,
    pub device: IfIndex,
    pub bytes: Vec<u8>,
}

/// Returns the next packet: of a known flow, the first of a connection, or an arbitrary one.
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
        bytes = encapsulated(dice, memory, &bytes);
    }
    bytes.resize(bytes.len().max(shortest(hook, &bytes)), 0);
    Shot {
        hook,
        device,
        bytes,
    }
}

/// Returns a packet encapsulated by another node or by a forger, sometimes quoted in a router's
/// error about it to this node.
fn encapsulated<F: Net>(dice: &mut Dice, memory: &Memory<F>, frame: &[u8]) -> Vec<u8> {
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

/// Encapsulates a frame as another node does for a local backend.
pub fn encapsulated_for<F: Net>((pod, port): End, frame: &[u8]) -> Vec<u8> {
    let (link, packet) = frame.split_at(LINK);
    let protocol = if F::V6 { 41 } else { 4 };
    [
        link,
        &carrier((F::ip(NODE2), F::ip(pod)), protocol, port, packet.len()),
        packet,
    ]
    .concat()
}

/// Returns an IP header; the programs verify none of its checksums.
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

/// Returns the least length of a frame of this EtherType that a test run accepts: XDP needs the
/// link-layer header, tc a byte more, recent kernels also the announced network header.
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

/// Returns one of the known flows, and its table.
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
        // A process: its packets pass two programs.
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

/// Returns the frame, sometimes altered: options, no UDP checksum, a fragment, other bytes,
/// truncated or padded.
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
            // Not the EtherType, since the other family's tables are empty.
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
