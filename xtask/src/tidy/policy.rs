//! The table of NetworkPolicy's rules beside the compiler: complete, and true of the files and tests that it names.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where the table is.
const TABLE: &str = "proxy-userspace/src/compile/policies/RULES.md";
/// The last rule.
const RULES: u8 = 34;

/// What is wrong with the table, in words.
pub fn violations(top: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(top.join(TABLE)).with_context(|| format!("read {TABLE}"))?;
    let read = |file: &str| fs::read_to_string(top.join(file)).ok();
    Ok(check(&text, read))
}

fn check(table: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| P"))
        .map(cells)
        .collect();
    let mut wrong = Vec::new();
    for number in 1..=RULES {
        let rule = format!("P{number}");
        let mut of_rule = rows
            .iter()
            .filter(|cells| cells.first() == Some(&&*rule))
            .peekable();
        if of_rule.peek().is_none() {
            wrong.push(format!("{TABLE}: {rule} has no row"));
        }
        for cells in of_rule {
            let named: Vec<&str> = cells
                .iter()
                .skip(2)
                .flat_map(|cell| cell.split('`').skip(1).step_by(2))
                .collect();
            let [place, file, test] = named[..] else {
                wrong.push(format!(
                    "{TABLE}: {rule} names no place, no file of tests or no test"
                ));
                continue;
            };
            if read(place).is_none() {
                wrong.push(format!("{TABLE}: {rule}: there is no {place}"));
            }
            match read(file) {
                None => wrong.push(format!("{TABLE}: {rule}: there is no {file}")),
                Some(text)
                    if !text.contains(&format!("fn {test}("))
                        && !text.contains(&format!("fn {test}<")) =>
                {
                    wrong.push(format!(
                        "{TABLE}: {rule}: there is no test {test} in {file}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    wrong
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_missing_or_name_what_is_not_there_are_told() {
        let row =
            |number: u8, test: &str| format!("| P{number} | what | `a.rs` | `b.rs` `{test}` |\n");
        let read = |file: &str| {
            ["a.rs", "b.rs"]
                .contains(&file)
                .then(|| "fn p_x() {}\nfn p_y<F>() {}\n".to_owned())
        };
        let full: String = (1..=RULES)
            .map(|number| row(number, if number % 2 == 0 { "p_x" } else { "p_y" }))
            .collect();
        assert_eq!(check(&full, read), [""; 0]);
        let broken = full
            .replace(&row(3, "p_y"), "")
            .replace(&row(4, "p_x"), &row(4, "p_z"))
            .replace("| P5 | what | `a.rs`", "| P5 | what | `c.rs`");
        let wrong = check(&broken, read);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(
            wrong[0].contains("P3") && wrong[1].contains("p_z") && wrong[2].contains("c.rs"),
            "{wrong:?}"
        );
    }
}
