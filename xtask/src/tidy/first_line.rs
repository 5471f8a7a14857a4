//! Every Rust file begins with a `//!` sentence that names what it owns.

use super::source::Source;
use super::violation::Violation;

/// Returns a violation if the file has no such sentence.
pub fn check(source: &Source) -> Option<Violation> {
    let is_documented = source
        .lines
        .first()
        .is_some_and(|line| line.text.starts_with("//! ") && line.text.len() > 20);
    let why = "the file does not begin with a `//!` sentence that names what it owns";
    (source.path.ends_with(".rs") && !is_documented).then(|| Violation::new(&source.path, 1, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_sentence_is_found() {
        let found = |text: &str| check(&Source::new("xtask/src/sh.rs", text)).is_some();
        assert!(found("use std::fs;\n"));
        assert!(found("//! Short.\n"));
        assert!(found(""));
        assert!(!found("//! Starts other programs.\nuse std::fs;\n"));
        assert!(check(&Source::new("xtask/Cargo.toml", "[package]")).is_none());
    }
}
