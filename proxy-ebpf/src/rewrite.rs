//! Writing packet bytes, which happens only here: the rewrite of a flow's packets, and ICMP errors.

mod icmp;
mod v4;
mod v6;

pub use icmp::answer;
use icmp::quote;

use proxy_common::checksum::{checksum_update, sum_add, sum_diff};
use proxy_common::flow::{Flow, Way, fragment_ports};
use proxy_common::net::{Address, Family, Protocol};
use proxy_common::reason::Reason;

use crate::crc32c::contribution;
use crate::parse::{Headers, Ip, LINK};
use crate::{Change, Packet, Scratch};

/// Bytes of an ICMP or ICMPv6 header.
const ICMP: u32 = 8;
/// TTL of the packets that we make.
const TTL: u8 = 64;
/// The bits of a traffic class that encapsulation copies. Congestion marks are not copied: the node
/// that decapsulates would lose them (RFC 6040, 4.3).
const DSCP: u8 = 0xfc;

/// Gives a packet the addresses and ports of its flow. Decrements the TTL if we, not the stack,
/// send the packet on.
#[inline(always)]
pub fn apply<F: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
    way: Way,
) -> Result<(), Reason> {
    let ttl = match way {
        Way::Stack | Way::Gate | Way::Dsr => headers.ttl,
        // `may_forward` has refused 1 and 0.
        Way::Pod | Way::Neighbour => headers.ttl.wrapping_sub(1),
    };
    let key = &headers.key;
    let addresses = sum_add(
        sum_diff(key.src.sum(), flow.src.sum()),
        sum_diff(key.dst.sum(), flow.dst.sum()),
    );
    let ports = sum_add(
        sum_diff(key.sport.word(), flow.sport.word()),
        sum_diff(key.dport.word(), flow.dport.word()),
    );
    let uncovered = hops::<F>(headers.ttl, ttl);
    let udp = key.protocol == Protocol::UDP;
    let checksum = headers.transport + if udp { 6 } else { 16 };
    let change = Change {
        addresses,
        ports,
        udp,
        v6: F::V6,
        uncovered,
    };
    let [a, b] = flow.sport.bytes();
    let [c, d] = flow.dport.bytes();
    F::write(packet, headers, flow.src, flow.dst, ttl)
        .and_then(|()| packet.store(headers.transport, &[a, b, c, d]))
        .and_then(|()| match key.protocol {
            Protocol::SCTP => fix_crc(packet, headers, flow),
            _ => packet.fix_checksum(checksum, change),
        })
        .ok_or(Reason::RewriteFailed)
}

/// Returns the partial sum of a change of IPv6's hop limit; 0 for IPv4, whose header has a
/// checksum.
#[inline(always)]
fn hops<F: Family>(from: u8, to: u8) -> u32 {
    let word = |ttl: u8| u32::from(u16::from_ne_bytes([0, ttl]));
    if F::V6 && from != to {
        sum_diff(word(from), word(to))
    } else {
        0
    }
}

/// Gives a fragment that is not its datagram's first the addresses of its flow.
#[inline(always)]
pub fn addresses<F: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
    way: Way,
) -> Result<(), Reason> {
    let ttl = if way.is_to_stack() {
        headers.ttl
    } else {
        headers.ttl.wrapping_sub(1)
    };
    F::write(packet, headers, flow.src, flow.dst, ttl).ok_or(Reason::RewriteFailed)?;
    // The checksum that compensates the change of addresses is in the first fragment.
    if F::V6 {
        let key = &headers.key;
        let addresses = sum_add(
            sum_diff(key.src.sum(), flow.src.sum()),
            sum_diff(key.dst.sum(), flow.dst.sum()),
        );
        packet.account(sum_add(addresses, hops::<F>(headers.ttl, ttl)));
    }
    Ok(())
}

/// Adds `move_by` to the identification of an IPv4 fragment, and corrects the header checksum.
/// IPv6's identifications are long enough.
#[inline(always)]
pub fn renumber<F: Family, P: Packet>(packet: &mut P, move_by: u16) -> Result<(), Reason> {
    if F::V6 {
        return Ok(());
    }
    let id: [u8; 2] = packet.load(LINK + 4).ok_or(Reason::Truncated)?;
    let check: [u8; 2] = packet.load(LINK + 10).ok_or(Reason::Truncated)?;
    let now = u16::from_be_bytes(id).wrapping_add(move_by).to_be_bytes();
    let diff = sum_diff(
        u16::from_ne_bytes(id).into(),
        u16::from_ne_bytes(now).into(),
    );
    let check = checksum_update(u16::from_ne_bytes(check), diff).to_ne_bytes();
    packet
        .store(LINK + 4, &now)
        .and_then(|()| packet.store(LINK + 10, &check))
        .ok_or(Reason::RewriteFailed)
}

