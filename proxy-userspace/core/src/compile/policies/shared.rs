//! Equal values in one allocation: classes and rows, so that pointers tell whether two are equal.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The values in use. Nothing here reaches output in the order of the hash table.
#[derive(Debug)]
pub(super) struct Shared<T> {
    all: HashSet<Arc<T>>,
    /// At so many values those that nobody has any more are forgotten.
    full: usize,
}

impl<T: Hash + Eq> Default for Shared<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            full: 0,
        }
    }
}

impl<T: Hash + Eq> Shared<T> {
    /// The one allocation of this value.
    pub(super) fn get(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return known.clone();
        }
        let value = Arc::new(value);
        self.all.insert(value.clone());
        value
    }

    /// Forgets what nobody has, from time to time: as often as it has become twice as many.
    pub(super) fn sweep(&mut self) {
        if self.all.len() >= self.full {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.full = 2 * self.all.len() + 64;
        }
    }
}
