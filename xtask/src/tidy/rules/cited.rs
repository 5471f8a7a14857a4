//! Every rule that is cited exists: as a word in any text (`V12`), or in the name of a function
//! (`v12_…`, `…_p31_…`).

use std::collections::BTreeSet;

use super::page::{Rule, is_number};
use crate::tidy::repository::Repository;
use crate::tidy::violation::Violation;

/// Endings of the files that are searched; files without an ending are, too.
const ENDINGS: [&str; 9] = [
    ".rs", ".md", ".yaml", ".yml", ".sh", ".txt", ".toml", ".go", ".json",
];

/// Returns the citations of rules that no page has.
pub fn check(repository: &Repository, rules: &[Rule]) -> Vec<Violation> {
    let known: BTreeSet<&str> = rules.iter().map(|rule| rule.number.as_str()).collect();
    let mut found = Vec::new();
    for (path, text) in &repository.texts {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.contains('.') && !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            let unknown = words(line).filter(|word| !known.contains(word));
            found.extend(unknown.map(|word| unknown_rule(path, at + 1, word)));
        }
    }
    for source in &repository.sources {
        for (at, line) in source.lines.iter().enumerate() {
            let in_name = line.function().map(in_name).unwrap_or_default();
            let unknown = in_name.iter().filter(|word| !known.contains(word.as_str()));
            found.extend(unknown.map(|word| unknown_rule(&source.path, at + 1, word)));
        }
    }
    found
}

fn unknown_rule(path: &str, line: usize, word: &str) -> Violation {
    Violation::new(
        path,
        line,
        format!("cites {word}, which is in no page of proxy-common/rules"),
    )
}

/// The numbers in a line of text that stand as whole words.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| is_number(word))
}

/// The numbers in the name of a function, from its beginning on: `p1_p28_x` names two, `p99_of` one,
/// and `x_v6_y` none, since families and percentiles stand in the middle of names, too.
pub fn in_name(name: &str) -> Vec<String> {
    let words = name.split('_').map(str::to_ascii_uppercase);
    let mut numbers = Vec::new();
    let mut is_leading = true;
    for (word, part) in words.zip(name.split('_')) {
        let is_rule = is_number(&word) && part != word;
        // `p25_replies_pass_and_p30_stop`: a rule may be named again where one leads.
        if is_rule && (is_leading || !numbers.is_empty()) {
            numbers.push(word);
        }
        is_leading = is_leading && is_rule;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::page::read;
    use super::*;
    use crate::tidy::repository::repository;

    /// A number that no page has, put together so that this file does not cite it.
    fn unknown(letter: char) -> String {
        format!("{letter}{}", 99)
    }

    fn found(path: &str, text: &str) -> Vec<usize> {
        let rules = read("p.md", "### V1 A\n\n### P1 B\n");
        let wrong = check(&repository(&[(path, text)]), &rules);
        wrong.iter().map(|found| found.line).collect()
    }

    #[test]
    fn citations_of_unknown_rules_are_found_in_all_kinds_of_files() {
        for path in ["a.rs", "a.md", "a.yaml", "a.sh", ".ci/run"] {
            let text = format!("V1, P1\n# ({})\n", unknown('V'));
            assert_eq!(found(path, &text), [2], "{path}");
        }
        assert_eq!(found("a.svg", &unknown('V')), [0; 0]);
        assert_eq!(found("a.md", &format!("x{}", unknown('V'))), [0; 0]);
        assert_eq!(found("a.md", &format!("{}_1", unknown('V'))), [0; 0]);
    }

    #[test]
    fn names_of_functions_cite_rules() {
        let function = |name: &str| found("a/src/a.rs", &format!("fn {name}() {{}}"));
        let of_v = unknown('V').to_lowercase();
        assert_eq!(function(&format!("{of_v}_x")), [1]);
        assert_eq!(function(&format!("v1_x_and_{of_v}_y")), [1]);
        assert_eq!(function("v1_x"), [0; 0]);
        assert_eq!(function(&format!("load_{of_v}")), [0; 0]);
    }

    #[test]
    fn a_name_cites_rules_from_its_beginning_on() {
        assert_eq!(in_name("p1_p28_x"), ["P1", "P28"]);
        assert_eq!(in_name("p25_pass_and_p30_stop"), ["P25", "P30"]);
        assert_eq!(in_name("runs_on_v6_only"), [""; 0]);
    }
}
