//! The parts of the policies that one change makes the compiler look at again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::alike::GroupId;
use crate::model::ObjectName;

/// What is to be looked at again.
#[derive(Default)]
pub(super) struct Dirty {
    /// Addresses whose owner may be another.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Pods of this node, or not any more.
    pub(super) pods: BTreeSet<ObjectName>,
    /// Groups that got pods of this node, or lost some.
    pub(super) moved: BTreeSet<GroupId>,
    /// Groups that other policies select.
    pub(super) rows: BTreeSet<GroupId>,
    /// Groups that are other peers.
    pub(super) classes: BTreeSet<GroupId>,
}
