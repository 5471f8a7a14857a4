//! The design's invariants as absences: judges a file by the table of confined words, and by what no table can say.

use super::confined::{CONFINED, Confined, Tests};
use super::source::{Line, Source};
use std::fmt;

/// A line that breaks an invariant.
#[derive(Debug)]
pub struct Violation {
    path: String,
    /// Counted from 1.
    line: usize,
    found: String,
    rule: &'static str,
    why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: `{}` breaks {}: {}",
            self.path, self.line, self.found, self.rule, self.why
        )
    }
}

/// Everything in this file that breaks an invariant.
pub fn check(source: &Source) -> Vec<Violation> {
    if source.path.ends_with("Cargo.toml") {
        return common_dependencies(source);
    }
    let mut found: Vec<Violation> = CONFINED
        .iter()
        .flat_map(|rule| confined(rule, source))
        .collect();
    found.extend(first_line(source));
    found.extend(safety_notes(source));
    found.extend(whole_compile(source));
    found
}

fn confined(rule: &'static Confined, source: &Source) -> Vec<Violation> {
    let begins = |prefixes: &[&str]| {
        prefixes
            .iter()
            .any(|prefix| source.path.starts_with(prefix))
    };
    if !begins(rule.scope) || begins(rule.home) {
        return Vec::new();
    }
    let bound = |line: &&Line| rule.tests == Tests::Bound || !line.in_tests;
    let lines = source
        .lines
        .iter()
        .enumerate()
        .filter(|(_, line)| bound(line) && !is_exempt(rule, line));
    let hits = lines.filter_map(|(at, line)| {
        Some((
            at,
            rule.words.iter().find(|word| has_word(&line.code, word))?,
        ))
    });
    hits.map(|(at, word)| violation(source, at, word, rule.rule, rule.why))
        .collect()
}

/// The one trait of plain bytes says which headers it may carry, where it is defined.
fn is_exempt(rule: &Confined, line: &Line) -> bool {
    rule.rule == "invariant 4 (headers)" && line.code.starts_with("unsafe impl Wire for ")
        || rule.rule == "invariant 7" && line.code.contains("unsafe_")
}

fn violation(
    source: &Source,
    at: usize,
    found: &str,
    rule: &'static str,
    why: &'static str,
) -> Violation {
    Violation {
        path: source.path.clone(),
        line: at + 1,
        found: found.to_owned(),
        rule,
        why,
    }
}

/// Whether `code` has `word` with no letter of a longer word beside it; a `*` at its end stands for any letters.
fn has_word(code: &str, word: &str) -> bool {
    let (stem, open_end) = word
        .strip_suffix('*')
        .map_or((word, false), |stem| (stem, true));
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(stem).any(|(at, _)| {
        let before = letter(stem.chars().next()) && letter(code[..at].chars().last());
        let after = !open_end
            && letter(stem.chars().last())
            && letter(code[at + stem.len()..].chars().next());
        !before && !after
    })
}

fn first_line(source: &Source) -> Option<Violation> {
    let documented = source
        .lines
        .first()
        .is_some_and(|line| line.text.starts_with("//! ") && line.text.len() > 20);
    let why = "every file begins with a sentence that says what it owns";
    (!documented).then(|| violation(source, 0, "no `//!` sentence", "the style", why))
}

/// clippy sees the host's code only; this sees the kernel's too.
fn safety_notes(source: &Source) -> Vec<Violation> {
    let opens = |line: &Line| {
        has_word(&line.code, "unsafe")
            && ["{", "impl"]
                .iter()
                .any(|what| line.code.contains(&format!("unsafe {what}")))
    };
    let lines = source
        .lines
        .iter()
        .enumerate()
        .filter(|(at, line)| opens(line) && !has_note(source, *at));
    lines
        .map(|(at, _)| {
            violation(
                source,
                at,
                "unsafe",
                "invariant 7",
                "each unsafe says in a SAFETY note why it is sound",
            )
        })
        .collect()
}

