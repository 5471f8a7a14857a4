//! Argument groups that several commands share. The rest of a command's arguments stand with it.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::dataplane::StateDir;
use crate::model::Word;

/// The bpffs directory with the pins of one agent.
#[derive(Args, Clone, Debug)]
pub struct StateDirArg {
    /// Directory on bpffs with this agent's pinned maps and programs. Each agent on a host has its
    /// own.
    #[arg(long, env = "PORTWAY_STATE_DIR", value_name = "DIR", default_value = StateDir::USUAL)]
    pub state_dir: PathBuf,
}

/// The format of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and sentences, for people.
    Text,
    /// JSON, for programs.
    Json,
}

/// Returns a parser of the words of `T`; help lists them with their meanings.
pub(crate) fn words<T: Word + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let words = T::WORDS
        .iter()
        .map(|(word, meaning)| PossibleValue::new(*word).help(*meaning));
    PossibleValuesParser::new(words)
        .map(|word| T::of_word(&word).expect("clap has checked the word"))
}
