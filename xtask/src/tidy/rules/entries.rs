//! Each entry of a page is complete, and the files, items and tests that it names exist.

use std::collections::BTreeSet;

use super::page::{Rule, Unbuilt};
use crate::tidy::repository::Repository;
use crate::tidy::violation::Violation;
use crate::tidy::word::has_word;

/// Returns the gaps and repetitions in a page's numbers, which begin at 1 and go up by one.
pub fn numbering(path: &str, letter: char, rules: &[Rule]) -> Vec<Violation> {
    let mut found = Vec::new();
    if rules.is_empty() {
        found.push(Violation::new(path, 0, "the page has no rules"));
    }
    for (at, rule) in rules.iter().enumerate() {
        let expected = format!("{letter}{}", at + 1);
        if rule.number != expected {
            let why = format!("{} stands where {expected} should", rule.number);
            found.push(Violation::new(path, rule.line, why));
            // All numbers behind would be wrong as well.
            break;
        }
    }
    found
}

/// Returns what is missing in the entries, and what they name that does not exist.
pub fn check(repository: &Repository, rules: &[Rule]) -> Vec<Violation> {
    let tests = tests(repository);
    rules
        .iter()
        .flat_map(|rule| {
            let mut wrong = missing(rule);
            wrong.extend(
                rule.implemented
                    .iter()
                    .filter_map(|place| place_problem(repository, place)),
            );
            let is_there = |name: &&String| tests.contains(name.as_str()) || repository.has(name);
            let absent = rule.shown.iter().filter(|name| !is_there(name));
            wrong.extend(absent.map(|name| format!("there is no test `{name}`")));
            wrong
                .into_iter()
                .map(|why| Violation::new(&rule.path, rule.line, format!("{}: {why}", rule.number)))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The parts that an entry lacks. A rule of which nothing is built has no place and no test.
fn missing(rule: &Rule) -> Vec<String> {
    let is_built = rule.unbuilt != Some(Unbuilt::Whole);
    let parts = [
        (rule.has_text, "text"),
        (rule.has_source, "`Source:`"),
        (
            !is_built || !rule.implemented.is_empty(),
            "`Implemented in:`",
        ),
        (!is_built || !rule.shown.is_empty(), "`Shown by:`"),
    ];
    let absent = parts.into_iter().filter(|(there, _)| !there);
    absent
        .map(|(_, part)| format!("it has no {part}"))
        .collect()
}

/// The reason why `path` or `path::item` does not exist.
fn place_problem(repository: &Repository, place: &str) -> Option<String> {
    let (path, item) = place.split_once("::").unwrap_or((place, ""));
    let Some(text) = repository.texts.get(path) else {
        return Some(format!("there is no file `{path}`"));
    };
    let name = item.rsplit("::").next().unwrap_or_default();
    let declares = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        has_word(code, name)
    };
    (!name.is_empty() && !text.lines().any(declares))
        .then(|| format!("there is no `{name}` in {path}"))
}

/// The names of all functions in tests.
fn tests(repository: &Repository) -> BTreeSet<&str> {
    let lines = repository.sources.iter().flat_map(|source| &source.lines);
    lines
        .filter(|line| line.in_tests)
        .filter_map(|line| line.function())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::page::read;
    use super::*;
    use crate::tidy::repository::repository;

    fn found(page: &str) -> Vec<String> {
        let files = [
            ("a/src/a.rs", "pub fn plan() {}"),
            ("a/tests/b.rs", "fn shows_it<F>() {}"),
            ("a/tests/c.txt", ""),
        ];
        let wrong = check(&repository(&files), &read("p.md", page));
        wrong.into_iter().map(|found| found.why).collect()
    }

    #[test]
    fn a_whole_entry_passes() {
        let page = "### V1 T\n\nText.\n\n- Source: s\n- Implemented in: `a/src/a.rs::plan`, `a/src/a.rs`\n\
            - Shown by: `shows_it`, `a/tests/c.txt`\n";
        assert_eq!(found(page), [""; 0]);
        let unbuilt = "### V1 T\n\nText.\n\n- Source: s\n- Not built yet, all of it: later\n";
        assert_eq!(found(unbuilt), [""; 0]);
    }

    #[test]
    fn what_is_missing_or_does_not_exist_is_named() {
        assert_eq!(
            found("### V1 T\n\n- Not built yet: a part\n"),
            [
                "V1: it has no text",
                "V1: it has no `Source:`",
                "V1: it has no `Implemented in:`",
                "V1: it has no `Shown by:`",
            ]
        );
        let page = "### V1 T\n\nText.\n\n- Source: s\n- Implemented in: `a/src/a.rs::gone`, `a/src/z.rs`\n\
            - Shown by: `plan`\n";
        assert_eq!(
            found(page),
            [
                "V1: there is no `gone` in a/src/a.rs",
                "V1: there is no file `a/src/z.rs`",
                "V1: there is no test `plan`",
            ]
        );
    }

    #[test]
    fn numbers_have_no_gaps() {
        let wrong = |page: &str| numbering("p.md", 'V', &read("p.md", page)).len();
        assert_eq!(wrong("### V1 A\n\n### V2 B\n"), 0);
        assert_eq!(wrong("### V1 A\n\n### V3 B\n"), 1);
        assert_eq!(wrong("### V1 A\n\n### V1 B\n"), 1);
        assert_eq!(wrong(""), 1);
    }
}
