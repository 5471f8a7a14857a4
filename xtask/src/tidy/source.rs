//! A source file as the checks see it: its code without comments and literals, and its tests.

/// One tracked file.
pub struct Source {
    /// Path from the workspace's root, with `/`.
    pub path: String,
    /// Its lines in order.
    pub lines: Vec<Line>,
}

/// One line of a file.
pub struct Line {
    /// The line as it is written.
    pub text: String,
    /// The line without comments and without the contents of string literals.
    pub code: String,
    /// True in test files and in the file's `#[cfg(test)] mod tests`, which comes last.
    pub in_tests: bool,
}

impl Line {
    /// The name of the function that the line declares.
    pub fn function(&self) -> Option<&str> {
        let (before, after) = self.code.split_once("fn ")?;
        let modifier = |word: &str| {
            matches!(word, "pub" | "async" | "const" | "unsafe") || word.starts_with("pub(")
        };
        let end = after
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        (before.split_whitespace().all(modifier) && end > 0).then(|| &after[..end])
    }

    /// The text behind the line's first `//`, documentation included.
    pub fn comment(&self) -> Option<&str> {
        let (_, comment) = self.text.split_once("//")?;
        Some(comment.trim_start_matches(['/', '!']))
    }
}

impl Source {
    /// Reads the text of the file at `path`.
    pub fn new(path: &str, text: &str) -> Self {
        let mut lexer = Lexer::Code;
        let mut lines: Vec<Line> = Vec::new();
        let mut in_tests = is_test_file(path);
        for text in text.lines() {
            let code = lexer.strip(text);
            in_tests |= code.starts_with("mod tests {")
                && lines
                    .last()
                    .is_some_and(|line| line.code.starts_with("#[cfg(test)]"));
            lines.push(Line {
                text: text.to_owned(),
                code,
                in_tests,
            });
        }
        Self {
            path: path.to_owned(),
            lines,
        }
    }
}

/// True for integration tests, and for modules that their parents declare under `#[cfg(test)]`.
fn is_test_file(path: &str) -> bool {
    path.split('/').skip(1).any(|folder| folder == "tests")
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
}

/// The state of the lexer at the end of a line.
enum Lexer {
    Code,
    BlockComment,
    /// Inside a string literal; a raw one ends with a quote and this many `#`.
    Text {
        raw: Option<usize>,
    },
}

impl Lexer {
    /// Returns the code of the next line: without comments, with `""` for string literals.
    fn strip(&mut self, line: &str) -> String {
        let mut code = String::new();
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            match self {
                Self::Code if rest.starts_with("//") => break,
                Self::Code => rest = self.step(rest, first, &mut code),
                Self::BlockComment => {
                    let end = rest.find("*/");
                    rest = end.map_or("", |end| &rest[end + 2..]);
                    if end.is_some() {
                        *self = Self::Code;
                    }
                }
                Self::Text { raw } => {
                    let Some(end) = text_end(rest, *raw) else {
                        break;
                    };
                    code.push('"');
                    rest = &rest[end..];
                    *self = Self::Code;
                }
            }
        }
        code
    }

    /// Steps into a comment or literal, or over one character of code.
    fn step<'a>(&mut self, rest: &'a str, first: char, code: &mut String) -> &'a str {
        if let Some(after) = rest.strip_prefix("/*") {
            *self = Self::BlockComment;
            return after;
        }
        // A character literal may be a quote; a lifetime has no second apostrophe.
        for quote in ["'\"'", "'\\\"'"] {
            if let Some(after) = rest.strip_prefix(quote) {
                return after;
            }
        }
        if let Some((hashes, after)) = raw_start(rest, code) {
            *self = Self::Text { raw: Some(hashes) };
            code.push('"');
            return after;
        }
        if first == '"' {
            *self = Self::Text { raw: None };
        }
        code.push(first);
        &rest[first.len_utf8()..]
    }
}

/// Recognizes `r"`, `r#"` and so on, unless the `r` ends a word.
fn raw_start<'a>(rest: &'a str, before: &str) -> Option<(usize, &'a str)> {
    let body = rest.strip_prefix('r')?;
    let word = before
        .chars()
        .last()
        .is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_');
    let after = body.trim_start_matches('#');
    let after_quote = after.strip_prefix('"').filter(|_| !word)?;
    Some((body.len() - after.len(), after_quote))
}

/// Offset in `rest` of the end of a literal that began before it, past the closing quote.
fn text_end(rest: &str, raw: Option<usize>) -> Option<usize> {
    if let Some(hashes) = raw {
        let closing = format!("\"{}", "#".repeat(hashes));
        return rest.find(&closing).map(|at| at + closing.len());
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            '"' if !escaped => return Some(at + 1),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        Source::new("a/src/b.rs", text)
            .lines
            .into_iter()
            .map(|line| line.code)
            .collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(code("use a; // aya::x"), ["use a; "]);
        assert_eq!(
            code("f(\"aya:: \\\" // no\", 'x'); g()"),
            ["f(\"\", 'x'); g()"]
        );
        assert_eq!(code("a /* b\nc */ d"), ["a ", " d"]);
        assert_eq!(code("x(r#\"a\"b\n c\"#, y)"), ["x(\"", "\", y)"]);
        assert_eq!(code("c == '\"' && aya"), ["c ==  && aya"]);
        assert_eq!(code("\"http://x\"; b"), ["\"\"; b"]);
    }

    #[test]
    fn tests_begin_at_their_module_and_fill_the_tests_directory() {
        let source = Source::new(
            "a/src/b.rs",
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    use super::*;",
        );
        assert_eq!(
            source
                .lines
                .iter()
                .map(|line| line.in_tests)
                .collect::<Vec<_>>(),
            [false, false, true, true]
        );
        assert!(Source::new("a/tests/b.rs", "fn a() {}").lines[0].in_tests);
        assert!(Source::new("a/core/tests/b.rs", "fn a() {}").lines[0].in_tests);
    }

    #[test]
    fn functions_and_comments_of_lines() {
        let line = |text: &str| Source::new("a/src/b.rs", text).lines.remove(0);
        assert_eq!(
            line("pub(crate) async fn v1_x<F>() {").function(),
            Some("v1_x")
        );
        assert_eq!(line("let a: fn (u8) = fn_b;").function(), None);
        assert_eq!(line("// fn a()").function(), None);
        assert_eq!(line("f(); // V12: x").comment(), Some(" V12: x"));
        assert_eq!(line("    /// V12").comment(), Some(" V12"));
        assert_eq!(
            line("f(\"http://x\")").comment().map(str::trim),
            Some("x\")")
        );
        assert_eq!(line("f()").comment(), None);
    }
}
