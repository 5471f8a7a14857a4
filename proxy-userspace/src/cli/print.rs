//! Printing of what commands read from the pins: tables in kubectl's manner, or JSON.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use proxy_common::net::IfIndex;
use serde_json::Value;

use crate::args::{Output, StateDirArg};
use crate::dataplane::StateDir;

/// Commands that read the pins.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub pins: StateDirArg,
    /// Format of the output.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

pub(super) fn print<T>(
    args: &PinArgs,
    read: fn(&StateDir) -> Result<T>,
    text: fn(&T) -> String,
) -> Result<String>
where
    for<'a> &'a T: Into<Value>,
{
    let dir = existing(&args.pins.state_dir)?;
    let found = read(&dir)?;
    Ok(match args.output {
        Output::Text => text(&found),
        Output::Json => format!("{:#}\n", (&found).into()),
    })
}

fn existing(root: &Path) -> Result<StateDir> {
    let dir = StateDir::at(root);
    if !dir.maps().exists() {
        bail!(
            "nothing of Portway is pinned in {}: no agent has run with this --state-dir",
            root.display()
        );
    }
    Ok(dir)
}

/// A table in the manner of kubectl: no lines, columns apart.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

pub(super) fn lines(table: &Table) -> String {
    table
        .to_string()
        .lines()
        .map(|line: &str| format!("{}\n", line.trim_end()))
        .collect()
}

/// A device's name in the network namespace of this process.
pub(super) fn device_name(device: IfIndex) -> String {
    match nix::net::if_::if_indextoname(device.0) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("#{}", device.0),
    }
}
