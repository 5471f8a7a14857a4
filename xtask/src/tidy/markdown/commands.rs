//! Each command in a document is run by a test or a step, or its block is marked with the reason.
//!
//! The table is `xtask/src/tidy/commands.txt`, one command a line: `command | name of a test`,
//! `command | .ci/run` or `command | xtask test: name of a step`. `…` there stands for any words.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{At, Block, Document};
use crate::tidy::repository::Repository;
use crate::tidy::violation::Violation;

/// The table of commands that are run.
const TABLE: &str = "xtask/src/tidy/commands.txt";

/// Marks a block of commands that no test runs; the reason follows.
const MARK: &str = "not-tested";

/// Returns the commands that are neither run nor marked, and the table's wrong rows.
pub fn check(repository: &Repository, documents: &BTreeMap<&str, Document>) -> Vec<Violation> {
    let Some(table) = repository.texts.get(TABLE) else {
        return vec![Violation::new(TABLE, 0, "the table of commands is missing")];
    };
    let mut found = Vec::new();
    let rows = rows(table, &mut found);
    found.extend(rows.iter().filter_map(|row| row.problem(repository)));
    let mut used = BTreeSet::new();
    for (path, document) in documents {
        for block in &document.blocks {
            let commands = match of_block(block) {
                Ok(commands) => commands,
                Err(why) => {
                    found.push(Violation::new(path, block.line, why));
                    continue;
                }
            };
            for command in commands {
                match rows.iter().find(|row| row.matches(&command.part)) {
                    Some(row) => drop(used.insert(row.line)),
                    None => found.push(Violation::new(path, command.line, not_run(&command.part))),
                }
            }
        }
    }
    let unused = rows.iter().filter(|row| !used.contains(&row.line));
    found.extend(unused.map(|row| {
        let why = format!("no document has the command `{}`", row.command);
        Violation::new(TABLE, row.line, why)
    }));
    found
}

fn not_run(command: &str) -> String {
    format!(
        "no test runs `{command}`: add it to {TABLE} with the test that does, or mark the block \
         (```console {MARK}: reason)"
    )
}

/// A command of the table.
struct Row<'a> {
    line: usize,
    command: &'a str,
    run_by: &'a str,
}

fn rows<'a>(table: &'a str, found: &mut Vec<Violation>) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (at, text) in table.lines().enumerate() {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match text.rsplit_once(" | ") {
            Some((command, run_by)) => rows.push(Row {
                line: at + 1,
                command: command.trim(),
                run_by: run_by.trim(),
            }),
            None => found.push(Violation::new(TABLE, at + 1, "expected `command | test`")),
        }
    }
    rows
}

impl Row<'_> {
    /// True if the words of a command are those of the row.
    fn matches(&self, command: &str) -> bool {
        let pattern: Vec<&str> = self.command.split_whitespace().collect();
        let words: Vec<&str> = command.split_whitespace().collect();
        matches(&pattern, &words)
    }

    /// The reason why the row's test or step does not exist.
    fn problem(&self, repository: &Repository) -> Option<Violation> {
        let text = |path: &str| repository.texts.get(path).map_or("", String::as_str);
        let is_there = if self.run_by == ".ci/run" {
            self.command == ".ci/run" || text(".ci/run").contains(self.command)
        } else if let Some(step) = self.run_by.strip_prefix("xtask test: ") {
            text("xtask/src/test.rs").contains(&format!("\"{step}\""))
        } else {
            let sources = repository.sources.iter();
            let mut lines = sources.flat_map(|source| &source.lines);
            lines.any(|line| line.in_tests && line.function() == Some(self.run_by))
        };
        let why = format!("`{}`: there is no `{}`", self.command, self.run_by);
        (!is_there).then(|| Violation::new(TABLE, self.line, why))
    }
}

/// True if words are those of a pattern; `…` stands for any number of them.
fn matches(pattern: &[&str], words: &[&str]) -> bool {
    match (pattern, words) {
        ([], []) => true,
        (["…", rest @ ..], _) => {
            (0..=words.len()).any(|skipped| matches(rest, &words[skipped..]))
        }
        ([first, rest @ ..], [word, words @ ..]) => first == word && matches(rest, words),
        _ => false,
    }
}

