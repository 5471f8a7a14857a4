//! Each rule of the Services' semantics has a test that names it: `fn v7_…`, or its number in a test's comment or a fixture's heading.

use super::source::{Line, Source};

/// The rules that are in force. V19 and V21 belong to socket hooks, which are not there yet.
const IN_FORCE: [u8; 22] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 23, 24,
];

/// The rules that no test and no fixture names. A fixture's heading is what stands before its first section.
pub fn unnamed(sources: &[Source], fixtures: &[String]) -> Vec<String> {
    let lines = sources
        .iter()
        .flat_map(|source| &source.lines)
        .filter(|line| line.in_tests);
    let named: Vec<&str> = lines.flat_map(names).collect();
    let headings: Vec<&str> = fixtures
        .iter()
        .filter_map(|text| text.split("\n-- ").next())
        .collect();
    let is_named = |number: &u8| {
        let function = format!("v{number}_");
        named
            .iter()
            .any(|text| text.starts_with(&function) || has_number(text, *number))
            || headings.iter().any(|text| has_number(text, *number))
    };
    IN_FORCE
        .iter()
        .filter(|number| !is_named(number))
        .map(|number| format!("V{number}"))
        .collect()
}

/// Where a line of a test may name a rule: its comment, and the name of a function.
fn names(line: &Line) -> Vec<&str> {
    let comment = line.text.split_once("//").map(|(_, comment)| comment);
    let function = line.code.trim_start().strip_prefix("fn ");
    comment.into_iter().chain(function).collect()
}

/// Whether a text has the rule's number as a word.
fn has_number(text: &str, number: u8) -> bool {
    let word = format!("V{number}");
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_comments_and_headings_name_rules_and_types_do_not() {
        let test = "mod a;\n#[cfg(test)]\nmod tests {\n    /// V12: ports.\n    fn v3_ranges() {}\n    let a = V6::new();\n}\n";
        let sources = [
            Source::new("a/src/lib.rs", test),
            Source::new("a/src/b.rs", "/// V9\nfn v10_x() {}\n"),
        ];
        let missing = unnamed(
            &sources,
            &["V1, V2: objects.\n-- objects --\nV4\n".to_owned()],
        );
        let is_missing = |rule: &str| missing.iter().any(|found| found == rule);
        assert!(
            ["V1", "V2", "V3", "V12"]
                .iter()
                .all(|rule| !is_missing(rule)),
            "{missing:?}"
        );
        assert!(
            ["V4", "V6", "V9", "V10"]
                .iter()
                .all(|rule| is_missing(rule)),
            "{missing:?}"
        );
    }
}
