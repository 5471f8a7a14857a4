//! Invariant 2: the kernel build of proxy-common depends on nothing.

use super::source::Source;
use super::violation::Violation;

/// Returns the dependencies of proxy-common that are not optional.
pub fn check(source: &Source) -> Vec<Violation> {
    if source.path != "proxy-common/Cargo.toml" {
        return Vec::new();
    }
    let section = source
        .lines
        .iter()
        .enumerate()
        .skip_while(|(_, line)| line.text.trim() != "[dependencies]")
        .skip(1)
        .take_while(|(_, line)| !line.text.starts_with('['));
    section
        .filter(|(_, line)| line.text.contains('=') && !line.text.contains("optional = true"))
        .map(|(at, line)| {
            let why = format!(
                "`{}` breaks invariant 2: the kernel build of proxy-common depends on nothing",
                line.text
            );
            Violation::new(&source.path, at + 1, why)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_proxy_common_are_optional() {
        let found = |dependency: &str| {
            let text = format!("[dependencies]\n{dependency}\n[lints]\nworkspace = true\n");
            check(&Source::new("proxy-common/Cargo.toml", &text)).len()
        };
        assert_eq!(found("libc = \"0.2\""), 1);
        assert_eq!(found("aya = { workspace = true, optional = true }"), 0);
    }
}
