//! Whole words in a line of code.

/// True if `code` has `word` and no letter of a longer word beside it; a `*` at the end of `word`
/// stands for any letters.
pub fn has_word(code: &str, word: &str) -> bool {
    let (stem, open_end) = word
        .strip_suffix('*')
        .map_or((word, false), |stem| (stem, true));
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(stem).any(|(at, _)| {
        let before = is_letter(stem.chars().next()) && is_letter(code[..at].chars().last());
        let after = !open_end
            && is_letter(stem.chars().last())
            && is_letter(code[at + stem.len()..].chars().next());
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_unless_they_are_open() {
        assert!(has_word("use aya::Ebpf;", "aya::"));
        assert!(has_word("a(Vec<u8>)", "Vec"));
        assert!(!has_word("VecDeque::new()", "Vec"));
        assert!(has_word("TC_ACT_OK", "TC_ACT_*"));
        assert!(!has_word("MY_TC_ACT_OK", "TC_ACT_*"));
        assert!(has_word("x.store(0)", ".store("));
    }
}
