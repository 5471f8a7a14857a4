//! One place where the repository breaks one of its own rules.

use std::fmt;

/// A line of a file, and why it cannot stay as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the file, from the workspace's root.
    pub path: String,
    /// The line, counted from 1; 0 for the whole file.
    pub line: usize,
    /// The rule that is broken, and how to mend it.
    pub why: String,
}

impl Violation {
    /// A violation in one line of a file.
    pub fn new(path: &str, line: usize, why: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            why: why.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_has_no_line() {
        assert_eq!(Violation::new("a.rs", 3, "b").to_string(), "a.rs:3: b");
        assert_eq!(Violation::new("a.rs", 0, "b").to_string(), "a.rs: b");
    }
}
