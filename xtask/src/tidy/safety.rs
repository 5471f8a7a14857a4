//! Each `unsafe` has a SAFETY note. clippy sees the host's code only; this check sees the kernel's.

use super::source::{Line, Source};
use super::violation::Violation;
use super::word::has_word;

/// A statement is no longer than this, in lines.
const STATEMENT: usize = 12;

/// Returns the unsafe blocks and impls without a note.
pub fn check(source: &Source) -> Vec<Violation> {
    let lines = source.lines.iter().enumerate();
    lines
        .filter(|(at, line)| opens_unsafe(line) && !has_note(source, *at))
        .map(|(at, _)| {
            let why = "`unsafe` without a SAFETY note that gives the reason why it is sound";
            Violation::new(&source.path, at + 1, why)
        })
        .collect()
}

fn opens_unsafe(line: &Line) -> bool {
    has_word(&line.code, "unsafe")
        && (line.code.contains("unsafe {") || line.code.contains("unsafe impl"))
}

/// True if a note stands on the line, or above it within the same statement or right before that.
fn has_note(source: &Source, at: usize) -> bool {
    let above = source.lines[..at]
        .iter()
        .rev()
        .take(STATEMENT)
        .take_while(|line| !ends_statement(&line.code));
    std::iter::once(&source.lines[at])
        .chain(above)
        .any(|line| line.text.contains("SAFETY:"))
}

fn ends_statement(code: &str) -> bool {
    let code = code.trim_end();
    code.ends_with(';') || code.ends_with('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<usize> {
        let source = Source::new("proxy-ebpf/src/main.rs", text);
        check(&source).iter().map(|found| found.line).collect()
    }

    #[test]
    fn a_note_belongs_to_the_statement_that_it_precedes() {
        assert_eq!(broken("unsafe { f() };"), [1]);
        assert_eq!(
            broken("// SAFETY: yes.\nlet a =\n    unsafe { f() };"),
            [0; 0]
        );
        assert_eq!(broken("// SAFETY: another's.\ng();\nunsafe { f() };"), [3]);
        assert_eq!(broken("#[unsafe(no_mangle)]"), [0; 0]);
        assert_eq!(broken("unsafe impl Send for A {}"), [1]);
    }

    #[test]
    fn a_pattern_of_many_lines_is_part_of_the_statement() {
        let fields = "    a,\n".repeat(7);
        let text = format!("// SAFETY: yes.\nlet A {{\n{fields}}} = unsafe {{ f() }};");
        assert_eq!(broken(&text), [0; 0]);
    }
}
