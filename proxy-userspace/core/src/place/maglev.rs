//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4): the backend of each entry depends on
//! the set of backends only, so that all nodes agree, and few entries change when a backend comes
//! or goes.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;

use proxy_common::service::{MAGLEV_CHUNK, MaglevChunk, MaglevKey, maglev_entries};
use siphasher::sip::SipHasher13;

use super::elements::Side;
use crate::contents::Backends;
use crate::model::Algorithm;

/// Returns the chunks of the tables of both sets of backends, if the algorithm is Maglev.
pub fn chunks(
    side: Side,
    generation: u32,
    backends: &Backends,
) -> BTreeMap<MaglevKey, MaglevChunk> {
    let mut all = BTreeMap::new();
    if backends.algorithm != Algorithm::Maglev {
        return all;
    }
    let family = match side {
        Side::V4 => 0,
        Side::V6 => MaglevKey::V6,
    };
    let Backends {
        local_only,
        both,
        cluster_only,
        ..
    } = backends;
    let mut sets = vec![(
        MaglevKey::CLUSTER,
        both.iter().chain(cluster_only).collect::<Vec<_>>(),
    )];
    // Equal sets have one table.
    if !(local_only.is_empty() && cluster_only.is_empty()) {
        sets.push((0, local_only.iter().chain(both).collect()));
    }
    for (set, endpoints) in sets {
        let addresses: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| endpoint.addr)
            .collect();
        let entries = maglev_entries(u32::try_from(addresses.len()).unwrap_or(u32::MAX));
        for (chunk, indices) in (0..).zip(table(&addresses, entries as usize).chunks(MAGLEV_CHUNK))
        {
            let mut value = [0; MAGLEV_CHUNK];
            value[..indices.len()].copy_from_slice(indices);
            all.insert(
                MaglevKey {
                    generation,
                    set: set | family,
                    chunk,
                },
                value,
            );
        }
    }
    all
}

/// Returns the backend of each of `entries` (a prime number), as an index into `backends`; no
/// entries without backends. Backends that do not fit into the table have no entry.
///
/// Backends take turns to claim their next free entry, each in its own order, so that their shares
/// differ by at most one entry.
fn table(backends: &[SocketAddr], entries: usize) -> Vec<u16> {
    // Neither the members nor the turns may depend on the order of the list.
    let mut turns: Vec<u16> = (0..=u16::MAX).take(backends.len()).collect();
    turns.sort_by_key(|index| backends[usize::from(*index)]);
    turns.truncate(entries);
    let mut orders: Vec<_> = turns
        .iter()
        .map(|index| Order::of(backends[usize::from(*index)], entries))
        .collect();
    let (mut table, mut left) = (vec![None; entries], entries);
    while left > 0 && !turns.is_empty() {
        for (index, order) in turns.iter().zip(&mut orders).take(left) {
            let free =
                std::iter::repeat_with(|| order.next()).find(|entry| table[*entry].is_none());
            if let Some(entry) = free {
                table[entry] = Some(*index);
            }
        }
        left = left.saturating_sub(turns.len());
    }
    table.into_iter().flatten().collect()
}

/// The order in which a backend claims entries. It visits all of them, since their number is prime.
struct Order {
    next: usize,
    skip: usize,
    entries: usize,
}

impl Order {
    fn of(addr: SocketAddr, entries: usize) -> Self {
        let [next, skip] = [0_u64, 1].map(|seed| {
            let mut hasher = SipHasher13::new_with_keys(seed, 0);
            addr.hash(&mut hasher);
            hasher.finish() as usize
        });
        Self {
            next: next % entries,
            skip: skip % (entries - 1) + 1,
            entries,
        }
    }

    fn next(&mut self) -> usize {
        let entry = self.next;
        self.next = (self.next + self.skip) % self.entries;
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u16) -> Vec<SocketAddr> {
        (0..count)
            .map(|n| SocketAddr::from(([10, 244, (n / 200) as u8, (n % 200) as u8], 8080)))
            .collect()
    }

    fn whole(backends: &[SocketAddr]) -> Vec<u16> {
        table(backends, maglev_entries(backends.len() as u32) as usize)
    }

    #[test]
    fn shares_differ_by_one_entry_at_most() {
        for count in [1, 2, 3, 7, 50, 400, 5000] {
            let mut shares = vec![0; usize::from(count)];
            let table = whole(&backends(count));
            table
                .iter()
                .for_each(|index| shares[usize::from(*index)] += 1);
            let (least, most) = (
                shares.iter().min().expect("some"),
                shares.iter().max().expect("some"),
            );
            assert!(
                most - least <= 1 && table.len() == maglev_entries(count.into()) as usize,
                "{count}: {shares:?}"
            );
        }
        assert!(whole(&[]).is_empty());
    }

    /// The paper's figures 10 and 11: besides the entries of the backend that left, few change.
    #[test]
    fn few_entries_change_hands_when_a_backend_leaves() {
        for count in [3, 10, 50] {
            let before = backends(count);
            let table_before = whole(&before);
            let mut moved = 0;
            for gone in 0..before.len() {
                let mut after = before.clone();
                after.remove(gone);
                let table_after = whole(&after);
                let changed = |(old, new): &(&u16, &u16)| {
                    let old = usize::from(**old);
                    old != gone && before[old] != after[usize::from(**new)]
                };
                moved += table_before
                    .iter()
                    .zip(&table_after)
                    .filter(changed)
                    .count();
            }
            let share = moved as f64 / (before.len() * table_before.len()) as f64;
            println!(
                "{count} backends: {:.2} % of the entries change hands needlessly",
                100.0 * share
            );
            assert!(share < 0.06, "{count}: {share}");
        }
    }

    /// The order of the list does not matter either.
    #[test]
    fn all_nodes_have_the_same_table() {
        let ours = backends(20);
        let mut theirs: Vec<_> = ours.iter().rev().copied().collect();
        theirs.rotate_left(7);
        let chosen = |backends: &[SocketAddr]| {
            whole(backends)
                .into_iter()
                .map(|index| backends[usize::from(index)])
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(&ours), chosen(&theirs));
    }
}
