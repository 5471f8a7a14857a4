//! A source file as the checks see it: code without comments and literals, and where its tests begin.

/// One tracked file.
pub struct Source {
    /// From the workspace's root, with `/`.
    pub path: String,
    /// Its lines in order.
    pub lines: Vec<Line>,
}

/// One line of a file.
pub struct Line {
    /// As it is written.
    pub text: String,
    /// Without comments and what is inside string literals.
    pub code: String,
    /// It is in the file's `#[cfg(test)] mod tests`, which comes last.
    pub in_tests: bool,
}

impl Source {
    /// Reads `text`, which is in `path`.
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

/// Integration tests, and the modules that their parents declare under `#[cfg(test)]`.
fn is_test_file(path: &str) -> bool {
    path.split('/').nth(1) == Some("tests")
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
}

/// Where the end of a line is.
enum Lexer {
    Code,
    BlockComment,
    /// In a string literal; a raw one ends with a quote and so many `#`.
    Text {
        raw: Option<usize>,
    },
}

impl Lexer {
    /// The code of the next line: comments are gone, string literals are `""`.
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

    /// One step through code: into a comment or literal, or over one character.
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

/// `r"`, `r#"` and so on, unless the `r` ends a word.
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

/// Where the literal that began before `rest` ends, past its closing quote.
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
    }
}
