//! Turns contents in symbols into writes, and owns ids, generations, slots and grace periods.
//!
//! `place` adds new frontends and removes old ones. `retire` removes slots and names without users;
//! it may run only when no packet is left that began before the last write.

mod actual;
mod elements;
mod label;
mod maglev;
mod plan;
pub mod policies;
#[cfg(test)]
mod tests;

pub use actual::{Actual, Idle};
pub use elements::{EndpointAt, Entry, Key, Side, Slot, SlotKey, Write};

use crate::contents::{Contents, Delta};
use plan::Plan;

/// Returns the writes that turn `actual` into `contents`, in a safe order; none if they are equal
/// in symbols.
pub fn place(contents: &Contents, actual: &Actual) -> Vec<Write> {
    let mut plan = Plan::new(contents, actual);
    contents
        .frontends
        .keys()
        .for_each(|frontend| plan.frontend(*frontend));
    actual
        .services()
        .keys()
        .filter(|f| !contents.frontends.contains_key(f))
        .for_each(|f| plan.frontend(*f));
    plan.sources();
    plan.facts(&actual.facts_unlike(contents));
    plan.writes()
}

/// As [`place`], if `contents` differ by `delta` from those that `actual` was brought to: only
/// these elements are compared.
pub fn place_delta(delta: &Delta, contents: &Contents, actual: &Actual) -> Vec<Write> {
    let mut plan = Plan::new(contents, actual);
    delta
        .frontends
        .iter()
        .for_each(|frontend| plan.frontend(*frontend));
    delta.sources.iter().for_each(|source| plan.source(source));
    plan.facts(delta);
    plan.writes()
}

/// Deletes the slots and names that no frontend refers to.
pub fn retire(actual: &Actual) -> Vec<Write> {
    retire_those(&actual.idle(), actual)
}

/// Deletes those that were idle at an earlier time and still are.
pub fn retire_those(idle: &Idle, actual: &Actual) -> Vec<Write> {
    let slots = actual
        .idle_slots(idle)
        .map(|slot| Write::Delete(Key::Backend(slot)));
    let endpoints = actual
        .idle_endpoints(idle)
        .map(|endpoint| Write::Delete(Key::Endpoint(endpoint)));
    let chunks = actual
        .idle_chunks(idle)
        .map(|chunk| Write::Delete(Key::Maglev(chunk)));
    let names = actual
        .idle_names()
        .filter(|id| idle.names.contains(id))
        .map(|id| Write::Delete(Key::Name(id)));
    slots.chain(endpoints).chain(chunks).chain(names).collect()
}
