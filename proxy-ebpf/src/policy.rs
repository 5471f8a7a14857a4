//! NetworkPolicy's tables: the row of a pod, the class of an address, the ports of a set.
//!
//! Needs only [`Verdicts`], so that the agent's commands ask the same functions over its maps.

use proxy_common::net::{Family, Protocol};
use proxy_common::policy::{PodRows, PortSet, Row, VerdictKey, Word};

use crate::Verdicts;
use crate::parse::Ip;

/// The id of a pod that is not known yet (P31). No table has so many elements.
pub(crate) const UNKNOWN_POD: u32 = u32::MAX;

/// Returns the rows of a pod. An unknown pod is isolated in both directions.
#[inline(always)]
pub fn rows<F: Family, T: Verdicts<F>>(tables: &T, pod_id: u32) -> PodRows {
    if pod_id == UNKNOWN_POD {
        PodRows {
            ingress: Row::CLOSED,
            egress: Row::CLOSED,
        }
    } else {
        tables.rows(pod_id)
    }
}

/// Returns true if a pod's row allows a port towards an address.
///
/// P32: row and class are two loads, between which several changes may happen. Each change first
/// leads addresses to classes that are right by the old row and by the new one, and then gives the
/// pod its new row. So a class fits the row that is still in place after the class was found.
#[inline(always)]
pub fn allowed<F: Ip, T: Verdicts<F>>(
    tables: &T,
    pod_id: u32,
    side: impl Fn(PodRows) -> Row,
    other: &F::Addr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let mut row = side(rows(tables, pod_id));
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    let mut found = class(tables, other);
    let now = side(rows(tables, pod_id));
    if now != row {
        row = now;
        found = class(tables, other);
    }
    row_allows(tables, row, found, protocol, port)
}

/// Returns true if a row allows a port towards an address: two or three loads for the class, one
/// for the set, one for the ports.
#[inline(always)]
pub fn allows<F: Ip, T: Verdicts<F>>(
    tables: &T,
    row: Row,
    other: &F::Addr,
    protocol: Protocol,
    port: u16,
) -> bool {
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    row_allows(tables, row, class(tables, other), protocol, port)
}

#[inline(always)]
fn row_allows<F: Ip, T: Verdicts<F>>(
    tables: &T,
    row: Row,
    class: u32,
    protocol: Protocol,
    port: u16,
) -> bool {
    if row == Row::OPEN || row == Row::CLOSED {
        return row == Row::OPEN;
    }
    let set = match row.chunk() {
        Some(chunk) => tables.verdict(chunk, class),
        None => tables.hashed_verdict(&VerdictKey { row, class }),
    };
    tables.have(set, protocol, port)
}

/// Returns the class of an address. IPv4's comes from the directory. IPv6's is that of the single
/// address, else that of the longest prefix.
#[inline(always)]
pub fn class<F: Ip, T: Verdicts<F>>(tables: &T, addr: &F::Addr) -> u32 {
    if F::V6 {
        return match tables.exact_class(addr) {
            Some(class) => class,
            None => tables.prefix_class(addr),
        };
    }
    let [first, second, third, fourth] = F::octets(*addr);
    let mut word = tables.word(u32::from(first), second);
    if let Some(node) = word.as_node() {
        word = tables.word(node, third);
    }
    if let Some(node) = word.as_node() {
        word = tables.word(node, fourth);
    }
    if word == Word::ELSEWHERE {
        tables.prefix_class(addr)
    } else {
        word.0
    }
}

/// Returns true if a set of ports contains a port. A protocol without ports is only in the set of
/// everything (P26).
#[inline(always)]
pub fn has<F: Family, T: Verdicts<F>>(tables: &T, set: u32, protocol: Protocol, port: u16) -> bool {
    if set == PortSet::NONE || set == PortSet::ALL {
        return set == PortSet::ALL;
    }
    let (mut set, mut sets) = (set, 0);
    while sets < PortSet::CHAIN {
        let Some(ports) = tables.ports(set) else {
            return false;
        };
        if ports.flags & (PortSet::EVERYTHING | PortSet::whole(protocol)) != 0 {
            return true;
        }
        let mut index = 0;
        while index < PortSet::RANGES {
            if index >= ports.len as usize {
                break;
            }
            if ports.ranges[index].has(protocol, port) {
                return true;
            }
            index += 1;
        }
        if ports.next == 0 {
            return false;
        }
        set = ports.next;
        sets += 1;
    }
    false
}
