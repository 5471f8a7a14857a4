//! Pods in the policy tables: their pod_id, their rows, and their device.

use std::collections::BTreeMap;
use std::sync::Arc;

use proxy_common::net::{IfIndex, Veth};
use proxy_common::policy::{PodRows, Row};

use super::pod_ids::NO_ROOM;
use super::steps::{Leaving, Steps};
use super::write::PolicyWrite;
use super::{Known, PolicyTables};
use crate::contents::policies::{self as symbolic, Isolation, PodPolicy};
use crate::model::ObjectName;

/// The rows of [`NO_ROOM`].
const CLOSED: PodRows = PodRows {
    ingress: Row::CLOSED,
    egress: Row::CLOSED,
};

impl PolicyTables {
    /// Corrects pods' new rows, which were computed before the last classes came and may have been
    /// closed since.
    pub(super) fn correct(&self, flips: &mut [PolicyWrite]) {
        let known: BTreeMap<u32, PodRows> = self
            .pods
            .values()
            .map(|known| (known.pod_id, known.rows))
            .collect();
        for flip in flips {
            if let PolicyWrite::Rows(pod_id, rows) = flip
                && *pod_id != NO_ROOM
                && let Some(known) = known.get(pod_id)
            {
                *rows = *known;
            }
        }
    }

    /// Writes the rows of pods that have moved to another place.
    pub(super) fn write_moved_rows(&mut self, writes: &mut Vec<PolicyWrite>) {
        let mut pods = std::mem::take(&mut self.pods);
        for (name, known) in &mut pods {
            let rows = self.rows_of(&known.policy);
            if rows != known.rows && known.pod_id != NO_ROOM {
                known.rows = rows;
                writes.push(PolicyWrite::Rows(known.pod_id, rows));
            }
            if self.is_closed(&known.policy) || known.pod_id == NO_ROOM {
                self.closed.insert(name.clone());
            } else {
                self.closed.remove(name);
            }
        }
        self.pods = pods;
    }

    pub(super) fn pod(
        &mut self,
        name: &ObjectName,
        policy: Option<&PodPolicy>,
        leaving: &Leaving,
        writes: &mut Vec<PolicyWrite>,
        steps: &mut Steps,
    ) {
        let before = self.pods.remove(name);
        self.closed.remove(name);
        if let Some(policy) = policy {
            for isolation in policy.directions() {
                if let Isolation::Rules(row) = isolation {
                    self.matrix.row(row, writes);
                }
            }
            let rows = self.rows_of(policy);
            let pod_id = before
                .as_ref()
                .map(|known| known.pod_id)
                .filter(|pod_id| *pod_id != NO_ROOM)
                .or_else(|| self.pod_ids.take(&policy.addresses));
            let (pod_id, rows) = pod_id.map_or((NO_ROOM, CLOSED), |pod_id| (pod_id, rows));
            // A node has room for more pods than the kubelet runs. A pod beyond that is reported
            // like one with a policy that cannot be represented.
            if pod_id == NO_ROOM || self.is_closed(policy) {
                self.closed.insert(name.clone());
            }
            if before.as_ref().is_none_or(|known| known.rows != rows) {
                steps.flips.push(PolicyWrite::Rows(pod_id, rows));
            }
            let veth = |policy: &PodPolicy| {
                (
                    policy.device,
                    Veth {
                        pod_id,
                        flags: veth_flags(policy),
                    },
                )
            };
            let same = before
                .as_ref()
                .is_some_and(|known| veth(&known.policy) == veth(policy));
            if policy.device != IfIndex::NONE && !same {
                let (device, veth) = veth(policy);
                steps.flips.push(PolicyWrite::Veth(device, veth));
            }
            self.pods.insert(
                name.clone(),
                Known {
                    pod_id,
                    rows,
                    policy: policy.clone(),
                },
            );
        }
        let Some(known) = before else { return };
        for (direction, isolation) in known.policy.directions().into_iter().enumerate() {
            if let Isolation::Rules(row) = isolation
                && !leaving
                    .get(row)
                    .is_some_and(|pods| pods.contains(&(name.clone(), direction)))
            {
                self.matrix.drop_row(row);
            }
        }
        let gone = policy.is_none_or(|policy| policy.device != known.policy.device);
        let taken = self
            .pods
            .values()
            .any(|other| other.policy.device == known.policy.device);
        if known.policy.device != IfIndex::NONE && gone && !taken {
            steps
                .ends
                .push(PolicyWrite::DeleteVeth(known.policy.device));
        }
        if policy.is_none() && known.pod_id != NO_ROOM {
            self.pod_ids.resting.push(known.pod_id);
        }
    }

    /// Returns the places of a pod's rows.
    pub(super) fn rows_of(&self, policy: &PodPolicy) -> PodRows {
        let row = |isolation: &Isolation| match isolation {
            Isolation::None => Row::OPEN,
            Isolation::Rules(row)
                if self.is_mismatched(row) || self.matrix.differs_on(row, &self.transient) =>
            {
                Row::CLOSED
            }
            Isolation::Rules(row) => self.matrix.where_is(row),
        };
        PodRows {
            ingress: row(&policy.ingress),
            egress: row(&policy.egress),
        }
    }

    /// Returns true if a row has different verdicts on an address's class and on the one that is
    /// found for it instead.
    pub(super) fn is_mismatched(&self, row: &Arc<symbolic::Row>) -> bool {
        self.mismatched
            .iter()
            .any(|(wanted, found)| self.matrix.differs_on(row, [wanted, found]))
    }

    /// Returns true if there is no room for a pod's policies. Then nothing is allowed (P34).
    pub(super) fn is_closed(&self, policy: &PodPolicy) -> bool {
        policy
            .directions()
            .into_iter()
            .any(|isolation| match isolation {
                Isolation::None => false,
                Isolation::Rules(row) => self.is_mismatched(row) || self.matrix.is_closed(row),
            })
    }
}

fn veth_flags(policy: &PodPolicy) -> u32 {
    if policy.any_source {
        Veth::ANY_SOURCE
    } else {
        0
    }
}
