//! The parts of one change: rows that pods leave, prefixes that get another class, writes by step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::write::PolicyWrite;
use crate::contents::policies::Row;
use crate::model::ObjectName;

/// Rows that pods leave: which pods, and in which direction.
pub(super) type Leaving = BTreeMap<Arc<Row>, BTreeSet<(ObjectName, usize)>>;

/// A prefix, the class that it had of its own, and the one that it gets.
pub(super) struct Move {
    pub(super) prefix: IpNet,
    pub(super) before: Option<u32>,
    pub(super) after: Option<u32>,
}

impl Move {
    /// Longer prefixes are put before shorter ones, and shorter ones taken away before longer: so that no address falls to a prefix which it is
    /// taken out of.
    pub(super) fn order(&self) -> (bool, u8) {
        let length = self.prefix.prefix_len();
        match self.after {
            Some(_) => (false, u8::MAX - length),
            None => (true, length),
        }
    }
}

/// Writes that come after all that nobody is led to yet.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) bridges: Vec<PolicyWrite>,
    pub(super) moves: Vec<PolicyWrite>,
    pub(super) flips: Vec<PolicyWrite>,
    pub(super) ends: Vec<PolicyWrite>,
    /// The classes as which addresses may be found on the way.
    pub(super) met: BTreeSet<u32>,
}
