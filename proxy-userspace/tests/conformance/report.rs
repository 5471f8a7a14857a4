//! Counts checks, differences, and cases that the rules page overrides; the exit status follows
//! from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use crate::rules::{Row, Rule};

/// The results of one file's checks.
pub struct Tally {
    /// The row of the next checks.
    pub row: Row,
    /// Flows with packets through the library.
    pub library: usize,
    /// Flows with packets through the loaded programs.
    pub programs: usize,
    /// Other comparisons.
    pub others: usize,
    /// Connections judged by NetworkPolicy: by the text, through the tables step by step and from
    /// nothing, and by the loaded programs.
    pub policies: [usize; 5],
    differences: Vec<(Row, String)>,
    advisory: Vec<String>,
    otherwise: BTreeMap<Rule, usize>,
    lines: Vec<String>,
}

/// The detail that is printed of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Every check.
    All,
    /// Differences only.
    Differences,
}

/// The weight of a case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A difference is a failure.
    Binding,
    /// A difference is listed only.
    Advisory,
}

impl Tally {
    /// Records a check by its name, and its difference if there is one.
    pub fn note(&mut self, name: &str, weight: Weight, difference: Option<String>) {
        match (difference, weight) {
            (None, _) => self.lines.push(format!("  same     {name}")),
            (Some(why), Weight::Binding) => self.differs(name, why),
            (Some(why), Weight::Advisory) => {
                self.advisory.push(format!("  advisory {name}: {why}"))
            }
        }
    }

    /// Compares two values that a case names.
    pub fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        weight: Weight,
        owed: &T,
        found: &T,
    ) {
        self.others += 1;
        let difference = (owed != found).then(|| format!("{found:?} came out, {owed:?} is owed"));
        self.note(name, weight, difference);
    }

    /// Records a difference.
    pub fn differs(&mut self, name: &str, why: String) {
        self.differences
            .push((self.row, format!("  DIFFERS  [{}] {name}: {why}", self.row)));
    }

    /// Records that a rule overrides the case.
    pub fn otherwise(&mut self, rule: Rule) {
        *self.otherwise.entry(rule).or_default() += 1;
    }

    /// Returns true if nothing was checked.
    pub fn is_empty(&self) -> bool {
        let Self {
            library,
            programs,
            others,
            policies,
            ..
        } = self;
        library + programs + others + policies.iter().sum::<usize>() == 0
    }

    fn differing(&self) -> usize {
        self.differences.len()
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            row: Row::File,
            library: 0,
            programs: 0,
            others: 0,
            policies: [0; 5],
            differences: Vec::new(),
            advisory: Vec::new(),
            otherwise: BTreeMap::new(),
            lines: Vec::new(),
        }
    }
}

/// The results of all files.
#[derive(Default)]
pub struct Report {
    files: usize,
    differing: usize,
    all: Tally,
}

impl Report {
    /// Prints a file's line, and its checks in the chosen detail.
    pub fn add(&mut self, file: &Path, tally: Tally, detail: Detail) {
        let Tally {
            library,
            programs,
            others,
            policies: [text, tables, fresh, explained, by_programs],
            ..
        } = tally;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let differences = tally.differing();
        println!(
            "{name:<56} flows: library {library:>3}, programs {programs:>3}; others {others:>3}; policies: text {text:>4}, tables {tables:>4}, from nothing {fresh:>4}, explain {explained:>4}, programs {by_programs:>4}; differences {differences}"
        );
        let same = tally.lines.iter().filter(|_| detail == Detail::All);
        same.chain(&tally.advisory)
            .chain(tally.differences.iter().map(|(_, line)| line))
            .for_each(|line| println!("{line}"));
        self.files += 1;
        self.differing += usize::from(differences > 0);
        self.all.take(tally);
    }

    /// Prints the sums; success if there was no difference, and all ways were checked equally
    /// often.
    pub fn conclude(self) -> ExitCode {
        let Self {
            files,
            differing,
            all,
        } = self;
        let Tally {
            library,
            programs,
            others,
            advisory,
            otherwise,
            ..
        } = &all;
        println!(
            "\nfiles {files}; flows through the library {library}, through the loaded programs {programs}; other checks {others}"
        );
        for (rule, times) in otherwise {
            println!("owed otherwise than the cases say, by {rule}: {times}");
        }
        println!("advisory differences: {}", advisory.len());
        println!("differences: {}", all.differing());
        for (row, times) in all.by_row() {
            println!("  {times:>4}  {row}");
        }
        let [text, tables, fresh, explained, by_programs] = all.policies;
        println!(
            "policies' rows by the text {text}, through the tables {tables}, through tables from nothing {fresh}, as explain asks {explained}, by the loaded programs {by_programs}"
        );
        let equal = library == programs && [tables, fresh, explained, by_programs] == [text; 4];
        if !equal {
            println!("the ways were not gone equally often");
        }
        let passed = differing == 0 && equal;
        let verdict = if passed { "ok" } else { "FAILED" };
        // One line for the files, in the format of Rust's test runner, which `cargo xtask test`
        // counts.
        println!(
            "test result: {verdict}. {} passed; {differing} failed; 0 ignored;",
            files - differing
        );
        if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Tally {
    fn take(&mut self, more: Self) {
        self.library += more.library;
        self.programs += more.programs;
        self.others += more.others;
        self.policies
            .iter_mut()
            .zip(more.policies)
            .for_each(|(all, more)| *all += more);
        self.differences.extend(more.differences);
        self.advisory.extend(more.advisory);
        more.otherwise
            .into_iter()
            .for_each(|(rule, times)| *self.otherwise.entry(rule).or_default() += times);
    }

    fn by_row(&self) -> BTreeMap<Row, usize> {
        let mut rows = BTreeMap::new();
        self.differences
            .iter()
            .for_each(|(row, _)| *rows.entry(*row).or_default() += 1);
        rows
    }
}
