//! From symbols to ids: turns contents into writes, and is the only one that knows ids, generations, slots and grace periods.
//!
//! `place` puts the new and takes the old frontends away; `retire` takes away slots and names that nothing refers to any more,
//! and may only run once no packet that began before the last write is still under way.

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

/// The writes that turn `actual` into `contents`, in the order in which they are safe; none if they are equal in symbols.
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

/// The same as [`place`] if `actual` held other contents until now, from which these differ by `delta`: only that is looked at.
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

/// The same of those only that were idle before and still are.
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
