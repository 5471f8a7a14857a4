//! Maglev (Eisenbud et al., NSDI 2016, section 3.4): which backend each slot of a table has, by what the backends are and nothing else, so that all
//! nodes agree, and most slots stay where they are when a backend comes or goes.

use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;

use crate::contents::Endpoint;

/// How many slots a table has: a prime, and many times the backends that are to have equal shares.
pub const SLOTS: usize = 1021;

/// The backend of each of a prime number of slots, as an index into `endpoints`; nothing without backends.
///
/// Backends take turns to claim the next free slot in an order of their own, so that their shares differ by one slot at most.
pub fn table(endpoints: &[Endpoint], slots: usize) -> Vec<usize> {
    // Whose turn it is first must not depend on the order in which somebody lists them.
    let mut turns: Vec<usize> = (0..endpoints.len().min(slots)).collect();
    turns.sort_by_key(|index| endpoints[*index].addr);
    let mut orders: Vec<_> = turns.iter().map(|index| Order::of(endpoints[*index].addr, slots)).collect();
    let (mut table, mut left) = (vec![None; slots], slots);
    while left > 0 && !turns.is_empty() {
        for (index, order) in turns.iter().zip(&mut orders) {
            if left == 0 {
                break;
            }
            let free = std::iter::repeat_with(|| order.next()).find(|slot| table[*slot].is_none());
            if let Some(slot) = free {
                table[slot] = Some(*index);
                left -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The order in which a backend wants the slots: all of them, for their number is a prime.
struct Order {
    next: usize,
    skip: usize,
    slots: usize,
}

impl Order {
    fn of(addr: SocketAddr, slots: usize) -> Self {
        let [next, skip] = [0_u64, 1].map(|seed| {
            let mut hasher = SipHasher13::new_with_keys(seed, 0);
            addr.hash(&mut hasher);
            hasher.finish() as usize
        });
        Self { next: next % slots, skip: skip % (slots - 1) + 1, slots }
    }

    fn next(&mut self) -> usize {
        let slot = self.next;
        self.next = (self.next + self.skip) % self.slots;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (0..count)
            .map(|n| Endpoint { addr: SocketAddr::from(([10, 244, (n / 200) as u8, (n % 200) as u8], 8080)), flags: 0 })
            .collect()
    }

    #[test]
    fn shares_differ_by_one_slot_at_most() {
        for count in [1, 2, 3, 7, 50, 400] {
            let mut shares = vec![0; usize::from(count)];
            table(&endpoints(count), SLOTS).into_iter().for_each(|index| shares[index] += 1);
            let (least, most) = (shares.iter().min().expect("some"), shares.iter().max().expect("some"));
            assert!(most - least <= 1 && shares.iter().sum::<usize>() == SLOTS, "{count}: {shares:?}");
        }
        assert!(table(&[], SLOTS).is_empty());
    }

    /// The paper's figures 10 and 11: besides the slots of the one that left only few get another backend.
    #[test]
    fn few_slots_change_hands_when_a_backend_leaves() {
        for count in [3, 10, 50] {
            let before = endpoints(count);
            let table_before = table(&before, SLOTS);
            let mut moved = 0;
            for gone in 0..before.len() {
                let mut after = before.clone();
                after.remove(gone);
                let table_after = table(&after, SLOTS);
                let stays = |slot: &usize| table_before[*slot] != gone;
                let differs = |slot: &usize| before[table_before[*slot]] != after[table_after[*slot]];
                moved += (0..SLOTS).filter(stays).filter(differs).count();
            }
            let share = moved as f64 / (before.len() * SLOTS) as f64;
            println!("{count} backends: {:.2} % of the slots change hands needlessly", 100.0 * share);
            assert!(share < 0.06, "{count}: {share}");
        }
    }

    /// Neither the order in which they are listed nor what they are to a node matters.
    #[test]
    fn all_nodes_have_the_same_table() {
        let ours = endpoints(20);
        let mut theirs: Vec<_> = ours.iter().rev().map(|endpoint| Endpoint { flags: 1, ..*endpoint }).collect();
        theirs.rotate_left(7);
        let addresses =
            |endpoints: &[Endpoint]| table(endpoints, SLOTS).into_iter().map(|index| endpoints[index].addr).collect::<Vec<_>>();
        assert_eq!(addresses(&ours), addresses(&theirs));
    }
}