/// The commands of a block, with their lines; none where it is marked, or has none.
fn of_block(block: &At<Block>) -> Result<Vec<At<String>>, String> {
    let info = block.part.info.as_str();
    let (language, mark) = info.split_once(' ').unwrap_or((info, ""));
    if !["console", "sh", "bash", "shell"].contains(&language) {
        return Ok(Vec::new());
    }
    if let Some(rest) = mark.trim().strip_prefix(MARK) {
        let reason = rest.strip_prefix(':').unwrap_or_default().trim();
        return if reason.is_empty() {
            Err(format!("`{MARK}` has no reason: {MARK}: why"))
        } else {
            Ok(Vec::new())
        };
    }
    Ok(commands(block, language == "console"))
}

fn commands(block: &At<Block>, has_prompt: bool) -> Vec<At<String>> {
    let mut commands: Vec<At<String>> = Vec::new();
    let mut goes_on = false;
    for (at, text) in block.part.text.lines().enumerate() {
        let command = match (goes_on, has_prompt) {
            (true, _) => Some(text),
            (false, true) => text.strip_prefix("$ ").or_else(|| text.strip_prefix("# ")),
            (false, false) => Some(text).filter(|text| !text.trim_start().starts_with('#')),
        };
        let Some(command) = command else { continue };
        let command = command.split("  #").next().unwrap_or(command).trim();
        let (command, continues) = match command.strip_suffix('\\') {
            Some(command) => (command.trim(), true),
            None => (command, false),
        };
        match commands.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.part.push(' ');
                last.part.push_str(command);
            }
            None if command.is_empty() => {}
            None => commands.push(At {
                line: block.line + at + 1,
                part: without_environment(command),
            }),
        }
        goes_on = continues;
    }
    commands
}

/// The command without `sudo` and settings of variables before it.
fn without_environment(command: &str) -> String {
    let is_setting = |word: &&str| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        *word == "sudo" || !name.is_empty() && is_name
    };
    let words: Vec<&str> = command.split_whitespace().skip_while(is_setting).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::repository::repository;

    const ROWS: &str = "# A remark.\n\nportway agent … --manifests … | agents_run\n\
        cargo xtask test | .ci/run\ncargo xtask tidy | xtask test: tidy\n";

    fn found(rows: &str, text: &str) -> Vec<String> {
        let files = [
            ("a.md", text),
            (TABLE, rows),
            (".ci/run", "cargo xtask test\n"),
            ("xtask/src/test.rs", "step(\"tidy\")"),
            ("xtask/tests/lab.rs", "fn agents_run() {}"),
        ];
        let repository = repository(&files);
        let documents = BTreeMap::from([("a.md", Document::read(text))]);
        let wrong = check(&repository, &documents);
        wrong.iter().map(ToString::to_string).collect()
    }

    const ALL: &str = "```console\n$ sudo portway agent --node-name a \\\n    --manifests d  # remark\n\
        started\n# cargo xtask test\n```\n```sh\n# A remark.\nLOG=1 cargo xtask tidy\n```\n";

    #[test]
    fn commands_that_are_run_or_marked_pass() {
        assert_eq!(found(ROWS, ALL), [""; 0]);
        let marked = "```console not-tested: needs a cluster\n$ kubectl get pods\n```\n";
        assert_eq!(found(ROWS, &format!("{ALL}{marked}")), [""; 0]);
        let other = "```text\n$ rm -r /\n```\n";
        assert_eq!(found(ROWS, &format!("{ALL}{other}")), [""; 0]);
    }

    #[test]
    fn commands_that_are_neither_run_nor_marked_are_named() {
        let more = "```sh\nls\n```\n```console not-tested\n$ ls\n```\n";
        let wrong = found(ROWS, &format!("{ALL}{more}"));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong[0].starts_with("a.md:12: no test runs `ls`"),
            "{wrong:?}"
        );
        assert!(
            wrong[1].starts_with("a.md:14: `not-tested` has no reason"),
            "{wrong:?}"
        );
    }

    #[test]
    fn rows_name_tests_that_exist_and_commands_that_are_written() {
        let rows = format!("{ROWS}cargo fmt | gone\nls\n");
        let wrong = found(&rows, &format!("{ALL}```sh\ncargo fmt\n```\n"));
        assert_eq!(
            wrong,
            [
                format!("{TABLE}:7: expected `command | test`"),
                format!("{TABLE}:6: `cargo fmt`: there is no `gone`"),
            ]
        );
        assert_eq!(
            found(ROWS, ALL.replace("cargo xtask test", "").as_str()),
            [format!(
                "{TABLE}:4: no document has the command `cargo xtask test`"
            )]
        );
    }
}
