//! Sets of ports by number. Equal sets are one; long ones are chained.

use std::collections::{BTreeMap, HashMap};

use proxy_common::policy::{PortRange, PortSet};

use super::write::PolicyWrite;
use crate::contents::policies::Ports;

/// A mirror of `PORTSETS`.
#[derive(Debug)]
pub struct Sets {
    numbers: HashMap<Ports, u32>,
    sets: BTreeMap<u32, Known>,
    free: Vec<u32>,
    next: u32,
}

#[derive(Debug)]
struct Known {
    ports: Ports,
    users: u64,
    /// The numbers of the sets that are chained behind.
    more: Vec<u32>,
}

impl Default for Sets {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            sets: BTreeMap::new(),
            free: Vec::new(),
            next: PortSet::ALL + 1,
        }
    }
}

impl Sets {
    /// Returns the number of a set, for one more element; `None` if there is no room.
    pub fn number(&mut self, ports: &Ports, writes: &mut Vec<PolicyWrite>) -> Option<u32> {
        if ports.everything {
            return Some(PortSet::ALL);
        }
        if ports.whole.is_empty() && ports.ranges.is_empty() {
            return Some(PortSet::NONE);
        }
        if let Some(number) = self.numbers.get(ports) {
            let number = *number;
            self.again(number);
            return Some(number);
        }
        let mut parts: Vec<_> = ports.ranges.chunks(PortSet::RANGES).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        if parts.len() > PortSet::CHAIN as usize {
            return None;
        }
        let numbers: Vec<u32> = parts.iter().map_while(|_| self.take()).collect();
        if numbers.len() < parts.len() {
            self.free.extend(numbers);
            return None;
        }
        for (index, part) in parts.iter().enumerate().rev() {
            let mut set = PortSet {
                len: part.len() as u16,
                ..PortSet::default()
            };
            set.next = numbers.get(index + 1).copied().unwrap_or(0);
            if index == 0 {
                set.flags = ports
                    .whole
                    .iter()
                    .fold(0, |flags, protocol| flags | PortSet::whole(*protocol));
            }
            for (place, (protocol, range)) in set.ranges.iter_mut().zip(*part) {
                *place = PortRange {
                    first: range.first,
                    last: range.last,
                    protocol: *protocol,
                    zero: [0; 3],
                };
            }
            writes.push(PolicyWrite::Set(numbers[index], set));
        }
        let number = numbers[0];
        self.numbers.insert(ports.clone(), number);
        self.sets.insert(
            number,
            Known {
                ports: ports.clone(),
                users: 1,
                more: numbers[1..].to_vec(),
            },
        );
        Some(number)
    }

    /// Frees sets that have rested.
    pub fn put_back(&mut self, sets: Vec<u32>) {
        self.free.extend(sets);
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let number = self.next;
            (number < PortSet::SETS).then(|| {
                self.next += 1;
                number
            })
        })
    }

    /// Adds one element to the users of a set.
    pub fn again(&mut self, number: u32) {
        if let Some(known) = self.sets.get_mut(&number) {
            known.users += 1;
        }
    }

    /// Removes one element from the users of a set. With the last one, the set and those behind it
    /// are added to `gone`.
    pub fn drop(&mut self, number: u32, gone: &mut impl Extend<u32>) {
        let Some(known) = self.sets.get_mut(&number) else {
            return;
        };
        known.users -= 1;
        if known.users == 0
            && let Some(known) = self.sets.remove(&number)
        {
            self.numbers.remove(&known.ports);
            gone.extend(std::iter::once(number).chain(known.more));
        }
    }
}