/// A note stands on the line, or in the comment above the statement that the line is a part of.
fn has_note(source: &Source, at: usize) -> bool {
    const STATEMENT: usize = 6;
    let above = source.lines[..at]
        .iter()
        .rev()
        .take(STATEMENT)
        .take_while(|line| !ends_statement(&line.code));
    std::iter::once(&source.lines[at])
        .chain(above)
        .any(|line| line.text.contains("SAFETY:"))
}

fn ends_statement(code: &str) -> bool {
    let code = code.trim_end();
    code.ends_with(';') || code.ends_with('}')
}

/// Invariant 6: a bad object costs that object; a `compile` that can fail would cost the sync.
fn whole_compile(source: &Source) -> Vec<Violation> {
    if !source.path.starts_with("proxy-userspace/src/compile") {
        return Vec::new();
    }
    let failing =
        |line: &Line| line.code.contains("pub fn compile(") && line.code.contains("Result<");
    let lines = source
        .lines
        .iter()
        .enumerate()
        .filter(|(_, line)| failing(line));
    lines
        .map(|(at, _)| {
            violation(
                source,
                at,
                "Result",
                "invariant 6",
                "a bad object costs that object, so compile cannot fail",
            )
        })
        .collect()
}

/// Invariant 2: in the kernel build proxy-common depends on nothing, so all its dependencies are optional.
fn common_dependencies(source: &Source) -> Vec<Violation> {
    if source.path != "proxy-common/Cargo.toml" {
        return Vec::new();
    }
    let section = source
        .lines
        .iter()
        .enumerate()
        .skip_while(|(_, line)| line.text.trim() != "[dependencies]")
        .skip(1);
    let entries = section
        .take_while(|(_, line)| !line.text.starts_with('['))
        .filter(|(_, line)| line.text.contains('='));
    let always = entries.filter(|(_, line)| !line.text.contains("optional = true"));
    always
        .map(|(at, line)| {
            violation(
                source,
                at,
                &line.text,
                "invariant 2",
                "the kernel build of proxy-common depends on nothing",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = "//! A file that is here to be checked.\n";

    /// The rules that `body` breaks as a file of this path, with the lines that break them.
    fn broken(path: &str, body: &str) -> Vec<(usize, &'static str)> {
        check(&Source::new(path, &format!("{DOC}{body}")))
            .into_iter()
            .map(|found| (found.line, found.rule))
            .collect()
    }

    #[test]
    fn kernel_side_of_aya_stays_in_the_thin_binary() {
        assert_eq!(
            broken("proxy-ebpf/src/flow.rs", "use aya_ebpf::maps::HashMap;"),
            [(2, "invariant 1 (aya_ebpf)")]
        );
        assert_eq!(
            broken("proxy-ebpf/src/main.rs", "use aya_ebpf::maps::HashMap;"),
            []
        );
        assert_eq!(broken("proxy-ebpf/src/flow.rs", "// not aya_ebpf"), []);
    }

    #[test]
    fn kubernetes_types_stop_at_the_model() {
        assert_eq!(
            broken("proxy-userspace/src/compile.rs", "use kube::Client;"),
            [(2, "invariant 1 (kube)")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/model.rs",
                "fn f(a: k8s_openapi::Pod) {}"
            ),
            [(2, "invariant 1 (kube)")]
        );
        assert_eq!(
            broken("proxy-userspace/src/model/k8s.rs", "use kube::Client;"),
            []
        );
        assert_eq!(
            broken("proxy-userspace/src/model.rs", "let kubeconfig = 1;"),
            []
        );
    }

    #[test]
    fn aya_stays_at_the_kernel_seam() {
        assert_eq!(
            broken("proxy-userspace/src/sync.rs", "use aya::Ebpf;"),
            [(2, "invariant 1 (aya)")]
        );
        assert_eq!(
            broken("proxy-userspace/src/dataplane/maps.rs", "use aya::Ebpf;"),
            []
        );
        assert_eq!(
            broken("proxy-userspace/tests/kernel.rs", "use aya::Ebpf;"),
            []
        );
    }

    #[test]
    fn what_the_kernel_compiles_has_no_std() {
        assert_eq!(
            broken("proxy-common/src/net.rs", "use std::net::Ipv4Addr;"),
            [(2, "invariant 2")]
        );
        assert_eq!(
            broken("proxy-common/src/net.rs", "fn f() -> Vec<u8> {}"),
            [(2, "invariant 2")]
        );
        assert_eq!(
            broken(
                "proxy-common/src/net.rs",
                "#[cfg(test)]\nmod tests {\nuse std::net::Ipv4Addr;"
            ),
            []
        );
        assert_eq!(
            broken("proxy-ebpf/src/service.rs", "let a = format!(\"x\");"),
            [(2, "idea A")]
        );
        assert_eq!(
            broken("proxy-ebpf/src/fake.rs", "use std::collections::BTreeMap;"),
            []
        );
    }

    #[test]
    fn proxy_common_depends_on_nothing_in_the_kernel() {
        let manifest = |dependency| {
            Source::new(
                "proxy-common/Cargo.toml",
                &format!("[dependencies]\n{dependency}\n[lints]\nworkspace = true\n"),
            )
        };
        assert_eq!(check(&manifest("libc = \"0.2\"")).len(), 1);
        assert_eq!(
            check(&manifest("aya = { workspace = true, optional = true }")).len(),
            0
        );
    }

    #[test]
    fn only_sync_applies_what_place_plans() {
        assert_eq!(
            broken(
                "proxy-userspace/src/agent.rs",
                "plane.apply(writes, &mut actual);"
            ),
            [(2, "invariant 3 (applies)")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/links.rs",
                "let w = place(&contents, &actual);"
            ),
            [(2, "invariant 3 (applies)")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/sync.rs",
                "self.plane.apply(place(&contents, &actual), &mut actual);"
            ),
            []
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/agent.rs",
                "std::mem::replace(&mut a, b); state.apply(update);"
            ),
            []
        );
        assert_eq!(
            broken("proxy-userspace/src/sync.rs", "let w = Write::Put(entry);"),
            [(2, "invariant 3 (writes)")]
        );
        assert_eq!(
            broken("proxy-userspace/src/cli/services.rs", "maps.write(&w)?;"),
            [(2, "invariant 3 (writes)")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/place/plan.rs",
                "let w = Write::Put(entry);"
            ),
            []
        );
    }

    #[test]
    fn only_place_knows_ids() {
        let hidden = "let a = service.generation;";
        assert_eq!(
            broken("proxy-userspace/src/compile/services.rs", hidden),
            [(2, "invariant 3 (ids)")]
        );
        assert_eq!(
            broken("proxy-userspace/src/sync.rs", hidden),
            [(2, "invariant 3 (ids)")]
        );
        assert_eq!(broken("proxy-userspace/src/place/actual.rs", hidden), []);
        assert_eq!(
            broken("proxy-userspace/src/flows.rs", "actual.id_of(name)"),
            [(2, "invariant 3 (ids)")]
        );
        assert_eq!(
            broken("proxy-userspace/src/sync.rs", "self.actual.id_of(name)"),
            []
        );
    }

    #[test]
    fn flows_are_written_by_the_packet_path_the_sweep_and_the_migration() {
        assert_eq!(
            broken(
                "proxy-ebpf/src/service.rs",
                "tables.insert_flow(t, k, f, how)?;"
            ),
            [(2, "invariant 3 (flows)")]
        );
        assert_eq!(
            broken(
                "proxy-ebpf/src/flow.rs",
                "tables.insert_flow(t, k, f, how)?;"
            ),
            []
        );
        assert_eq!(
            broken("proxy-ebpf/src/lib.rs", "fn insert_flow(&self, key: &K);"),
            [],
            "the trait only says what there is"
        );
        for write in [
            "maps.v4.flows.delete(&key)?;",
            "self.opening.insert(key, flow, 0)?;",
            "fn f(t: &mut impl FlowTable<A>) {}",
        ] {
            assert_eq!(
                broken("proxy-userspace/src/sync.rs", write),
                [(2, "invariant 3 (flows)")],
                "{write}"
            );
            assert_eq!(broken("proxy-userspace/src/flows.rs", write), [], "{write}");
        }
        assert_eq!(
            broken(
                "proxy-userspace/src/cli/flows.rs",
                "let all = maps.v4.flows.all()?;"
            ),
            []
        );
        assert_eq!(
            broken("proxy-userspace/src/agent.rs", "raw::copy(&a, &b, how)?;"),
            [(2, "invariant 3 (flows)")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/dataplane/object.rs",
                "raw::copy(&a, &b, how)?;"
            ),
            []
        );
    }

    #[test]
    fn only_rewrite_writes_packets_and_knows_headers() {
        assert_eq!(
            broken("proxy-ebpf/src/service.rs", "p.store(0, &x)?;"),
            [(2, "invariant 4 (writes)")]
        );
        assert_eq!(
            broken("proxy-ebpf/src/main.rs", "p.store(0, &x)?;"),
            [(2, "invariant 4 (writes)")]
        );
        assert_eq!(broken("proxy-ebpf/src/rewrite.rs", "p.store(0, &x)?;"), []);
        assert_eq!(
            broken(
                "proxy-ebpf/src/kernel/packets.rs",
                "self.context.store(0, &x, 0).ok()"
            ),
            [],
            "the trait's own doing"
        );
        assert_eq!(
            broken("proxy-ebpf/src/flow.rs", "let h: Ipv4Hdr = x;"),
            [(2, "invariant 4 (headers)")]
        );
        assert_eq!(broken("proxy-ebpf/src/parse.rs", "let h: Ipv6Hdr = x;"), []);
    }

    #[test]
    fn verdict_numbers_stay_in_the_hooks() {
        assert_eq!(
            broken("proxy-ebpf/src/lib.rs", "return XDP_DROP;"),
            [(2, "invariant 5")]
        );
        assert_eq!(
            broken("proxy-userspace/src/links.rs", "let a = TC_ACT_UNSPEC;"),
            [(2, "invariant 5")]
        );
        assert_eq!(broken("proxy-ebpf/src/main.rs", "return XDP_DROP;"), []);
    }

    #[test]
    fn compile_cannot_fail_as_a_whole() {
        let failing = "pub fn compile(s: &Snapshot) -> Result<Contents> {";
        assert_eq!(
            broken("proxy-userspace/src/compile.rs", failing),
            [(2, "invariant 6")]
        );
        assert_eq!(
            broken(
                "proxy-userspace/src/compile.rs",
                "pub fn compile(s: &Snapshot) -> Contents {"
            ),
            []
        );
    }

    #[test]
    fn unsafe_is_at_the_seam_and_says_why() {
        assert_eq!(
            broken(
                "proxy-userspace/src/sync.rs",
                "// SAFETY: yes.\nunsafe { f() };"
            ),
            [(3, "invariant 7")]
        );
        assert_eq!(
            broken("proxy-ebpf/src/main.rs", "unsafe { f() };"),
            [(2, "invariant 7")]
        );
        assert_eq!(
            broken(
                "proxy-ebpf/src/main.rs",
                "// SAFETY: yes.\nlet a =\n    unsafe { f() };"
            ),
            []
        );
        assert_eq!(
            broken(
                "proxy-ebpf/src/main.rs",
                "// SAFETY: of another.\ng();\nunsafe { f() };"
            ),
            [(4, "invariant 7")]
        );
        assert_eq!(broken("proxy-ebpf/src/main.rs", "#[unsafe(no_mangle)]"), []);
    }

    #[test]
    fn tests_are_not_switched_off() {
        assert_eq!(
            broken("proxy-userspace/tests/kernel.rs", "#[ignore]\nfn t() {}"),
            [(2, "the rules for tests")]
        );
    }

    #[test]
    fn every_file_says_what_it_owns() {
        let found = check(&Source::new("xtask/src/sh.rs", "use std::fs;\n"));
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "xtask/src/sh.rs:1: `no `//!` sentence` breaks the style: every file begins with a sentence that says what it owns"
            ]
        );
    }
}
