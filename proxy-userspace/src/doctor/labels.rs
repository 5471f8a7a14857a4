//! Selectors and labels that nearly match.

use std::collections::BTreeMap;

use crate::model::Labels;

/// Distance of labels from a selector: the number of pairs that differ, then the number of letters.
pub(super) type Distance = (usize, usize);

/// Returns the distance and the differences.
pub(super) fn difference(selector: &Labels, labels: &Labels) -> (Distance, Vec<Difference>) {
    let differences: Vec<_> = selector
        .iter()
        .filter_map(|(key, value)| pair(key, value, labels))
        .collect();
    let letters = differences.iter().map(|d| d.letters).sum();
    ((differences.len(), letters), differences)
}

/// One pair of a selector that labels do not have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Difference {
    /// `key=value` of the selector.
    pub(super) asked: String,
    /// The nearest `key=value` of the labels; `None` if none is similar.
    pub(super) found: Option<String>,
    /// Number of letters in which they differ.
    pub(super) letters: usize,
}

/// Compares with the label of the same key, else with the one of the nearest spelling.
fn pair(key: &str, value: &str, labels: &Labels) -> Option<Difference> {
    let asked = format!("{key}={value}");
    match labels.get(key) {
        Some(found) if found == value => None,
        Some(found) => Some(Difference {
            asked,
            found: Some(format!("{key}={found}")),
            letters: strsim::osa_distance(value, found),
        }),
        None => {
            let candidates = labels.iter().map(|(k, v)| {
                (
                    strsim::osa_distance(key, k) + strsim::osa_distance(value, v),
                    k,
                    v,
                )
            });
            let near = candidates.min().filter(|(letters, _, _)| *letters <= 3);
            let letters = near.map_or(asked.len(), |(letters, _, _)| letters);
            Some(Difference {
                asked,
                found: near.map(|(_, k, v)| format!("{k}={v}")),
                letters,
            })
        }
    }
}

/// Returns the things with the labels nearest to the selector, and their differences; `None` if
/// none resembles it.
pub(super) fn nearest<T>(
    selector: &Labels,
    things: impl Iterator<Item = (T, Labels)>,
) -> Option<(Vec<T>, Vec<Difference>)> {
    let mut groups: BTreeMap<(Distance, Vec<Difference>), Vec<T>> = BTreeMap::new();
    for (thing, labels) in things {
        let (distance, differences) = difference(selector, &labels);
        let alike =
            differences.len() < selector.len() || differences.iter().any(|d| d.found.is_some());
        if alike {
            groups
                .entry((distance, differences))
                .or_default()
                .push(thing);
        }
    }
    groups
        .into_iter()
        .next()
        .map(|((_, differences), things)| (things, differences))
}

/// Writes labels as `app=web, tier=front`.
pub(super) fn words(labels: &Labels) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn the_fewest_differences_and_then_the_least_spelling_win() {
        let selector = labels(&[("app", "demo"), ("tier", "wbe")]);
        let things = [
            ("other", labels(&[("app", "shop")])),
            ("api", labels(&[("app", "demo"), ("tier", "api-server")])),
            ("web", labels(&[("app", "demo"), ("tier", "web")])),
        ];
        let (who, what) = nearest(&selector, things.into_iter()).expect("something near");
        assert_eq!(
            (who, what[0].found.as_deref()),
            (vec!["web"], Some("tier=web"))
        );
    }

    #[test]
    fn a_key_in_other_letters_is_seen_and_a_stranger_is_not() {
        let selector = labels(&[("app", "demo")]);
        let (_, what) = nearest(&selector, [((), labels(&[("App", "demo")]))].into_iter())
            .expect("something near");
        assert_eq!(what[0].found.as_deref(), Some("App=demo"));
        assert!(
            nearest(
                &selector,
                [((), labels(&[("component", "database")]))].into_iter()
            )
            .is_none()
        );
    }
}
