//! The parts of one change: rows that pods leave, prefixes that get another class, writes by step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::write::PolicyWrite;
use crate::contents::policies::Row;
use crate::model::ObjectName;

/// Rows that pods leave, with these pods and the direction (0 ingress, 1 egress).
pub(super) type Leaving = BTreeMap<Arc<Row>, BTreeSet<(ObjectName, usize)>>;

/// A prefix, with its own old and new class.
pub(super) struct Move {
    pub(super) prefix: IpNet,
    pub(super) before: Option<u32>,
    pub(super) after: Option<u32>,
}

impl Move {
    /// Longer prefixes are added before shorter ones, and shorter ones removed before longer, so
    /// that no address falls to a prefix that excludes it.
    pub(super) fn order(&self) -> (bool, u8) {
        let length = self.prefix.prefix_len();
        match self.after {
            Some(_) => (false, u8::MAX - length),
            None => (true, length),
        }
    }
}

/// Writes in order, after those of elements that are not referred to yet.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) bridges: Vec<PolicyWrite>,
    pub(super) moves: Vec<PolicyWrite>,
    pub(super) flips: Vec<PolicyWrite>,
    pub(super) ends: Vec<PolicyWrite>,
    /// The classes that addresses may have during the change.
    pub(super) transient: BTreeSet<u32>,
}
