//! A Markdown file as the checks see it: headings, links, code and prose, each with its line.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A part of a document, and the line that it begins in, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The line.
    pub line: usize,
    /// The part.
    pub part: T,
}

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The text behind the opening fence.
    pub info: String,
    /// The text between the fences.
    pub text: String,
}

/// One file.
#[derive(Debug, Default)]
pub struct Document {
    /// Anchors of the headings, as GitHub makes them.
    pub anchors: Vec<String>,
    /// Destinations of links and images, those in HTML too.
    pub links: Vec<At<String>>,
    /// Words in backticks.
    pub code: Vec<At<String>>,
    /// Text that is neither in backticks nor in a block.
    pub prose: Vec<At<String>>,
    /// Fenced blocks; their line is that of the opening fence.
    pub blocks: Vec<At<Block>>,
}

impl Document {
    /// Reads the text of a file.
    pub fn read(text: &str) -> Self {
        let lines = Lines::of(text);
        let mut document = Self::default();
        let mut heading: Option<String> = None;
        let mut block: Option<At<Block>> = None;
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
            let line = lines.at(range.start);
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "Markdown has many kinds of events; the others carry nothing that is checked"
            )]
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let title = heading.take().unwrap_or_default();
                    document.add_anchor(&title);
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    let part = dest_url.to_string();
                    document.links.push(At { line, part });
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.to_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    let text = String::new();
                    block = Some(At {
                        line,
                        part: Block { info, text },
                    });
                }
                Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
                Event::Text(text) => {
                    if let Some(block) = &mut block {
                        block.part.text.push_str(&text);
                        continue;
                    }
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                    let part = text.to_string();
                    document.prose.push(At { line, part });
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    let part = code.to_string();
                    document.code.push(At { line, part });
                }
                Event::Html(html) | Event::InlineHtml(html) => {
                    let part = |part: &str| At {
                        line,
                        part: part.to_owned(),
                    };
                    document.links.extend(html_links(&html).map(part));
                }
                _ => {}
            }
        }
        document
    }

    /// GitHub numbers the repetitions of a heading: `a`, `a-1`, `a-2`.
    fn add_anchor(&mut self, title: &str) {
        let slug = slug(title);
        let mut anchor = slug.clone();
        let mut number = 0;
        while self.anchors.contains(&anchor) {
            number += 1;
            anchor = format!("{slug}-{number}");
        }
        self.anchors.push(anchor);
    }
}

/// The anchor of a heading: lower case, blanks as hyphens, without punctuation.
fn slug(title: &str) -> String {
    let keep = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let lower = title.to_lowercase();
    lower
        .chars()
        .filter(keep)
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The values of `src` and `href`.
fn html_links(html: &str) -> impl Iterator<Item = &str> {
    ["src=\"", "href=\""].into_iter().flat_map(|attribute| {
        html.match_indices(attribute)
            .filter_map(|(at, found)| html[at + found.len()..].split('"').next())
    })
}

/// The offsets of line breaks.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line of an offset, counted from 1.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_lines() {
        let text = "# A title: `b`!\n\n[x](y.md#z) and `c/d.rs`\n\n```console not-tested: why\n$ ls\n```\n\
            \n<img src=\"p.png\">\n\n## A title: b\n";
        let document = Document::read(text);
        assert_eq!(document.anchors, ["a-title-b", "a-title-b-1"]);
        let link = |line: usize, part: &str| At {
            line,
            part: part.to_owned(),
        };
        assert_eq!(document.links, [link(3, "y.md#z"), link(9, "p.png")]);
        assert_eq!(document.code, [link(1, "b"), link(3, "c/d.rs")]);
        let [block] = &document.blocks[..] else {
            panic!("{:?}", document.blocks)
        };
        assert_eq!(block.line, 5);
        assert_eq!(block.part.info, "console not-tested: why");
        assert_eq!(block.part.text, "$ ls\n");
    }
}
