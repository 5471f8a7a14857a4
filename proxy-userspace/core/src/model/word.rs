//! Words that people type: each is spelled once, on its enum, for flags, annotations and output alike.

/// An enum with a word for each value.
pub trait Word: Copy + 'static {
    /// Every value, in the order in which help lists them.
    const ALL: &'static [Self];

    /// Returns the word of this value.
    fn word(self) -> &'static str;

    /// Returns the meaning of this value, in a few words for help.
    fn meaning(self) -> &'static str;

    /// Returns the value of a word, which is case-sensitive.
    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }
}

/// Gives each value of an enum its word and its meaning: `words!(Enum { Value = "word", "meaning"; })`.
macro_rules! words {
    ($type:ident { $($value:ident = $word:literal, $meaning:literal;)+ }) => {
        impl $crate::model::Word for $type {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn word(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }

            fn meaning(self) -> &'static str {
                match self { $(Self::$value => $meaning),+ }
            }
        }
    };
}

pub(super) use words;
