//! The parts of the policies that the compiler computes again after a change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::alike::GroupId;
use crate::model::ObjectName;

/// The parts to compute again.
#[derive(Default)]
pub(super) struct Dirty {
    /// Addresses with a possibly different owner.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Pods that are or were on this node.
    pub(super) pods: BTreeSet<ObjectName>,
    /// Groups that got pods of this node, or lost some.
    pub(super) moved: BTreeSet<GroupId>,
    /// Groups with different policies.
    pub(super) rows: BTreeSet<GroupId>,
    /// Groups that belong to different peers.
    pub(super) classes: BTreeSet<GroupId>,
}
