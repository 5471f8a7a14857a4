//! Each rule is named by a test: by the name of a test function, in a comment of a test, or in the
//! heading of a fixture.

use std::collections::BTreeSet;

use super::cited::{in_name, words};
use super::page::{Rule, Unbuilt};
use crate::tidy::repository::Repository;
use crate::tidy::source::Line;
use crate::tidy::violation::Violation;

/// Files that open with a heading for people, before their first section.
const FIXTURES: &str = "proxy-userspace/";

/// Returns the rules that no test names, and those that are marked as not built at all although a
/// test names them: that mark is to go, so that fewer and fewer rules have one.
pub fn check(repository: &Repository, rules: &[Rule]) -> Vec<Violation> {
    let named = named(repository);
    rules
        .iter()
        .filter_map(|rule| {
            let is_unbuilt = rule.unbuilt == Some(Unbuilt::Whole);
            let why = match (named.contains(&rule.number), is_unbuilt) {
                (true, false) | (false, true) => return None,
                (false, false) => "no test names it",
                (true, true) => "a test names it, so not all of it is unbuilt",
            };
            let why = format!("{}: {why}", rule.number);
            Some(Violation::new(&rule.path, rule.line, why))
        })
        .collect()
}

fn named(repository: &Repository) -> BTreeSet<String> {
    let own = |path: &str| path.starts_with("xtask/src/tidy");
    let lines = repository
        .sources
        .iter()
        .filter(|source| !own(&source.path))
        .flat_map(|source| &source.lines)
        .filter(|line| line.in_tests);
    let mut named: BTreeSet<String> = lines.flat_map(of_line).collect();
    let fixtures = repository
        .ending(&[".txt"])
        .filter(|(path, _)| path.starts_with(FIXTURES) && path.contains("/fixtures/"));
    for (_, text) in fixtures {
        let heading = text.split("\n-- ").next().unwrap_or_default();
        named.extend(heading.lines().flat_map(words).map(str::to_owned));
    }
    named
}

fn of_line(line: &Line) -> Vec<String> {
    let mut numbers = line.function().map(in_name).unwrap_or_default();
    let comment = line.comment().unwrap_or_default();
    numbers.extend(words(comment).map(str::to_owned));
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::page::read;
    use super::*;
    use crate::tidy::repository::repository;

    fn found(page: &str) -> Vec<String> {
        let tests = "#[cfg(test)]\nmod tests {\n    /// V2: ports.\n    fn v1_ranges() {}\n    let a = V4;\n}\n";
        let files = [
            ("a/src/a.rs", "/// V4\nfn v4_x() {}\n"),
            ("a/src/b.rs", tests),
            (
                "proxy-userspace/tests/fixtures/c.txt",
                "V3\n-- objects --\nV4\n",
            ),
        ];
        let wrong = check(&repository(&files), &read("p.md", page));
        wrong.into_iter().map(|found| found.why).collect()
    }

    #[test]
    fn functions_comments_and_headings_name_rules_and_types_do_not() {
        assert_eq!(
            found("### V1 A\n\n### V2 B\n\n### V3 C\n\n### V4 D\n"),
            ["V4: no test names it"]
        );
    }

    #[test]
    fn a_mark_for_a_whole_rule_goes_once_a_test_names_it() {
        let mark = "- Not built yet, all of it: later";
        assert_eq!(
            found(&format!("### V1 A\n\n{mark}\n\n### V4 D\n\n{mark}\n")),
            ["V1: a test names it, so not all of it is unbuilt"]
        );
    }
}
