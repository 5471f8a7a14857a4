//! Each rule of the table, by a line that breaks it and one that does not.

use super::*;
use crate::tidy::repository::repository;

const DOC: &str = "//! A file that is here to be checked.\n";

/// The rules that `body` breaks as a file of this path, with the lines that break them.
fn broken(path: &str, body: &str) -> Vec<(usize, &'static str)> {
    let source = Source::new(path, &format!("{DOC}{body}"));
    let rule = |why: &str| {
        let is_named = |rule: &&Confined| why.contains(&format!("breaks {}: ", rule.rule));
        CONFINED.iter().find(is_named).expect("a rule").rule
    };
    outside_its_home(&source)
        .into_iter()
        .map(|found| (found.line, rule(&found.why)))
        .collect()
}

#[test]
fn unused_permits_and_scopes_are_found() {
    let rule = Confined {
        rule: "a rule",
        why: "why",
        words: &["aya::"],
        scope: &["a/src/", "gone/"],
        home: &["a/src/kernel", "a/src/left"],
        tests: Tests::Free,
    };
    let used = "use aya::Ebpf;";
    let only_in_tests = "#[cfg(test)]\nmod tests {\n    use aya::Ebpf;\n}";
    let files = [("a/src/kernel.rs", used), ("a/src/left.rs", only_in_tests)];
    let found = unused(&rule, &repository(&files));
    let why: Vec<&str> = found.iter().map(|found| found.why.as_str()).collect();
    assert_eq!(
        why,
        [
            "a rule: no line under `a/src/left` uses [\"aya::\"]",
            "a rule: no file is under `gone/`"
        ]
    );
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
        broken("proxy-userspace/core/src/compile.rs", "use kube::Client;"),
        [(2, "invariant 1 (kube)")]
    );
    assert_eq!(
        broken(
            "proxy-userspace/core/src/model.rs",
            "fn f(a: k8s_openapi::Pod) {}"
        ),
        [(2, "invariant 1 (kube)")]
    );
    assert_eq!(
        broken("proxy-userspace/src/model/k8s.rs", "use kube::Client;"),
        []
    );
    assert_eq!(
        broken("proxy-userspace/core/src/model.rs", "let kubeconfig = 1;"),
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
            "proxy-userspace/core/src/place/plan.rs",
            "let w = Write::Put(entry);"
        ),
        []
    );
}

#[test]
fn only_place_assigns_ids() {
    let hidden = "let a = service.generation;";
    assert_eq!(
        broken("proxy-userspace/core/src/compile/services.rs", hidden),
        [(2, "invariant 3 (ids)")]
    );
    assert_eq!(
        broken("proxy-userspace/src/sync.rs", hidden),
        [(2, "invariant 3 (ids)")]
    );
    assert_eq!(
        broken("proxy-userspace/core/src/place/actual.rs", hidden),
        []
    );
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
        "a trait only declares it"
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
fn only_rewrite_writes_packets_and_only_parse_names_headers() {
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
fn unsafe_is_at_the_seam() {
    assert_eq!(
        broken("proxy-userspace/src/sync.rs", "unsafe { f() };"),
        [(2, "invariant 7")]
    );
    assert_eq!(broken("proxy-ebpf/src/main.rs", "unsafe { f() };"), []);
    assert_eq!(
        broken("proxy-userspace/src/sync.rs", "#![deny(unsafe_code)]"),
        []
    );
}

#[test]
fn tests_are_not_switched_off() {
    assert_eq!(
        broken("proxy-userspace/tests/kernel.rs", "#[ignore]\nfn t() {}"),
        [(2, "the rules for tests")]
    );
}
