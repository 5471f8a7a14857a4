//! Invariant 6: a bad object costs that object, so `compile` cannot fail as a whole.

use super::source::{Line, Source};
use super::violation::Violation;

/// Returns the declarations of a `compile` that returns a `Result`.
pub fn check(source: &Source) -> Vec<Violation> {
    let lines = source.lines.iter().enumerate();
    lines
        .filter(|(_, line)| can_fail(line))
        .map(|(at, _)| {
            let why = "breaks invariant 6: a bad object costs that object, so compile cannot fail";
            Violation::new(&source.path, at + 1, why)
        })
        .collect()
}

fn can_fail(line: &Line) -> bool {
    line.code.contains("pub fn compile(") && line.code.contains("Result<")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compile_cannot_fail_as_a_whole() {
        let found = |text: &str| check(&Source::new("a/src/compile.rs", text)).len();
        assert_eq!(
            found("pub fn compile(s: &Snapshot) -> Result<Contents> {"),
            1
        );
        assert_eq!(found("pub fn compile(s: &Snapshot) -> Contents {"), 0);
    }
}
