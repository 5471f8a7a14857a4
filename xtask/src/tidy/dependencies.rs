//! The manifests of the crates that stay small: proxy-common in the kernel build, and proxy-core.

use super::source::{Line, Source};
use super::violation::Violation;

/// Crates that proxy-core is built and tested without; nor is LLVM, which the agent's build needs.
const NOT_IN_CORE: [&str; 5] = ["aya", "kube", "k8s-openapi", "tokio", "proxy-userspace"];

/// Returns the dependencies that break invariant 1 or 2.
pub fn check(source: &Source) -> Vec<Violation> {
    let (breaks, why): (fn(&str) -> bool, _) = match source.path.as_str() {
        "proxy-common/Cargo.toml" => (
            |line| !line.contains("optional = true"),
            "breaks invariant 2: the kernel build of proxy-common depends on nothing",
        ),
        "proxy-userspace/core/Cargo.toml" => (
            |line| NOT_IN_CORE.contains(&name(line)),
            "breaks invariant 1: proxy-core is pure, and built without LLVM",
        ),
        _ => return Vec::new(),
    };
    dependencies(source)
        .filter(|(_, line)| breaks(&line.text))
        .map(|(at, line)| Violation::new(&source.path, at + 1, format!("`{}` {why}", line.text)))
        .collect()
}

/// The lines of `[dependencies]`, with their index.
fn dependencies(source: &Source) -> impl Iterator<Item = (usize, &Line)> {
    let section = source
        .lines
        .iter()
        .enumerate()
        .skip_while(|(_, line)| line.text.trim() != "[dependencies]")
        .skip(1)
        .take_while(|(_, line)| !line.text.starts_with('['));
    section.filter(|(_, line)| line.text.contains('='))
}

/// The name of the crate that a line asks for.
fn name(line: &str) -> &str {
    line.split(['=', '.']).next().unwrap_or(line).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, dependency: &str) -> usize {
        let text = format!(
            "[dependencies]\n{dependency}\n[dev-dependencies]\ntokio = \"1\"\n[lints]\nworkspace = true\n"
        );
        check(&Source::new(path, &text)).len()
    }

    #[test]
    fn dependencies_of_proxy_common_are_optional() {
        let of_common = |dependency: &str| found("proxy-common/Cargo.toml", dependency);
        assert_eq!(of_common("libc = \"0.2\""), 1);
        assert_eq!(of_common("aya = { workspace = true, optional = true }"), 0);
    }

    #[test]
    fn proxy_core_does_without_the_kernel_and_the_api_server() {
        let of_core = |dependency: &str| found("proxy-userspace/core/Cargo.toml", dependency);
        assert_eq!(of_core("tokio.workspace = true"), 1);
        assert_eq!(of_core("kube = \"4\""), 1);
        assert_eq!(of_core("ipnet.workspace = true"), 0);
        assert_eq!(found("proxy-userspace/Cargo.toml", "tokio = \"1\""), 0);
    }
}