/// Translates an ICMP error about a packet of a flow, so that the quoted packet has the addresses
/// and ports that the receiver sent it with.
///
/// An error from an end of the flow gets the translated address of that end as source; a router
/// keeps its own. The quoted checksum of TCP or UDP is corrected. SCTP's is not: nobody can verify
/// it without the whole packet.
#[inline(always)]
pub fn error<F: Ip, P: Packet>(
    packet: &mut P,
    scratch: &Scratch<F>,
    way: Way,
) -> Result<(), Reason> {
    let Scratch {
        headers,
        flow,
        reply: itself,
        quoted,
        ..
    } = scratch;
    let key = &headers.key;
    let less = u8::from(!way.is_to_stack());
    let src = if itself.src == key.src {
        flow.src
    } else {
        itself.src
    };
    let uncovered = hops::<F>(headers.ttl, headers.ttl.wrapping_sub(less));
    let [a, b] = flow.dport.bytes();
    let [c, d] = flow.sport.bytes();
    let ports = sum_add(
        sum_diff(key.dport.word(), flow.dport.word()),
        sum_diff(key.sport.word(), flow.sport.word()),
    );
    let ports = sum_add(
        ports,
        quoted_checksum(packet, scratch, ports).ok_or(Reason::RewriteFailed)?,
    );
    let change = Change {
        addresses: 0,
        ports,
        udp: false,
        v6: F::V6,
        uncovered,
    };
    readdress(packet, scratch, src, less, change)
        .and_then(|()| packet.store(*quoted, &[a, b, c, d]))
        .ok_or(Reason::RewriteFailed)
}

/// Corrects the quoted checksum for the change of ports and addresses. Returns the partial sum by
/// which the checksum over the quote must change.
#[inline(always)]
fn quoted_checksum<F: Ip, P: Packet>(
    packet: &mut P,
    scratch: &Scratch<F>,
    ports: u32,
) -> Option<u32> {
    let Scratch {
        headers: Headers { key, .. },
        flow,
        quoted,
        ..
    } = scratch;
    let udp = key.protocol == Protocol::UDP;
    if !udp && key.protocol != Protocol::TCP {
        return Some(0);
    }
    let at = quoted + if udp { 6 } else { 16 };
    // TCP's may be cut off; UDP's 0 means that there is none.
    let Some(check) = packet
        .load::<[u8; 2]>(at)
        .map(u16::from_ne_bytes)
        .filter(|check| !udp || *check != 0)
    else {
        return Some(0);
    };
    let addresses = sum_add(
        sum_diff(key.src.sum(), flow.src.sum()),
        sum_diff(key.dst.sum(), flow.dst.sum()),
    );
    let now = checksum_update(check, sum_add(addresses, ports));
    let now = if udp && now == 0 { u16::MAX } else { now };
    packet.store(at, &now.to_ne_bytes())?;
    Some(sum_diff(check.into(), now.into()))
}

/// Writes the addresses of the outer header and (reversed) of the quoted one, and
/// corrects the checksum over both.
#[inline(always)]
fn readdress<F: Ip, P: Packet>(
    packet: &mut P,
    scratch: &Scratch<F>,
    src: F::Addr,
    hops: u8,
    change: Change,
) -> Option<()> {
    let Scratch {
        headers,
        flow,
        reply: itself,
        ..
    } = scratch;
    let key = &headers.key;
    let addresses = F::readdress(
        packet,
        LINK,
        [itself.src, itself.dst],
        [src, flow.dst],
        hops,
    )?;
    let inner = F::readdress(
        packet,
        headers.transport + ICMP,
        [key.dst, key.src],
        [flow.dst, flow.src],
        0,
    )?;
    let ports = sum_add(change.ports, inner);
    packet.fix_checksum(
        headers.transport + 2,
        Change {
            addresses,
            ports,
            ..change
        },
    )
}

/// Corrects SCTP's checksum, which does not cover addresses, for a change of ports.
///
/// 0 means that the device computes it, and is kept. One of 4 billion computed checksums is 0, too;
/// that packet is lost.
#[inline(always)]
fn fix_crc<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Option<()> {
    let (at, len) = (
        headers.transport + 8,
        (headers.len + LINK).saturating_sub(headers.transport),
    );
    let [crc]: [u32; 1] = packet.load(at)?;
    if crc == 0 {
        return Some(());
    }
    let change = fragment_ports(headers.key.sport, headers.key.dport)
        ^ fragment_ports(flow.sport, flow.dport);
    packet.store(at, &[crc ^ contribution(u32::from_le(change), len).to_le()])
}

/// Writes destination and source MAC of a frame.
#[inline(always)]
pub fn link<P: Packet>(packet: &mut P, addresses: &[u8; 12]) -> Result<(), Reason> {
    packet.store(0, addresses).ok_or(Reason::RewriteFailed)
}
