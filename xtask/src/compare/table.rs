//! Prints the comparison: a table for each Service, and one of its own for what is not judged yet.

use comfy_table::{ContentArrangement, Table, presets};

use super::outcome::Outcome;
use super::rows::{Protocol, Row};
use super::rules::{INTENDED, Verdict};
use super::scene::{SERVICES, Service};

/// A row with what came of it on both sides, and what that means.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The question.
    pub row: Row,
    /// kube-proxy's outcome.
    pub kube_proxy: Outcome,
    /// Portway's outcome.
    pub portway: Outcome,
    /// The comparison.
    pub verdict: Verdict,
}

/// Number of rows by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Rows with the same outcome on both sides.
    pub same: usize,
    /// Different as a rule wants.
    pub intended: usize,
    /// Not what the rules make of kube-proxy's outcome.
    pub wrong: usize,
}

/// All tables, the list of intended differences and the sums.
pub fn report(all: &[Compared]) -> String {
    let mut text = String::new();
    for service in &SERVICES {
        let rows: Vec<&Compared> = all
            .iter()
            .filter(|compared| compared.row.service == service)
            .collect();
        text += &section(&heading(service), &rows);
    }
    text + &intended(all) + &sums(all).to_string() + "\n"
}

/// Counts.
pub fn sums(all: &[Compared]) -> Sums {
    let count =
        |is: fn(&Verdict) -> bool| all.iter().filter(|compared| is(&compared.verdict)).count();
    Sums {
        same: count(|verdict| *verdict == Verdict::Same),
        intended: count(|verdict| matches!(verdict, Verdict::Intended(_))),
        wrong: count(|verdict| matches!(verdict, Verdict::Wrong(_))),
    }
}

fn heading(service: &Service) -> String {
    let Service {
        name,
        backends,
        external,
        internal,
        ranges,
        number: _,
    } = service;
    format!(
        "Service {name}: backends {backends:?}, externalTrafficPolicy {external:?}, internalTrafficPolicy {internal:?}, ranges {ranges:?}"
    )
}

fn section(heading: &str, rows: &[&Compared]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["SERVICE", "FROM", "TO", "BY", "KUBE-PROXY", "PORTWAY", ""]);
    for group in alike(rows) {
        let Compared {
            row,
            kube_proxy,
            portway,
            verdict,
        } = group[0];
        let cells = [
            row.service.name.to_owned(),
            row.client.to_string(),
            row.target.to_string(),
            variants(&group),
        ];
        table.add_row(cells.into_iter().chain([
            kube_proxy.to_string(),
            portway.to_string(),
            remark(verdict),
        ]));
    }
    let lines: String = table
        .to_string()
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    format!("{heading}\n{lines}\n")
}

/// Rows that differ by family and protocol only, in one line.
fn alike<'a>(rows: &[&'a Compared]) -> Vec<Vec<&'a Compared>> {
    let mut groups: Vec<Vec<&Compared>> = Vec::new();
    for compared in rows {
        match groups.iter_mut().find(|group| is_alike(group[0], compared)) {
            Some(group) => group.push(compared),
            None => groups.push(vec![compared]),
        }
    }
    groups
}

fn is_alike(a: &Compared, b: &Compared) -> bool {
    let question = |c: &Compared| (c.row.service, c.row.client, c.row.target);
    question(a) == question(b)
        && a.kube_proxy == b.kube_proxy
        && a.portway == b.portway
        && a.verdict == b.verdict
}

/// The protocols, with the family where it is one only.
fn variants(group: &[&Compared]) -> String {
    let name = |protocol: Protocol| {
        let mut families = group
            .iter()
            .filter(|compared| compared.row.protocol == protocol)
            .map(|compared| compared.row.family);
        let name = match (families.next()?, families.next()) {
            (one, None) => format!("{protocol:?}/{one:?}"),
            (_, Some(_)) => format!("{protocol:?}"),
        };
        Some(name.to_lowercase())
    };
    Protocol::ALL
        .into_iter()
        .filter_map(name)
        .collect::<Vec<_>>()
        .join(" ")
}

fn remark(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Same => String::new(),
        Verdict::Intended(numbers) => format!("differs: {}", numbers.join(", ")),
        Verdict::Wrong(right) => format!("WRONG, not {right}"),
    }
}

fn intended(all: &[Compared]) -> String {
    let uses = |number: &str| {
        all.iter().filter(|compared| matches!(&compared.verdict, Verdict::Intended(by) if by.contains(&number))).count()
    };
    let lines = INTENDED.iter().map(|rule| {
        format!(
            "  {}: {} ({} rows)\n",
            rule.number,
            rule.difference,
            uses(rule.number)
        )
    });
    format!("Intended differences:\n{}\n", lines.collect::<String>())
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            same,
            intended,
            wrong,
        } = self;
        write!(
            f,
            "{same} rows the same, {intended} differ as intended, {wrong} wrong"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::outcome::End;
    use crate::compare::rows::{Extent, rows};

    #[test]
    fn every_row_is_printed_and_counted() {
        let refused = Outcome::only(End::Refused);
        let timed_out = Outcome::only(End::TimedOut);
        let compared = |row: Row| {
            let verdict = Verdict::Wrong(refused.clone());
            Compared {
                row,
                kube_proxy: refused.clone(),
                portway: timed_out.clone(),
                verdict,
            }
        };
        let all: Vec<Compared> = rows(Extent::Full).into_iter().map(compared).collect();
        let text = report(&all);
        let questions: Vec<_> = all
            .iter()
            .map(|Compared { row, .. }| (row.service, row.client, row.target))
            .collect();
        let lines = questions
            .iter()
            .enumerate()
            .filter(|(at, question)| !questions[..*at].contains(question))
            .count();
        assert_eq!(text.matches("WRONG, not refused").count(), lines);
        assert_eq!(sums(&all).wrong, all.len());
        assert!(
            SERVICES
                .iter()
                .all(|service| text.contains(&heading(service)))
        );
    }
}
