//! What the commands print that ask the kernel: in names, from the pins alone, whether or not the agent lives.

mod flows;
mod services;
mod status;

use std::path::Path;

use anyhow::{Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use proxy_common::net::IfIndex;
use serde_json::Value;

use crate::args::{Output, PinArgs};
use crate::dataplane::StateDir;

/// `portway status`.
pub fn status(args: &PinArgs) -> Result<String> {
    print(args, status::read, status::text)
}

/// `portway services`.
pub fn services(args: &PinArgs) -> Result<String> {
    print(args, services::read, services::text)
}

/// `portway flows`.
pub fn flows(args: &PinArgs) -> Result<String> {
    print(args, flows::read, flows::text)
}

fn print<T>(
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
fn table(header: &[&str]) -> Table {
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

fn lines(table: &Table) -> String {
    let line = |line: &str| format!("{}\n", line.trim_end());
    table.to_string().lines().map(line).collect()
}

/// A device's name in the network namespace of this process.
fn device_name(device: IfIndex) -> String {
    match nix::net::if_::if_indextoname(device.0) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("#{}", device.0),
    }
}
