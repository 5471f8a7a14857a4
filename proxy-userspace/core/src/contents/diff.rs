//! Differences of two ordered maps.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Returns the keys with different values, in order, with the new value; `None` if the key is gone.
pub fn changes<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            match order {
                Ordering::Less => return old.next().map(|(key, _)| (key, None)),
                Ordering::Greater => return new.next().map(|(key, value)| (key, Some(value))),
                Ordering::Equal => {
                    if let (Some((_, a)), Some((key, b))) = (old.next(), new.next())
                        && a != b
                    {
                        return Some((key, Some(b)));
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::changes;
    use std::collections::BTreeMap;

    #[test]
    fn added_changed_and_gone_keys_are_named_and_equal_ones_are_not() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c'), (9, 'z')]);
        let new = BTreeMap::from([(0, 'n'), (2, 'b'), (3, 'd'), (4, 'e')]);
        let seen: Vec<_> = changes(&old, &new).collect();
        assert_eq!(
            seen,
            [
                (&0, Some(&'n')),
                (&1, None),
                (&3, Some(&'d')),
                (&4, Some(&'e')),
                (&9, None)
            ]
        );
    }
}
