//! Elements that nothing refers to any more, but that packets may still be reading.

/// Two generations of such elements. They are free after a whole period.
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
    /// Adds an element.
    pub fn push(&mut self, thing: T) {
        self.young.push(thing);
    }

    /// Ends a period. Returns the elements that were added before it began.
    pub fn rested(&mut self) -> Vec<T> {
        let young = std::mem::take(&mut self.young);
        std::mem::replace(&mut self.old, young)
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}

impl<T> Extend<T> for Resting<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, things: I) {
        self.young.extend(things);
    }
}
