//! Owns the page of commands and flags.

use anyhow::Result;
use clap::builder::{PossibleValue, StyledStr};
use clap::{Arg, Command, CommandFactory as _};
use portway::cli::Cli;

use super::table::{code, table};

pub const INTRODUCTION: &str = "\
A flag on the command line overrides its environment variable. `portway COMMAND --help` prints the
same texts.";

/// Returns a section for each command.
pub fn body() -> Result<String> {
    let mut cli = Cli::command();
    cli.build();
    let mut text = format!("## All commands\n\n{}\n", flags(&cli, Arg::is_global_set));
    for command in cli.get_subcommands().filter(|c| c.get_name() != "help") {
        text.push_str(&section(command));
    }
    Ok(text)
}

fn section(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    format!(
        "## portway {}\n\n{}\n\n```text\n{}\n```\n\n{}\n",
        command.get_name(),
        sentence(command.get_about()),
        usage.trim_start_matches("Usage: ").trim(),
        flags(command, |arg| !arg.is_global_set())
    )
}

fn flags(command: &Command, wanted: fn(&Arg) -> bool) -> String {
    let rows = command
        .get_arguments()
        .filter(|arg| wanted(arg) && !is_builtin(arg))
        .map(row);
    table(["Flag", "Environment", "Default", "Meaning"], rows)
}

/// True for the flags that clap adds.
fn is_builtin(arg: &Arg) -> bool {
    ["help", "version"].contains(&arg.get_id().as_str())
}

fn row(arg: &Arg) -> [String; 4] {
    let environment = arg.get_env().map(|env| env.to_string_lossy());
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    [
        code(&typed(arg)),
        code(&environment.unwrap_or_default()),
        code(&defaults.join(",")),
        meaning(arg),
    ]
}

/// Returns the argument as it is typed, with the name of its value.
fn typed(arg: &Arg) -> String {
    let short = arg.get_short().map(|c| format!("-{c}, "));
    let flag = arg.get_long().map(|long| format!("--{long}"));
    let value = arg
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(|name| name.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    match flag {
        Some(flag) if !arg.get_action().takes_values() => short.unwrap_or_default() + &flag,
        // The value may be left out.
        Some(flag) if arg.get_num_args().is_some_and(|n| n.min_values() == 0) => {
            format!("{}{flag}[={value}]", short.unwrap_or_default())
        }
        Some(flag) => format!("{}{flag} {value}", short.unwrap_or_default()),
        None => value,
    }
}

fn meaning(arg: &Arg) -> String {
    let help = sentence(arg.get_long_help().or(arg.get_help()));
    let values: Vec<String> = if arg.is_hide_possible_values_set() {
        Vec::new()
    } else {
        arg.get_possible_values().iter().map(value).collect()
    };
    if values.is_empty() {
        help
    } else {
        format!("{help}<br>{}", values.join("<br>"))
    }
}

fn value(value: &PossibleValue) -> String {
    let help = value.get_help().map(ToString::to_string);
    match help {
        Some(help) => format!("`{}`: {help}", value.get_name()),
        None => code(value.get_name()),
    }
}

/// Returns the text with one full stop at its end.
fn sentence(text: Option<&StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    let text = text.replace('<', "&lt;");
    match text.chars().last() {
        Some('.' | ']') | None => text,
        Some(_) => text + ".",
    }
}
