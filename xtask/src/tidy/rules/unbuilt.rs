//! The rules that may be marked as not built yet: a list that only shrinks.

use std::collections::BTreeSet;

use super::page::{Rule, Unbuilt};
use crate::tidy::violation::Violation;

/// The rules of which a part is not built. Entries are taken away, never added: a rule that is new
/// is built before it is written down.
const IN_PART: &[&str] = &[
    "V3", "V12", "V14", "V16", "V18", "V20", "V23", "V24", "V25", "V26", "P18", "P25", "P26",
    "P33", "P35",
];

/// The rules of which nothing is built. Entries are taken away, or move to [`IN_PART`].
const AS_A_WHOLE: &[&str] = &["V27", "P36"];

/// Returns the differences between the pages' marks and the lists.
pub fn check(rules: &[Rule]) -> Vec<Violation> {
    compare(rules, IN_PART, Unbuilt::Part)
        .chain(compare(rules, AS_A_WHOLE, Unbuilt::Whole))
        .collect()
}

fn compare(rules: &[Rule], listed: &[&str], part: Unbuilt) -> impl Iterator<Item = Violation> {
    let marked = rules.iter().filter(|rule| rule.unbuilt == Some(part));
    let marked: BTreeSet<&str> = marked.map(|rule| rule.number.as_str()).collect();
    let listed: BTreeSet<&str> = listed.iter().copied().collect();
    let added = marked.difference(&listed).map(|number| {
        format!(
            "{number} is marked as not built yet in its page, and may not be: the list only shrinks"
        )
    });
    let left = listed.difference(&marked).map(|number| {
        format!("{number} has no such mark in its page any more: please take it from the list")
    });
    let why: Vec<String> = added.chain(left).collect();
    why.into_iter()
        .map(|why| Violation::new("xtask/src/tidy/rules/unbuilt.rs", 0, why))
}

#[cfg(test)]
mod tests {
    use super::super::page::read;
    use super::*;

    #[test]
    fn the_list_only_shrinks() {
        let page = "### V1 A\n\n- Not built yet: x\n\n### V2 B\n\n- Not built yet, all of it: x\n";
        let rules = read("p.md", page);
        let found = |listed: &[&str]| compare(&rules, listed, Unbuilt::Part).count();
        assert_eq!(found(&["V1"]), 0);
        assert_eq!(found(&[]), 1, "a mark that is new");
        assert_eq!(found(&["V1", "V3"]), 1, "an entry whose rule is built");
        assert_eq!(compare(&rules, &["V2"], Unbuilt::Whole).count(), 0);
    }
}
