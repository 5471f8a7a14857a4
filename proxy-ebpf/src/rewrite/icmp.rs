//! The making of ICMP errors: the quote, the limits, and the way back.

use proxy_common::checksum::sum_add;
use proxy_common::net::{Address as _, Protocol};
use proxy_common::reason::{Answer, Counter, Reason};

use crate::parse::{Headers, Ip};
use crate::{Action, Packet, Scratch, Tables};

/// Number of bytes that are quoted of TCP: up to and with the checksum, which a device may still
/// have to fill in. Of SCTP these are the header and an INIT's tag, without which its sender
/// ignores the error.
const QUOTED_TCP: u32 = 20;
/// Number of bytes that are quoted of UDP: its header.
const QUOTED_UDP: u32 = 8;

/// Turns a packet into an ICMP error to its sender, if its source and the rate limit allow it.
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
    // A process may have a loopback address, and gets the error by loopback.
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

/// The quote of an ICMP error.
pub(super) struct Quote {
    /// Length of the quoted transport header, in bytes.
    pub(super) len: u32,
    /// Partial sum of the quoted transport header, as it will be sent.
    pub(super) sum: u32,
}

/// Cuts the packet behind the part of the transport header that is quoted.
///
/// A device, or the kernel on the way to it, may still have to fill in the quoted checksum
/// (CHECKSUM_PARTIAL): the kernel then refuses to cut before that field. With the checksum that it
/// will write, the quoted header sums up to the complement of the field's present value.
#[inline(always)]
pub(super) fn quote<F: Ip, P: Packet>(packet: &mut P, headers: &Headers<F>) -> Option<Quote> {
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
    // The checksum that the device will compute for SCTP is not known.
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

/// Cuts the packet to `len` bytes of the transport header, with its checksum at `checksum`. Returns
/// true if the checksum is still to be filled in.
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
