//! No reference to a line of a file: the next edit would make it wrong.

use super::document::{At, Document};
use crate::tidy::violation::Violation;

/// Endings of the files that documents refer to.
const ENDINGS: [&str; 8] = [
    ".rs", ".md", ".yaml", ".toml", ".sh", ".go", ".txt", ".json",
];

/// Returns the references with a line number, in prose and in backticks.
pub fn check(path: &str, document: &Document) -> Vec<Violation> {
    let parts = document.prose.iter().chain(&document.code);
    parts
        .filter(|part| has_line_number(part))
        .map(|part| {
            let why = format!("`{}` has a line number: name an item", part.part.trim());
            Violation::new(path, part.line, why)
        })
        .collect()
}

fn has_line_number(part: &At<String>) -> bool {
    ENDINGS.iter().any(|ending| {
        let digit_follows = |(at, found): (usize, &str)| {
            part.part[at + found.len()..]
                .strip_prefix(':')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        part.part.match_indices(ending).any(digit_follows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_numbers_are_found_in_prose_and_in_backticks() {
        let found = |text: &str| check("a.md", &Document::read(text)).len();
        assert_eq!(found("See src/a.rs:12 and `b.yaml:3`."), 2);
        assert_eq!(found("`src/a.rs::item`, a.rs: 12, 10.0.0.1:80"), 0);
        assert_eq!(found("```text\na.rs:12: a message\n```"), 0);
    }
}
