//! Answers of `portway explain` as text.

use std::fmt;

use super::judge::{Judgement, Outcome, PolicyView};
use super::words::list;
use super::{Answer, Explanation, Tables};

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "Note: {note}.")?;
        }
        let mut before: Vec<String> = Vec::new();
        for connection in &self.connections {
            // The pair of the other family mostly has the same text.
            let text = connection.to_string();
            if !before.contains(&text) {
                let gap = if before.is_empty() && self.notes.is_empty() {
                    ""
                } else {
                    "\n"
                };
                write!(f, "{gap}{text}")?;
                before.push(text);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            allowed,
            egress,
            ingress,
            tables,
            ..
        } = self;
        let verdict = if *allowed { "allowed" } else { "DENIED" };
        let denying: Vec<_> = [egress, ingress]
            .into_iter()
            .filter(|judgement| !judgement.allows())
            .map(sentence)
            .collect();
        match denying.is_empty() {
            true => writeln!(f, "{from} -> {to} is {verdict}.")?,
            false => writeln!(f, "{from} -> {to} is {verdict}: {}.", denying.join("; "))?,
        }
        write!(f, "{egress}{ingress}")?;
        tables
            .as_ref()
            .map_or(Ok(()), |tables| write!(f, "{tables}"))
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            judged,
            disagreements,
        } = self;
        let ends: Vec<_> = judged.iter().map(|side| side.name()).collect();
        match (ends.is_empty(), disagreements.is_empty()) {
            (true, _) => writeln!(
                f,
                "  Tables: neither end is a pod of this node: run this on the node of one of them"
            ),
            (_, true) => writeln!(
                f,
                "  Tables: {} in the kernel of this node gives the same verdict",
                ends.join(" and ")
            ),
            _ => disagreements
                .iter()
                .try_for_each(|what| writeln!(f, "  Tables: {what}")),
        }
    }
}

fn sentence(judgement: &Judgement) -> String {
    let Judgement {
        side, of, policies, ..
    } = judgement;
    let names: Vec<_> = policies.iter().map(|policy| &policy.name).collect();
    let many = if names.len() == 1 {
        "NetworkPolicy"
    } else {
        "NetworkPolicies"
    };
    format!(
        "{} of {of} is isolated by {many} {}, and no rule allows this",
        side.name().to_lowercase(),
        list(&names)
    )
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            side,
            of,
            outcome,
            policies,
        } = self;
        let side = side.name();
        match outcome {
            Outcome::NoPod(what) => writeln!(f, "  {side}: nothing judges here: {what}")?,
            Outcome::NotIsolated => writeln!(
                f,
                "  {side}: allowed: no policy selects {of} for {}",
                side.to_lowercase()
            )?,
            Outcome::OwnNode => writeln!(
                f,
                "  {side}: allowed: a pod's own node may always reach it, as kubelet's probes do"
            )?,
            Outcome::Itself => writeln!(f, "  {side}: allowed: a pod may always reach itself")?,
            Outcome::Allowed { policy, rule } => {
                writeln!(f, "  {side}: allowed by rule {rule} of {policy}")?
            }
            Outcome::Denied => writeln!(f, "  {side}: denied")?,
        }
        policies.iter().try_for_each(|policy| write!(f, "{policy}"))
    }
}

impl fmt::Display for PolicyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rules } = self;
        if rules.is_empty() {
            writeln!(
                f,
                "    {name} has no rule for this direction: it allows nothing"
            )?;
        }
        for rule in rules {
            let verb = if rule.allows {
                "allows it"
            } else {
                "does not match"
            };
            writeln!(
                f,
                "    rule {} of {name} {verb}: {}",
                rule.number,
                rule.because.join("; ")
            )?;
        }
        Ok(())
    }
}
