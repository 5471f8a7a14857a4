//! Equal values in one allocation: classes and rows are equal if their pointers are.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The values in use. The order of the hash table must not reach output.
#[derive(Debug)]
pub(super) struct Shared<T> {
    all: HashSet<Arc<T>>,
    /// Number of values at which unused ones are removed.
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
    /// Returns the one allocation of this value.
    pub(super) fn get(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return known.clone();
        }
        let value = Arc::new(value);
        self.all.insert(value.clone());
        value
    }

    /// Removes unused values each time that the number of values has doubled.
    pub(super) fn sweep(&mut self) {
        if self.all.len() >= self.full {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.full = 2 * self.all.len() + 64;
        }
    }
}
