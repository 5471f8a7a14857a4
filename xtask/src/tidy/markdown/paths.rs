//! Words in backticks that look like a path of the repository are one.

use std::collections::BTreeSet;

use super::document::Document;
use super::links::resolve;
use crate::tidy::repository::Repository;
use crate::tidy::violation::Violation;
use crate::tidy::word::has_word;

/// Returns the paths in one document that do not exist.
pub fn check(repository: &Repository, path: &str, document: &Document) -> Vec<Violation> {
    let tops: BTreeSet<&str> = repository
        .texts
        .keys()
        .filter_map(|path| Some(path.split_once('/')?.0))
        .collect();
    document
        .code
        .iter()
        .filter(|code| looks_like_a_path(&tops, &code.part))
        .filter_map(|code| {
            let why = problem(repository, &tops, path, &code.part)?;
            Some(Violation::new(path, code.line, why))
        })
        .collect()
}

/// True for words with a slash that begin with a name of the top level, or name a Rust or a
/// Markdown file, and have no blanks and no signs that stand for something else.
fn looks_like_a_path(tops: &BTreeSet<&str>, word: &str) -> bool {
    let Some((first, _)) = word.split_once('/') else {
        return false;
    };
    let file = word.split("::").next().unwrap_or(word);
    let names_a_file = file.ends_with(".rs") || file.ends_with(".md");
    let stands_for_others = |c: char| c.is_whitespace() || "*<>{}$…,|=".contains(c);
    (tops.contains(first) || names_a_file && !word.starts_with('/') && !word.starts_with("target/"))
        && !word.contains(stands_for_others)
        && !word.contains("://")
}

fn problem(
    repository: &Repository,
    tops: &BTreeSet<&str>,
    path: &str,
    word: &str,
) -> Option<String> {
    let (file, item) = word.split_once("::").unwrap_or((word, ""));
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut places = vec![
        resolve(path, file),
        resolve(&format!("{folder}/src/x"), file),
    ];
    if tops.contains(file.split('/').next().unwrap_or_default()) {
        places.insert(0, file.to_owned());
    }
    let Some(place) = places.iter().find(|place| repository.has(place)) else {
        return Some(format!("`{word}`: there is no {}", places[0]));
    };
    let name = item
        .rsplit("::")
        .next()
        .unwrap_or_default()
        .trim_end_matches("()");
    let text = repository.texts.get(place).map_or("", String::as_str);
    (!name.is_empty() && !text.lines().any(|line| has_word(line, name)))
        .then(|| format!("`{word}`: there is no `{name}` in {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::repository::repository;

    fn found(text: &str) -> Vec<String> {
        let files = [
            ("proxy-ebpf/README.md", text),
            ("proxy-ebpf/src/flow/open.rs", "pub fn claim() {}"),
            ("xtask/src/sh.rs", ""),
            (".ci/run", ""),
        ];
        let document = Document::read(text);
        let wrong = check(&repository(&files), "proxy-ebpf/README.md", &document);
        wrong.into_iter().map(|found| found.why).collect()
    }

    #[test]
    fn paths_from_the_root_the_folder_and_its_sources_pass() {
        let text =
            "`xtask/src/` `xtask/src/sh.rs` `src/flow/open.rs::claim` `flow/open.rs` `.ci/run`";
        assert_eq!(found(text), [""; 0]);
    }

    #[test]
    fn other_words_are_not_looked_at() {
        let text = "`shop/web` `/sys/fs/bpf/x.rs` `xtask/src/*.rs` `target/a.rs` `xtask/ x` `a.rs`";
        assert_eq!(found(text), [""; 0]);
    }

    #[test]
    fn paths_and_items_that_do_not_exist_are_named() {
        assert_eq!(
            found("`xtask/src/gone.rs` `flow/gone.rs` `flow/open.rs::gone`"),
            [
                "`xtask/src/gone.rs`: there is no xtask/src/gone.rs",
                "`flow/gone.rs`: there is no proxy-ebpf/flow/gone.rs",
                "`flow/open.rs::gone`: there is no `gone` in proxy-ebpf/src/flow/open.rs",
            ]
        );
    }
}
