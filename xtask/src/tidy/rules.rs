//! The rules V… and P…: their pages are complete and true, every citation exists, every rule is tested.
//!
//! The pages are `proxy-common/rules/services.md` and `proxy-common/rules/policies.md`. An entry is
//!
//! ```text
//! ### V12 Masquerade address and ports
//!
//! The rule, in a paragraph.
//!
//! - Source: kube-proxy 1.36, or CHOICE or DIFFERS with the reason.
//! - Implemented in: `path/of/file.rs::item`, …
//! - Shown by: `name_of_a_test`, `path/of/a/fixture.txt`, …
//! - Not built yet: what is missing. Or, of the whole rule: "Not built yet, all of it: …".
//! ```

mod cited;
mod entries;
mod named;
mod page;
mod unbuilt;

use super::repository::Repository;
use super::violation::Violation;
use page::Rule;

/// The pages, with the letter of their rules.
const PAGES: [(&str, char); 2] = [
    ("proxy-common/rules/services.md", 'V'),
    ("proxy-common/rules/policies.md", 'P'),
];

/// Returns what is wrong with the pages, with citations, and with rules that no test names.
pub fn check(repository: &Repository) -> Vec<Violation> {
    let mut rules = Vec::new();
    let mut found = Vec::new();
    for (path, letter) in PAGES {
        let Some(text) = repository.texts.get(path) else {
            found.push(Violation::new(path, 0, "the page of rules is missing"));
            continue;
        };
        let of_page = page::read(path, text);
        found.extend(entries::numbering(path, letter, &of_page));
        rules.extend(of_page);
    }
    found.extend(entries::check(repository, &rules));
    found.extend(cited::check(repository, &rules));
    found.extend(named::check(repository, &rules));
    found.extend(unbuilt::check(&rules));
    found
}

/// Returns how many rules there are, and how many of them are not wholly built.
pub fn counts(repository: &Repository) -> (usize, usize) {
    let rules: Vec<Rule> = PAGES
        .iter()
        .filter_map(|(path, _)| Some(page::read(path, repository.texts.get(*path)?)))
        .flatten()
        .collect();
    let unbuilt = rules.iter().filter(|rule| rule.unbuilt.is_some()).count();
    (rules.len(), unbuilt)
}
