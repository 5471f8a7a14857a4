//! The design's invariants as absences: words that only some files may have.

mod table;

use super::repository::Repository;
use super::source::{Line, Source};
use super::violation::Violation;
use super::word::has_word;
use table::{CONFINED, Confined, Tests};

/// Returns the lines that have a word outside its home, and the table's entries that no file uses.
pub fn check(repository: &Repository) -> Vec<Violation> {
    let mut found: Vec<Violation> = repository
        .sources
        .iter()
        .flat_map(outside_its_home)
        .collect();
    for rule in CONFINED {
        found.extend(unused(rule, repository));
    }
    found
}

fn outside_its_home(source: &Source) -> Vec<Violation> {
    CONFINED
        .iter()
        .filter(|rule| !begins_with(source, rule.home))
        .flat_map(|rule| {
            uses(rule, source).map(|(line, word)| {
                let why = format!("`{word}` breaks {}: {}", rule.rule, rule.why);
                Violation::new(&source.path, line, why)
            })
        })
        .collect()
}

/// The unused entries of a rule: a permit that was left behind when files moved would hide the
/// next violation.
fn unused(rule: &Confined, repository: &Repository) -> Vec<Violation> {
    let is_used = |home: &str| {
        let below = repository
            .sources
            .iter()
            .filter(|source| source.path.starts_with(home));
        below
            .into_iter()
            .any(|source| uses(rule, source).next().is_some())
    };
    let matches = |scope: &str| {
        repository
            .sources
            .iter()
            .any(|source| source.path.starts_with(scope))
    };
    let complaint = |why: String| Violation::new(TABLE, 0, format!("{}: {why}", rule.rule));
    let homes = rule.home.iter().filter(|home| !is_used(home));
    let scopes = rule.scope.iter().filter(|scope| !matches(scope));
    homes
        .map(|home| complaint(format!("no line under `{home}` uses {:?}", rule.words)))
        .chain(scopes.map(|scope| complaint(format!("no file is under `{scope}`"))))
        .collect()
}

/// The file of the table, for messages.
const TABLE: &str = "xtask/src/tidy/absences/table.rs";

/// The lines of a file in the rule's scope that have one of its words, counted from 1.
fn uses(rule: &Confined, source: &Source) -> impl Iterator<Item = (usize, &'static str)> {
    let lines: &[Line] = if begins_with(source, rule.scope) && source.path.ends_with(".rs") {
        &source.lines
    } else {
        &[]
    };
    lines.iter().enumerate().filter_map(|(at, line)| {
        if rule.tests == Tests::Free && line.in_tests || is_exempt(rule, line) {
            return None;
        }
        let word = rule.words.iter().find(|word| has_word(&line.code, word))?;
        Some((at + 1, *word))
    })
}

fn begins_with(source: &Source, prefixes: &[&str]) -> bool {
    prefixes
        .iter()
        .any(|prefix| source.path.starts_with(prefix))
}

/// True where the one trait of plain bytes is implemented for headers, and for names and lints
/// that begin with `unsafe_`.
fn is_exempt(rule: &Confined, line: &Line) -> bool {
    rule.rule == "invariant 4 (headers)" && line.code.starts_with("unsafe impl Wire for ")
        || rule.rule == "invariant 7" && line.code.contains("unsafe_")
}

#[cfg(test)]
mod tests;
