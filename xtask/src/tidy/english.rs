//! Plain English: doc lines say what a thing is or does, and do not begin as riddles.

use super::repository::Repository;
use super::violation::Violation;

/// Doc lines that begin so leave out the verb, and the reader has to guess it.
const RIDDLES: [&str; 5] = ["What", "Whether", "The same", "How often", "Whose"];

/// One doc line in so many may begin as a riddle.
const ONE_IN: usize = 50;

/// The number of files that are printed.
const WORST: usize = 10;

/// The doc lines of the repository.
pub struct English {
    /// Lines of documentation that are not empty.
    pub lines: usize,
    /// Those of them that begin as riddles.
    pub riddles: usize,
    /// The files with the most of them, with their number.
    pub worst: Vec<(String, usize)>,
}

/// Counts the doc lines of all Rust files.
pub fn count(repository: &Repository) -> English {
    let (mut lines, mut riddles, mut worst) = (0, 0, Vec::new());
    for (path, text) in repository.ending(&[".rs"]) {
        let docs: Vec<&str> = text.lines().filter_map(doc).collect();
        let of_file = docs.iter().filter(|line| is_riddle(line)).count();
        lines += docs.len();
        riddles += of_file;
        if of_file > 0 {
            worst.push((path.to_owned(), of_file));
        }
    }
    worst.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    worst.truncate(WORST);
    English {
        lines,
        riddles,
        worst,
    }
}

/// Returns the worst files if too many doc lines begin as riddles.
pub fn check(english: &English) -> Vec<Violation> {
    if english.riddles * ONE_IN <= english.lines {
        return Vec::new();
    }
    let why = |number: usize| {
        format!(
            "{number} doc lines begin with {}: say what the item is or does",
            RIDDLES.join(", ")
        )
    };
    english
        .worst
        .iter()
        .map(|(path, number)| Violation::new(path, 0, why(*number)))
        .collect()
}

/// The text of a doc line that is not empty.
fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line
        .strip_prefix("///")
        .or_else(|| line.strip_prefix("//!"))?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

fn is_riddle(text: &str) -> bool {
    let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
    RIDDLES
        .iter()
        .any(|riddle| text.strip_prefix(riddle).is_some_and(is_end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::repository::repository;

    fn english(riddles: usize, others: usize) -> English {
        let riddle = "    /// Whether it is.\n".repeat(riddles);
        let other = "//! Whatever it is.\n///\n// What\n".repeat(others);
        count(&repository(&[
            ("a.rs", &riddle),
            ("b.rs", &other),
            ("c.md", "/// What"),
        ]))
    }

    #[test]
    fn riddles_are_counted_in_doc_lines_only() {
        let found = english(2, 3);
        assert_eq!((found.lines, found.riddles), (5, 2));
        assert_eq!(found.worst, [("a.rs".to_owned(), 2)]);
    }

    #[test]
    fn one_in_fifty_is_enough() {
        assert!(check(&english(1, 49)).is_empty());
        assert_eq!(check(&english(2, 49)).len(), 1);
    }
}
