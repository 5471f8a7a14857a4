//! Writes the pages of `deploy/docs/reference/` into a directory, from the code that they describe.
//!
//! `cargo xtask docs` runs it: `reference DIR`.

#[path = "reference/annotations.rs"]
mod annotations;
#[path = "reference/checks.rs"]
mod checks;
#[path = "reference/flags.rs"]
mod flags;
#[path = "reference/metrics.rs"]
mod metrics;
#[path = "reference/reasons.rs"]
mod reasons;
#[path = "reference/table.rs"]
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// A page: its file, its title, its introduction, and the function that returns its body.
type Page = (
    &'static str,
    &'static str,
    &'static str,
    fn() -> Result<String>,
);

const PAGES: [Page; 5] = [
    (
        "annotations.md",
        "Annotations",
        annotations::INTRODUCTION,
        annotations::body,
    ),
    (
        "doctor-checks.md",
        "Checks of portway doctor",
        checks::INTRODUCTION,
        checks::body,
    ),
    (
        "flags.md",
        "Commands and flags",
        flags::INTRODUCTION,
        flags::body,
    ),
    (
        "metrics.md",
        "Metrics",
        metrics::INTRODUCTION,
        metrics::body,
    ),
    (
        "reasons.md",
        "Drop reasons and counters",
        reasons::INTRODUCTION,
        reasons::body,
    ),
];

fn main() -> Result<()> {
    let dir: PathBuf = std::env::args_os()
        .nth(1)
        .context("name the directory: reference DIR")?
        .into();
    for (file, title, introduction, body) in PAGES {
        let body = body().with_context(|| format!("make {file}"))?;
        let page = format!(
            "<!-- Made by `cargo xtask docs` from the code; do not edit. -->\n# {title}\n\n{introduction}\n\n{}\n",
            body.trim_end()
        );
        std::fs::write(dir.join(file), page).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}
