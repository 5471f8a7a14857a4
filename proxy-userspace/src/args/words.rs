//! The parser of flags with one of a few words, which are spelled on their enum.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::model::Word;

/// Returns a parser of the words of `T`; help lists them with their meanings.
pub(super) fn words<T: Word + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let words = T::WORDS
        .iter()
        .map(|(word, meaning)| PossibleValue::new(*word).help(*meaning));
    PossibleValuesParser::new(words)
        .map(|word| T::of_word(&word).expect("clap has checked the word"))
}
