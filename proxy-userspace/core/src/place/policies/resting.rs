//! What nothing refers to any more, and a packet that is under way may still be using.

/// Two ages of such things: what has rested through a whole period is free.
#[derive(Debug)]
pub struct Resting<T> {
    young: Vec<T>,
    old: Vec<T>,
}

impl<T> Default for Resting<T> {
    fn default() -> Self {
        Self {
            young: Vec::new(),
            old: Vec::new(),
        }
    }
}

impl<T> Resting<T> {
    /// Something goes to rest.
    pub fn push(&mut self, thing: T) {
        self.young.push(thing);
    }

    /// A period is over: gives what has rested since before it began.
    pub fn rested(&mut self) -> Vec<T> {
        let young = std::mem::take(&mut self.young);
        std::mem::replace(&mut self.old, young)
    }

    /// Nothing is at rest.
    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}

impl<T> Extend<T> for Resting<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, things: I) {
        self.young.extend(things);
    }
}
