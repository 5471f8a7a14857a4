//! The files that the checks read: the text files that git has, or would add.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::source::Source;
use crate::sh;

/// All text files of the repository, read once.
pub struct Repository {
    /// Text by path, from the workspace's root, with `/`.
    pub texts: BTreeMap<String, String>,
    /// The Rust files and the crates' manifests, in the order of their paths.
    pub sources: Vec<Source>,
}

impl Repository {
    /// Reads the workspace. Files that are not yet added count, so that a person sees a violation
    /// before the commit does. Binary files are left out.
    pub fn read() -> Result<Self> {
        let root = sh::workspace();
        let mut git = Command::new("git");
        git.args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(&root);
        let listed = sh::output(&mut git).context("list the files")?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| is_file(&root, path)) {
            let bytes = fs::read(root.join(path)).with_context(|| format!("read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push((path.to_owned(), text));
            }
        }
        Ok(Self::new(files))
    }

    /// A repository of these files, by path and text.
    pub fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let texts: BTreeMap<String, String> = files.into_iter().collect();
        let is_source = |path: &str| path.ends_with(".rs") || path.ends_with("/Cargo.toml");
        let sources = texts
            .iter()
            .filter(|(path, _)| is_source(path))
            .map(|(path, text)| Source::new(path, text))
            .collect();
        Self { texts, sources }
    }

    /// True if a path names a file, or a directory with files in it.
    pub fn has(&self, path: &str) -> bool {
        let dir = format!("{}/", path.trim_end_matches('/'));
        self.texts.contains_key(path)
            || self
                .texts
                .range(dir.clone()..)
                .next()
                .is_some_and(|(found, _)| found.starts_with(&dir))
    }

    /// The files with one of these endings.
    pub fn ending(&self, endings: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        self.texts
            .iter()
            .filter(move |(path, _)| endings.iter().any(|ending| path.ends_with(ending)))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

fn is_file(root: &Path, path: &str) -> bool {
    !path.is_empty() && root.join(path).is_file()
}

/// A repository for unit tests.
#[cfg(test)]
pub fn repository(files: &[(&str, &str)]) -> Repository {
    let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
    Repository::new(files.iter().map(owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_their_directories_exist() {
        let repository = repository(&[("a/b/c.md", ""), ("a/d.rs", "")]);
        for path in ["a", "a/", "a/b", "a/b/", "a/b/c.md", "a/d.rs"] {
            assert!(repository.has(path), "{path}");
        }
        for path in ["b", "a/b/c", "a/d", "a/d.rs/"] {
            assert!(!repository.has(path), "{path}");
        }
        assert_eq!(repository.sources.len(), 1);
        assert_eq!(repository.ending(&[".md"]).count(), 1);
    }
}
