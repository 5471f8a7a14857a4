//! The verdicts of a node's tables, compared with the judgement of the objects: where the agent is
//! in step, both agree.

use serde::Serialize;

use super::{Explanation, Judgement, Outcome, Side};
use crate::dataplane::TableVerdicts;

/// The verdicts of a node's tables, compared with the judgement of the objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tables {
    /// The ends that are pods of this node; the tables judge only those.
    pub judged: Vec<Side>,
    /// The differences, in words.
    pub disagreements: Vec<String>,
}

/// Compares a node's tables with the objects.
pub fn compare(verdicts: TableVerdicts, connection: &Explanation) -> Tables {
    let ends = [
        (&connection.egress, verdicts.egress),
        (&connection.ingress, verdicts.ingress),
    ];
    let here: Vec<_> = ends
        .into_iter()
        .filter_map(|(judgement, verdicts)| Some((judgement, verdicts?)))
        .collect();
    Tables {
        judged: here.iter().map(|(judgement, _)| judgement.side).collect(),
        disagreements: here
            .into_iter()
            .filter_map(|(judgement, verdicts)| disagreement(judgement, verdicts))
            .collect(),
    }
}

fn disagreement(judgement: &Judgement, verdicts: bool) -> Option<String> {
    let Judgement {
        side, of, outcome, ..
    } = judgement;
    // The packet path allows these before it reads the tables (P18, P19).
    let asked = !matches!(outcome, Outcome::OwnNode | Outcome::Itself);
    let [tables, objects] =
        [verdicts, judgement.allows()].map(|allows| if allows { "allow" } else { "deny" });
    (asked && verdicts != judgement.allows()).then(|| {
        let side = side.name().to_lowercase();
        format!("the tables of this node {tables} this {side} of {of} and the objects {objects} it: the agent is not in step")
    })
}
