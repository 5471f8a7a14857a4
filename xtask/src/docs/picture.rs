//! Owns the picture of the demo: its output with colours, as an SVG of text.

use anyhow::{Context, Result};

/// Steps of the demo that the picture shows; the others are left out with a mark.
const STEPS: [&str; 4] = ["3", "7", "9", "10"];
/// Columns of the picture; longer lines go on below.
const COLUMNS: usize = 110;
const FONT_SIZE: usize = 13;
/// Width of a column in tenths of a pixel, in the fonts that are asked for.
const COLUMN: usize = 79;
const LINE: usize = 18;
const MARGIN: usize = 16;

/// Runs the demo and returns its picture.
///
/// # Errors
/// If the demo cannot be run, or fails.
pub fn of_demo() -> Result<String> {
    let output = super::demo_output().context("run the demo")?;
    Ok(svg(&excerpt(&output)))
}

/// Returns the lines of the steps that are shown, with the demo's title and its last line.
fn excerpt(output: &str) -> Vec<String> {
    let mut lines = vec!["$ sudo cargo xtask demo".to_owned()];
    let mut shown = true;
    let mut skipped = false;
    for line in output.lines().filter(|line| !line.starts_with("Building")) {
        let text = without_colours(line);
        match text.split_once(". ").map(|(number, _)| number) {
            Some(number) if number.parse::<u8>().is_ok() => {
                shown = STEPS.contains(&number);
                if !shown && !skipped {
                    lines.push("\x1b[2m…\x1b[0m".to_owned());
                    lines.push(String::new());
                }
                skipped = !shown;
            }
            _ if text.starts_with("All ") => shown = true,
            _ => {}
        }
        if shown {
            lines.extend(wrapped(line));
        }
    }
    lines
}

fn without_colours(line: &str) -> String {
    pieces(line).into_iter().map(|(_, text)| text).collect()
}

/// Returns the line in pieces of the width of the picture; a line with colours is left as it is.
fn wrapped(line: &str) -> Vec<String> {
    if line.chars().count() <= COLUMNS || line.contains('\x1b') {
        return vec![line.to_owned()];
    }
    let indent = line.chars().take_while(|c| *c == ' ').count() + 4;
    let mut lines = vec![String::new()];
    for word in line.split_inclusive(' ') {
        let last = lines.last().map_or(0, |last| last.chars().count());
        if last + word.trim_end().chars().count() > COLUMNS {
            lines.push(" ".repeat(indent));
        }
        if let Some(last) = lines.last_mut() {
            last.push_str(word);
        }
    }
    lines
}

/// Returns the parts of a line with the numbers of their colour (SGR), empty for none.
fn pieces(line: &str) -> Vec<(&str, &str)> {
    let mut parts = line.split("\x1b[");
    let first = ("", parts.next().unwrap_or_default());
    std::iter::once(first)
        .chain(parts.filter_map(|part| part.split_once('m')))
        .map(|(colour, text)| (if colour == "0" { "" } else { colour }, text))
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

fn svg(lines: &[String]) -> String {
    let width = 2 * MARGIN + COLUMNS * COLUMN / 10;
    let height = 2 * MARGIN + lines.len() * LINE;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="Output of cargo xtask demo">
<!-- Made by `cargo xtask docs` with its flag for the picture, from a run; do not edit. -->
<style>
text {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {FONT_SIZE}px; fill: #d4d4d4; white-space: pre; }}
.bold {{ font-weight: bold; fill: #ffffff; }}
.good {{ fill: #4ec96f; }}
.bad {{ font-weight: bold; fill: #f2635b; }}
.dim {{ fill: #8a8a8a; }}
</style>
<rect width="100%" height="100%" rx="8" fill="#1e1e1e"/>
"##
    );
    for (n, line) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        let y = MARGIN + n * LINE + FONT_SIZE;
        svg.push_str(&format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" xml:space=\"preserve\">{}</text>\n",
            pieces(line).into_iter().map(span).collect::<String>()
        ));
    }
    svg + "</svg>\n"
}

fn span((colour, text): (&str, &str)) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let class = match colour {
        "1" => "bold",
        "32" => "good",
        "1;31" => "bad",
        "2" => "dim",
        _ => return text,
    };
    format!("<tspan class=\"{class}\">{text}</tspan>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_text_is_escaped() {
        let svg = svg(&["\x1b[32m✓\x1b[0m a <b>".to_owned()]);
        assert!(svg.contains("<tspan class=\"good\">✓</tspan> a &lt;b&gt;</text>"));
    }

    #[test]
    fn other_steps_are_left_out_with_one_mark() {
        let output = "Building the agent …\n\x1b[1mTitle\x1b[0m\n\n\x1b[1m1.\x1b[0m one\n   a\n\n\
                      \x1b[1m2.\x1b[0m two\n\n\x1b[1m3.\x1b[0m three\n   b\n\nAll good\n";
        let lines = excerpt(output)
            .iter()
            .map(|l| without_colours(l))
            .collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                "$ sudo cargo xtask demo",
                "Title",
                "",
                "…",
                "",
                "3. three",
                "   b",
                "",
                "All good"
            ]
        );
    }

    #[test]
    fn long_lines_go_on_below_indented() {
        let line = format!("  {}", "word ".repeat(40));
        let lines = wrapped(&line);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with("      word"));
        assert!(
            lines
                .iter()
                .all(|line| line.trim_end().chars().count() <= COLUMNS)
        );
    }
}
