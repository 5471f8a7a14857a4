//! What a node's tables say of a connection beside what the objects say: where the agent is in step, both agree.

use super::{Explanation, Judgement, Outcome};
use crate::contents::policies::{Policies, verdict};

/// Where a node's tables and the objects disagree, in words. Only ends that are pods of this node have a say there.
pub fn disagreements(policies: &Policies, connection: &Explanation) -> Vec<String> {
    let Explanation { from_address, to_address, port, egress, ingress, .. } = connection;
    let (Some(from), Some(to)) = (*from_address, *to_address) else { return Vec::new() };
    let held = verdict(policies, from, to, port.protocol, port.number);
    let ends = [(egress, from, held.egress), (ingress, to, held.ingress)];
    let here = ends.into_iter().filter(|(_, addr, _)| policies.pod_at(*addr).is_some());
    here.filter_map(|(judgement, _, held)| disagreement(judgement, held)).collect()
}

fn disagreement(judgement: &Judgement, held: bool) -> Option<String> {
    let Judgement { side, of, outcome, .. } = judgement;
    // What every pod may is decided before the tables are asked (P18, P19).
    let asked = !matches!(outcome, Outcome::OwnNode | Outcome::Itself);
    let [tables, objects] = [held, judgement.allows()].map(|allows| if allows { "allow" } else { "deny" });
    (asked && held != judgement.allows()).then(|| {
        let side = side.name().to_lowercase();
        format!("the tables of this node {tables} this {side} of {of} and the objects {objects} it: the agent is not in step")
    })
}
