//! Owns what the demo prints: steps, tables and checks, in colour on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, stdout};
use std::time::Instant;

/// Prints the demo and counts its checks.
#[derive(Debug)]
pub struct Say {
    paint: Paint,
    begin: Instant,
    steps: usize,
    met: usize,
    missed: usize,
}

#[derive(Clone, Copy, Debug)]
enum Paint {
    Colour,
    Plain,
}

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "1;31";
const DIM: &str = "2";

impl Say {
    /// Prints to standard output.
    pub fn new() -> Self {
        // The variable is a custom of command line tools; the picture of the demo is made by it.
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let paint = if forced || stdout().is_terminal() {
            Paint::Colour
        } else {
            Paint::Plain
        };
        Self {
            paint,
            begin: Instant::now(),
            steps: 0,
            met: 0,
            missed: 0,
        }
    }

    /// The first line.
    pub fn title(&self, text: &str) {
        println!("{}", self.paint(BOLD, text));
    }

    /// Announces a step.
    pub fn step(&mut self, text: &str) {
        self.steps += 1;
        println!(
            "\n{} {}",
            self.paint(BOLD, &format!("{}.", self.steps)),
            self.paint(BOLD, text)
        );
    }

    /// Reports a finished step and the time since the start.
    pub fn done(&self, text: &str) {
        println!(
            "   {text} {}",
            self.paint(
                DIM,
                &format!("[{:.1} s]", self.begin.elapsed().as_secs_f64())
            )
        );
    }

    /// Lines of text or of a table.
    pub fn show(&self, text: impl Display) {
        text.to_string()
            .lines()
            .for_each(|line| println!("   {line}"));
    }

    /// Reports a check; it has failed if there are reasons `against` it.
    pub fn expect(&mut self, what: &str, against: &[String]) {
        if against.is_empty() {
            self.met += 1;
            return println!("   {} {what}", self.paint(GREEN, "✓"));
        }
        self.missed += 1;
        println!("   {} {}", self.paint(RED, "✗ expected:"), what);
        against
            .iter()
            .for_each(|line| println!("     {} {line}", self.paint(RED, "but")));
    }

    /// Prints the sum, and returns the number of failed checks.
    pub fn verdict(&self) -> usize {
        let seconds = self.begin.elapsed().as_secs_f64();
        match self.missed {
            0 => println!(
                "\n{} in {seconds:.1} s",
                self.paint(GREEN, &format!("All {} checks passed", self.met))
            ),
            n => println!(
                "\n{} in {seconds:.1} s",
                self.paint(RED, &format!("{n} of {} checks failed", n + self.met))
            ),
        }
        self.missed
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.paint {
            Paint::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
            Paint::Plain => text.to_owned(),
        }
    }
}

/// Rows under a head, in columns.
#[derive(Clone, Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with only its head.
    pub fn new<T: Display>(head: impl IntoIterator<Item = T>) -> Self {
        Self(vec![texts(head)])
    }

    /// Adds a row.
    pub fn row<T: Display>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.push(texts(cells));
    }
}

fn texts<T: Display>(cells: impl IntoIterator<Item = T>) -> Vec<String> {
    cells.into_iter().map(|cell| cell.to_string()).collect()
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let cell_width =
            |row: &Vec<String>, n: usize| row.get(n).map_or(0, |cell| cell.chars().count());
        let widths: Vec<usize> = (0..columns)
            .map(|n| {
                self.0
                    .iter()
                    .map(|row| cell_width(row, n))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in &self.0 {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", cells.join("   ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["to", "web-1"]);
        table.row(["node1", "3"]);
        assert_eq!(table.to_string(), "to      web-1\nnode1   3\n");
    }
}
