//! The only place that writes packet bytes: the rewrite of a flow's packets, and the refusals that tell a client at once.

mod families;

use proxy_common::checksum::{checksum_update, sum_add, sum_diff};
use proxy_common::flow::{Flow, Way, fragment_ports};
use proxy_common::net::{Address, Family, Protocol};
use proxy_common::reason::{Answer, Counter, Reason};

use crate::crc32c::contribution;
use crate::parse::{Headers, Ip, LINK};
use crate::{Action, Change, Packet, Scratch, Tables};

/// Bytes of an ICMP or ICMPv6 header.
const ICMP: u32 = 8;
/// Time to live of the packets that we make.
const TTL: u8 = 64;
/// What a refusal quotes of TCP: through the checksum, which a device may still have to fill in. Of SCTP that is the header and an INIT's
/// tag, without which its sender does not believe it.
const QUOTED_TCP: u32 = 20;
/// What a refusal quotes of UDP: its header.
const QUOTED_UDP: u32 = 8;

/// Gives a packet the addresses and ports of its flow. Where we, not the stack, send it on, its time to live goes down by one.
#[inline(always)]
pub fn apply<F: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
    way: Way,
) -> Result<(), Reason> {
    let ttl = match way {
        Way::Stack | Way::Gate | Way::Dsr => headers.ttl,
        // Checked before: 1 and 0 do not get here.
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

/// The partial sum of a change of IPv6's hop limit; IPv4's header has a checksum for that.
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
    // The checksum that compensates the addresses is in the first one.
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

/// Gives a fragment of an IPv4 datagram another number; the header checksum follows. IPv6 has enough of them.
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

/// Gives an ICMP error about a packet of a flow the addresses and ports by which its receiver knows the packet.
///
/// The error of an end of the flow comes from the address that stands for that end; a router keeps its own. A quoted checksum of TCP or UDP follows;
/// SCTP's stays as it was, for nobody who has not all of the packet can verify or correct it.
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

/// Corrects the quoted checksum for a change of ports, and for that of the addresses; gives what its own change is to the checksum over it.
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
    // TCP's may be cut off; of UDP, 0 means that there is none.
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

/// The outer header, the quoted one, which goes the other way, and the checksum over both.
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

/// Corrects SCTP's checksum for a change of ports; no address counts in it.
///
/// 0 means that the device computes it, and stays: of finished checksums one in 4 billion is 0, and that packet is lost.
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

/// Gives a frame its next hop: destination and source MAC.
#[inline(always)]
pub fn link<P: Packet>(packet: &mut P, addresses: &[u8; 12]) -> Result<(), Reason> {
    packet.store(0, addresses).ok_or(Reason::RewriteFailed)
}

/// Answers a packet that is not sent on with an ICMP error, where its source and the limit allow it.
#[inline(always)]
pub fn answer<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &Scratch<F>,
    answer: Answer,
    back: Action,
) -> Result<Action, Reason> {
    let headers = &scratch.headers;
    let src = headers.key.src;
    // A process is told by loopback, which is nobody else's.
    let may_be_told = F::is_host(src) || src.is_loopback() && matches!(back, Action::Enter(_));
    if !may_be_told {
        return Err(Reason::NotAnswerable);
    }
    if !tables.may_answer() {
        return Err(Reason::RejectRateLimited);
    }
    F::answer(packet, headers, answer, scratch.mtu)
        .and_then(|()| turn_back(packet))
        .ok_or(Reason::RewriteFailed)?;
    tables.count_answered(scratch.reason);
    tables.count(Counter::Rejected);
    Ok(back)
}

/// Swaps the link-layer addresses.
#[inline(always)]
fn turn_back<P: Packet>(packet: &mut P) -> Option<()> {
    let [a, b, c]: [u32; 3] = packet.load(0)?;
    let (a, b, c) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    packet.store(
        0,
        &[
            b[2], b[3], c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1],
        ],
    )
}

/// What an ICMP error quotes, cut out of the packet.
struct Quote {
    /// Bytes of the quoted transport header.
    len: u32,
    /// Its partial sum, as it will be when it is sent.
    sum: u32,
}

/// Cuts the packet behind the transport header that will be quoted.
///
/// A device, or the kernel on its way there, may still have to fill in the quoted checksum (CHECKSUM_PARTIAL): the kernel then
/// refuses to cut before that field. What it will write makes the quoted header sum up to the complement of what stands there now.
#[inline(always)]
fn quote<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>) -> Option<Quote> {
    if headers.key.protocol == Protocol::UDP {
        let words: [u32; 2] = packet.load(headers.transport)?;
        let unfinished = cut(packet, headers, 6, QUOTED_UDP)?;
        if !unfinished {
            packet.store(headers.transport, &words)?;
        }
        let field = u32::from(u16::from_ne_bytes([
            words[1].to_ne_bytes()[2],
            words[1].to_ne_bytes()[3],
        ]));
        let sum = if unfinished {
            !field
        } else {
            sum_add(words[0], words[1])
        };
        return Some(Quote {
            len: QUOTED_UDP,
            sum,
        });
    }
    let words: [u32; 5] = packet.load(headers.transport)?;
    // What the device will make of an SCTP packet's checksum cannot be known here.
    if headers.key.protocol == Protocol::SCTP && words[2] == 0 {
        return None;
    }
    let unfinished = cut(packet, headers, 16, QUOTED_TCP)?;
    if !unfinished {
        packet.store(headers.transport, &words)?;
    }
    let field = u32::from(u16::from_ne_bytes([
        words[4].to_ne_bytes()[0],
        words[4].to_ne_bytes()[1],
    ]));
    let sum = if unfinished {
        !field
    } else {
        words.iter().fold(0, |sum, word| sum_add(sum, *word))
    };
    Some(Quote {
        len: QUOTED_TCP,
        sum,
    })
}

/// Cuts to `len` bytes of the transport header, whose checksum lies at `checksum`; tells whether that is still to be filled in.
#[inline(always)]
fn cut<F: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    checksum: u32,
    len: u32,
) -> Option<bool> {
    let unfinished = packet.truncate(headers.transport + checksum).is_none();
    packet.truncate(headers.transport + len)?;
    Some(unfinished)
}
