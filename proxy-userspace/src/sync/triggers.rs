//! Times of the changes that the kernel does not have yet, from annotations of EndpointSlices
//! (V24).

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::model::{Family, Kind, Object, ObjectName, State, Update};

/// Maximum number of times kept of one Service, should the kernel refuse writes for long.
const MOST: usize = 1000;

/// The time of a change, from a slice, for its Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A change was made at this time.
    At(ObjectName, Family, Timestamp),
    /// A slice was deleted. It carries no time, and the times of its Service are dropped.
    Gone(ObjectName),
}

impl Trigger {
    /// Returns the trigger of an update that is about to change `state`; `None` without one.
    pub fn of(update: &Update, state: &State) -> Option<Self> {
        match update {
            Update::Apply(Object::EndpointSlice(_, slice)) => slice
                .triggered
                .map(|time| Self::At(slice.service.clone(), slice.family, time)),
            Update::Delete(object) if object.kind == Kind::EndpointSlice => state
                .slices
                .get(&object.name)
                .map(|slice| Self::Gone(slice.service.clone())),
            Update::Apply(_)
            | Update::Flawed(..)
            | Update::Delete(_)
            | Update::Invalid(_)
            | Update::Synced
            | Update::Connection(_) => None,
        }
    }
}

/// The times that wait for the kernel, by Service.
#[derive(Clone, Debug)]
pub struct Triggers {
    began: Timestamp,
    waiting: BTreeMap<ObjectName, Vec<(Family, Timestamp)>>,
}

impl Triggers {
    /// Returns triggers of changes made after `began`. Earlier ones are no delay of this agent.
    pub fn since(began: Timestamp) -> Self {
        Self {
            began,
            waiting: BTreeMap::new(),
        }
    }

    /// Adds a change that the kernel does not have yet.
    pub fn wait(&mut self, trigger: Trigger) {
        match trigger {
            Trigger::At(service, family, time) if time > self.began => {
                let waiting = self.waiting.entry(service).or_default();
                if waiting.len() < MOST {
                    waiting.push((family, time));
                }
            }
            Trigger::At(..) => {}
            Trigger::Gone(service) => _ = self.waiting.remove(&service),
        }
    }

    /// Takes all times; called when the kernel has every change.
    pub fn take(&mut self) -> BTreeMap<ObjectName, Vec<(Family, Timestamp)>> {
        std::mem::take(&mut self.waiting)
    }
}
