//! Options of Services, set by flags for all and by annotations for one; all annotations that are
//! read.

use std::fmt;

use super::word::words;
use super::{Kind, Word};

words! {
    /// How the backend of a new connection is chosen (V15).
    #[derive(Default)]
    pub enum Algorithm {
        #[default]
        Random = "random": "a hash with a key of each node's own; every backend is equally likely",
        Maglev = "maglev": "consistent hashing; all nodes choose alike, and few choices change when a backend leaves",
    }
}

words! {
    /// How replies return to a client outside, from a backend of another node than it asked.
    #[derive(Default)]
    pub enum Forwarding {
        #[default]
        Masquerade = "masquerade": "through the node that the client asked; the pod sees that node's address",
        Dsr = "dsr": "straight from the backend's node (direct server return); the pod sees the client's address",
    }
}

/// Makes [`ServiceOptions`], [`ServiceAnnotations`] and [`Annotation::ALL`] from one entry for each
/// option.
macro_rules! service_options {
    ($($option:ident: $type:ident {
        annotation: $name:ident = $key:literal,
        flag: $flag:literal,
        meaning: $meaning:literal,
    })+) => {
        /// The options of a Service, each with a value.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServiceOptions {
            $(#[doc = concat!($meaning, ".")] pub $option: $type,)+
        }

        /// The options that a Service's annotations set.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServiceAnnotations {
            $(#[doc = concat!("`", $key, "`: ", $meaning, ".")] pub $option: Option<$type>,)+
        }

        impl ServiceAnnotations {
            /// Reads the options from a Service's annotations, which `get` returns by key.
            ///
            /// # Errors
            /// If an annotation has a value that is not one of its words.
            pub fn read<'a>(
                get: impl Fn(&'static str) -> Option<&'a str>,
            ) -> Result<Self, BadAnnotation> {
                Ok(Self { $($option: read(&Annotation::$name, get($key))?,)+ })
            }

            /// Returns the options in force: those of the annotations, else the given ones.
            pub fn over(self, given: ServiceOptions) -> ServiceOptions {
                ServiceOptions { $($option: self.$option.unwrap_or(given.$option),)+ }
            }
        }

        impl Annotation {
            $(
                #[doc = concat!("`", $key, "`.")]
                pub const $name: Self = Self {
                    key: $key,
                    kind: Kind::Service,
                    values: <$type as Word>::WORDS,
                    flag: Some($flag),
                    meaning: $meaning,
                };
            )+

            /// Every annotation that is read, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+ Self::ANY_SOURCE];
        }
    };
}

service_options! {
    algorithm: Algorithm {
        annotation: ALGORITHM = "portway.dev/algorithm",
        flag: "--algorithm",
        meaning: "How the backend of a new connection is chosen",
    }
    forwarding: Forwarding {
        annotation: FORWARDING = "portway.dev/forwarding",
        flag: "--forwarding",
        meaning: "How replies return to a client outside, from a backend of another node than it asked",
    }
}

/// An annotation that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The key in `metadata.annotations`.
    pub key: &'static str,
    /// The kind of object that has it.
    pub kind: Kind,
    /// The values that count, each with its meaning.
    pub values: &'static [(&'static str, &'static str)],
    /// The agent's flag for objects without the annotation, if there is one.
    pub flag: Option<&'static str>,
    /// The meaning of the annotation, without a full stop.
    pub meaning: &'static str,
}

impl Annotation {
    /// `portway.dev/any-source`: for routers, VPN gateways and virtual IPs.
    pub const ANY_SOURCE: Self = Self {
        key: "portway.dev/any-source",
        kind: Kind::Pod,
        values: &[(
            "true",
            "the pod may do so; any other value counts as absent",
        )],
        flag: None,
        meaning: "The pod may send with addresses that are not its own (P33)",
    };

    /// Returns true if an object with this value of the annotation has it switched on.
    pub fn is_on(&self, value: Option<&str>) -> bool {
        self.values.iter().any(|(word, _)| value == Some(word))
    }
}

/// An annotation whose value is not one of its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAnnotation {
    /// The annotation.
    pub annotation: Annotation,
    /// Its value.
    pub value: String,
}

impl fmt::Display for BadAnnotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self
            .annotation
            .values
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect();
        write!(f, "`{}`: expected {}", self.value, words.join(" or "))
    }
}

fn read<T: Word>(annotation: &Annotation, value: Option<&str>) -> Result<Option<T>, BadAnnotation> {
    let Some(value) = value else { return Ok(None) };
    T::of_word(value).map(Some).ok_or_else(|| BadAnnotation {
        annotation: *annotation,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn annotations_have_keys_of_their_own_and_values() {
        let keys: BTreeSet<_> = Annotation::ALL.iter().map(|a| a.key).collect();
        assert_eq!(keys.len(), Annotation::ALL.len());
        assert!(Annotation::ALL.iter().all(|a| !a.values.is_empty()));
    }

    #[test]
    fn annotations_have_the_last_word_over_flags() {
        let read = |key: &'static str| (key == "portway.dev/forwarding").then_some("dsr");
        let annotations = ServiceAnnotations::read(read).expect("a word");
        let flags = ServiceOptions {
            algorithm: Algorithm::Maglev,
            ..ServiceOptions::default()
        };
        let both = ServiceOptions {
            forwarding: Forwarding::Dsr,
            ..flags
        };
        assert_eq!(annotations.over(flags), both);
        assert_eq!(ServiceAnnotations::default().over(flags), flags);
    }
}
