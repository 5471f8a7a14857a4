//! The Markdown of the repository: links and paths lead somewhere, and tests run the commands.
//!
//! - Relative links and images lead to a file, and to a heading of it where they have an anchor.
//! - No reference has a line number (`file.rs` and a colon and a number): a path, or `path::item`.
//! - Words in backticks that look like a path of the repository are one.
//! - Each command in a fenced block `console`, `sh`, `bash` or `shell` is in the table
//!   `xtask/src/tidy/commands.txt`, with the test or step that runs it, or its block is marked:
//!   ```` ```console not-tested: needs a cluster ````. A `console` block has commands behind `$ ` or
//!   `# ` and what they print; in the others each line is a command or begins with `#`.

mod commands;
mod document;
mod line_numbers;
mod links;
mod paths;

use std::collections::BTreeMap;

use super::repository::Repository;
use super::violation::Violation;
use document::Document;

/// Returns what is wrong with the Markdown files.
pub fn check(repository: &Repository) -> Vec<Violation> {
    let documents: BTreeMap<&str, Document> = repository
        .ending(&[".md"])
        .map(|(path, text)| (path, Document::read(text)))
        .collect();
    let mut found = Vec::new();
    for (path, document) in &documents {
        found.extend(links::check(repository, &documents, path));
        found.extend(line_numbers::check(path, document));
        found.extend(paths::check(repository, path, document));
    }
    found.extend(commands::check(repository, &documents));
    found
}
