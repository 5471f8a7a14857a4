//! Parses the last line of Rust's test runner into counts.

/// Tests of one or more runners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ran, and were right.
    pub passed: u32,
    /// Ran, and were wrong.
    pub failed: u32,
    /// Were not run.
    pub ignored: u32,
}

impl Counts {
    /// The counts of a line `test result: ok. 3 passed; 0 failed; 0 ignored; …`; none of any other
    /// line.
    pub fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line
            .trim_end()
            .strip_prefix("test result: ")?
            .split_whitespace()
            .collect();
        let before = |word: &str| {
            words
                .windows(2)
                .find(|pair| pair[1].trim_end_matches(';') == word)?[0]
                .parse()
                .ok()
        };
        Some(Self {
            passed: before("passed")?,
            failed: before("failed")?,
            ignored: before("ignored").unwrap_or(0),
        })
    }

    /// These and those.
    pub fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.ignored += more.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_runners_last_line() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            Counts::read(line),
            Some(Counts {
                passed: 12,
                failed: 2,
                ignored: 1
            })
        );
        assert_eq!(Counts::read("test tidy::works ... ok"), None);
    }
}
