//! Reads a page of rules.

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// One entry of a page.
#[derive(Debug, Default)]
pub struct Rule {
    /// The number, for example `V12`.
    pub number: String,
    /// Path of the page.
    pub path: String,
    /// The line of the heading, counted from 1.
    pub line: usize,
    /// True if the rule has a text.
    pub has_text: bool,
    /// True if the entry has a source.
    pub has_source: bool,
    /// Paths of files or items, in the form `path` or `path::item`.
    pub implemented: Vec<String>,
    /// Names of tests, and paths of fixtures.
    pub shown: Vec<String>,
    /// The part of the rule that is not built yet.
    pub unbuilt: Option<Unbuilt>,
}

/// The part of a rule that is not built yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbuilt {
    /// Some of it.
    Part,
    /// All of it.
    Whole,
}

/// Reads the entries: headings of the third level that begin with a number, and what is below.
pub fn read(path: &str, text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut heading = None;
    let mut item: Option<Item> = None;
    // True while the parser is below the heading of a rule.
    let mut is_rule = false;
    for (event, range) in Parser::new(text).into_offset_iter() {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "Markdown has many kinds of events; the others carry nothing that is checked"
        )]
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                is_rule = false;
                heading = Some((level, String::new()));
            }
            Event::End(TagEnd::Heading(_)) => {
                let Some((HeadingLevel::H3, title)) = heading.take() else {
                    continue;
                };
                if let Some(number) = title.split(' ').next().filter(|word| is_number(word)) {
                    is_rule = true;
                    rules.push(Rule {
                        number: number.to_owned(),
                        path: path.to_owned(),
                        line: text[..range.start].lines().count() + 1,
                        ..Rule::default()
                    });
                }
            }
            Event::Start(Tag::Item) => item = Some(Item::default()),
            Event::End(TagEnd::Item) => {
                let rule = rules.last_mut().filter(|_| is_rule);
                if let (Some(item), Some(rule)) = (item.take(), rule) {
                    item.enter(rule);
                }
            }
            Event::Text(text) => match (&mut heading, &mut item) {
                (Some((_, title)), _) => title.push_str(&text),
                (None, Some(item)) => item.text.push_str(&text),
                (None, None) => {
                    if let Some(rule) = rules.last_mut().filter(|_| is_rule) {
                        rule.has_text = true;
                    }
                }
            },
            Event::Code(code) => {
                if let Some(item) = &mut item {
                    item.code.push(code.to_string());
                }
            }
            _ => {}
        }
    }
    rules
}

/// One item of an entry's list.
#[derive(Default)]
struct Item {
    text: String,
    code: Vec<String>,
}

impl Item {
    fn enter(self, rule: &mut Rule) {
        let (label, _) = self.text.split_once(':').unwrap_or_default();
        match label {
            "Source" => rule.has_source = true,
            "Implemented in" => rule.implemented.extend(self.code),
            "Shown by" => rule.shown.extend(self.code),
            "Not built yet" => rule.unbuilt = Some(Unbuilt::Part),
            "Not built yet, all of it" => rule.unbuilt = Some(Unbuilt::Whole),
            _ => {}
        }
    }
}

/// True for a letter `V` or `P` with digits behind it.
pub fn is_number(word: &str) -> bool {
    let digits = word.strip_prefix(['V', 'P']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Page\n\nIntroduction.\n\n### Table\n\n- Source: none\n\n### V1 Title\n\n\
        Text.\n\n- Source: kube-proxy\n- Implemented in: `a.rs::f`,\n  `b.rs`\n- Shown by: `v1_x`\n\n\
        ### V2 Another\n\nText.\n\n- Not built yet, all of it: why: because\n";

    #[test]
    fn entries_are_read_with_their_lists() {
        let rules = read("p.md", PAGE);
        let [first, second] = &rules[..] else {
            panic!("{rules:?}")
        };
        assert_eq!((first.number.as_str(), first.line), ("V1", 9));
        assert!(first.has_text && first.has_source);
        assert_eq!(first.implemented, ["a.rs::f", "b.rs"]);
        assert_eq!(first.shown, ["v1_x"]);
        assert_eq!(first.unbuilt, None);
        assert!(!second.has_source);
        assert_eq!(second.unbuilt, Some(Unbuilt::Whole));
    }

    #[test]
    fn numbers_are_a_letter_and_digits() {
        assert!(is_number("V1") && is_number("P36"));
        assert!(!is_number("V") && !is_number("V1a") && !is_number("X1") && !is_number("12"));
    }
}
