//! Words that people type: each is spelled once, on its enum, for flags, annotations and output.

/// An enum with a word for each value.
pub trait Word: Copy + 'static {
    /// Every value, in the order of the help text.
    const ALL: &'static [Self];

    /// The word and the meaning of each value, in the order of [`Self::ALL`].
    const WORDS: &'static [(&'static str, &'static str)];

    /// Returns the word of this value.
    fn word(self) -> &'static str;

    /// Returns the value of a word, or `None` if no value has it. Case counts.
    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }
}

/// Declares an enum with the word and the meaning of each value: `Value = "word": "meaning"`.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$value_meta:meta])* $value:ident = $word:literal: $meaning:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(
                $(#[$value_meta])*
                #[doc = concat!("`", $word, "`: ", $meaning, ".")]
                $value,
            )+
        }

        impl $crate::model::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            const WORDS: &'static [(&'static str, &'static str)] = &[$(($word, $meaning)),+];

            fn word(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }
    };
}

pub(super) use words;

#[cfg(test)]
mod tests {
    use super::Word;
    use crate::model::{Algorithm, Refusal};

    #[test]
    fn every_value_is_found_by_its_word_and_by_nothing_else() {
        for value in Algorithm::ALL {
            assert_eq!(Algorithm::of_word(value.word()), Some(*value));
        }
        assert_eq!(Algorithm::of_word("Maglev"), None);
        assert_eq!(Refusal::of_word("drop"), Some(Refusal::Drop));
    }
}
