//! Relative links lead to a file, and their anchors to a heading.

use std::collections::BTreeMap;

use super::document::Document;
use crate::tidy::repository::Repository;
use crate::tidy::violation::Violation;

/// Returns the links of one document that lead nowhere. Links to the web are not followed.
pub fn check(
    repository: &Repository,
    documents: &BTreeMap<&str, Document>,
    path: &str,
) -> Vec<Violation> {
    let links = documents
        .get(path)
        .map_or(&[][..], |document| &document.links);
    links
        .iter()
        .filter(|link| !is_web(&link.part))
        .filter_map(|link| {
            let why = problem(repository, documents, path, &link.part)?;
            Some(Violation::new(path, link.line, why))
        })
        .collect()
}

fn is_web(link: &str) -> bool {
    link.contains("://") || link.starts_with("mailto:")
}

fn problem(
    repository: &Repository,
    documents: &BTreeMap<&str, Document>,
    path: &str,
    link: &str,
) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() {
        path.to_owned()
    } else {
        resolve(path, file)
    };
    if !target.is_empty() && !repository.has(&target) {
        return Some(format!(
            "the link `{link}` leads to no file: there is no {target}"
        ));
    }
    let document = documents.get(target.as_str())?;
    let is_heading = anchor.is_empty() || document.anchors.iter().any(|found| found == anchor);
    (!is_heading).then(|| format!("the link `{link}` leads to no heading of {target}"))
}

/// The path of a link in the file at `from`; one that begins with `/` is seen from the root.
pub fn resolve(from: &str, link: &str) -> String {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut parts: Vec<&str> = Vec::new();
    let base = if link.starts_with('/') { "" } else { folder };
    for part in base.split('/').chain(link.split('/')) {
        match part {
            "" | "." => {}
            // Beyond the root nothing exists: the part stays and finds no file.
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::repository::repository;

    fn found(text: &str) -> Vec<String> {
        let files = [
            ("README.md", "# Portway\n"),
            ("deploy/docs/a.md", text),
            ("deploy/docs/b.md", "## Path of a packet\n"),
            ("deploy/portway.yaml", ""),
        ];
        let repository = repository(&files);
        let documents = repository
            .ending(&[".md"])
            .map(|(path, text)| (path, Document::read(text)))
            .collect();
        let wrong = check(&repository, &documents, "deploy/docs/a.md");
        wrong.into_iter().map(|found| found.why).collect()
    }

    #[test]
    fn links_to_files_folders_and_headings_pass() {
        let text = "# Here\n[a](b.md) [b](b.md#path-of-a-packet) [c](#here) [d](../portway.yaml)\n\
            [e](/README.md#portway) [f](..) [g](https://x.org/y.md#z) ![h](../../README.md)";
        assert_eq!(found(text), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_named() {
        assert_eq!(
            found("[a](c.md) [b](b.md#gone) [c](#gone) [d](../../../x.md)"),
            [
                "the link `c.md` leads to no file: there is no deploy/docs/c.md",
                "the link `b.md#gone` leads to no heading of deploy/docs/b.md",
                "the link `#gone` leads to no heading of deploy/docs/a.md",
                "the link `../../../x.md` leads to no file: there is no ../x.md",
            ]
        );
    }
}
