//! The words of the design's invariants, and the files that may have them: a table, judged by `rules`.

/// Words that may stand in the code of some files only.
pub struct Confined {
    /// The invariant's number or name.
    pub rule: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// With a `*` at the end: and whatever follows.
    pub words: &'static [&'static str],
    /// Paths that the rule looks at begin with one of these.
    pub scope: &'static [&'static str],
    /// Paths that may have the words begin with one of these.
    pub home: &'static [&'static str],
    /// Whether it looks at tests.
    pub tests: Tests,
}

/// Whether a rule holds in tests too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    /// It does.
    Bound,
    /// It does not.
    Free,
}

const EVERYWHERE: &[&str] = &[""];
const PROXY: &[&str] = &["proxy-"];
const AGENT: &[&str] = &["proxy-userspace/src/"];
const PLACE: &str = "proxy-userspace/src/place";
const DATAPLANE: &str = "proxy-userspace/src/dataplane";
const SYNC: &str = "proxy-userspace/src/sync";
const EBPF_MAIN: &str = "proxy-ebpf/src/main.rs";
const EBPF_KERNEL: &str = "proxy-ebpf/src/kernel/";

/// Every such rule.
pub const CONFINED: &[Confined] = &[
    Confined {
        rule: "invariant 1 (aya_ebpf)",
        why: "only the binary, main.rs and kernel/ of proxy-ebpf, knows the kernel's side of aya, so that the packet path also runs on the host",
        words: &["aya_ebpf", "aya_log_ebpf"],
        scope: EVERYWHERE,
        home: &[EBPF_MAIN, EBPF_KERNEL],
        tests: Tests::Bound,
    },
    Confined {
        rule: "invariant 1 (kube)",
        why: "Kubernetes' types stop at source and model/k8s; behind them are our own words",
        words: &["kube", "k8s_openapi"],
        scope: PROXY,
        // The reading of NetworkPolicies that the compiler is held against shares nothing with it.
        home: &[
            "proxy-userspace/src/source",
            "proxy-userspace/src/model/k8s",
            "proxy-userspace/tests/conformance/policy",
            "proxy-userspace/tests/policies",
        ],
        tests: Tests::Bound,
    },
    Confined {
        rule: "invariant 1 (aya)",
        why: "the kernel is touched in dataplane, links, metrics and monitor only; everything else is values",
        words: &["aya::", "aya_log::"],
        scope: PROXY,
        home: &[
            "proxy-userspace/src/dataplane",
            "proxy-userspace/src/links",
            "proxy-userspace/src/metrics",
            "proxy-userspace/src/monitor",
            "proxy-common/src/pod.rs",
        ],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 2",
        why: "proxy-common is compiled for the kernel: it allocates nothing and does no I/O",
        words: &[
            "std::",
            "alloc::",
            "extern crate",
            "Vec",
            "String",
            "Box",
            "format!",
            "println!",
        ],
        scope: &["proxy-common/src/"],
        home: &[],
        tests: Tests::Free,
    },
    Confined {
        rule: "idea A",
        why: "the packet path is compiled for the kernel: no std beside the host tables of tests",
        words: &[
            "std::", "alloc::", "Vec", "String", "Box", "format!", "println!",
        ],
        scope: &["proxy-ebpf/src/"],
        home: &["proxy-ebpf/src/fake"],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (writes)",
        why: "place plans what is written, sync has it applied, dataplane does it; nobody else writes what is served",
        words: &["Write::Put", "Write::Delete", "maps.write("],
        scope: AGENT,
        home: &[PLACE, DATAPLANE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (applies)",
        why: "one task owns the state: only sync plans writes and applies them",
        words: &[
            "plane.apply(",
            "dataplane.apply(",
            "place(",
            "place_delta(",
            "retire(",
            "retire_those(",
        ],
        scope: AGENT,
        home: &[SYNC, PLACE, DATAPLANE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (ids)",
        why: "only place knows generations, slots and ids, and dataplane their form in the kernel; all else is in symbols",
        words: &[
            "generation",
            "SlotKey",
            "reserve_id",
            "Key::Name",
            "Entry::Name",
        ],
        scope: AGENT,
        home: &[PLACE, DATAPLANE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (ids)",
        why: "who has to tell a service port's id asks place, and only sync does, for the sweep",
        words: &["id_of(", "next_id("],
        scope: AGENT,
        home: &[SYNC, PLACE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (flows)",
        why: "in the packet path only flow writes flows, so that both directions come and go together",
        words: &[
            ".insert_flow(",
            ".remove_flow(",
            ".promote_flow(",
            ".touch_flow(",
        ],
        scope: &["proxy-ebpf/src/"],
        home: &["proxy-ebpf/src/flow", "proxy-ebpf/src/fake"],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (flows)",
        why: "beside the packet path flows are written by the sweep only, which looks at both directions",
        words: &[
            "&mut impl FlowTable",
            "&mut dyn FlowTable",
            "&mut v4.flows",
            "&mut v6.flows",
            "&mut v4.opening",
            "&mut v6.opening",
            ".flows.insert(",
            ".flows.remove(",
            ".flows.delete(",
            ".opening.insert(",
            ".opening.remove(",
            ".opening.delete(",
        ],
        scope: AGENT,
        home: &[
            "proxy-userspace/src/flows.rs",
            "proxy-userspace/src/dataplane/flowtable.rs",
        ],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (flows)",
        why: "whole maps, flows among them, are copied when a new agent adopts those of an earlier one, and never again",
        words: &["raw::copy("],
        scope: AGENT,
        home: &["proxy-userspace/src/dataplane/object.rs"],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 4 (writes)",
        why: "only rewrite writes packet bytes, so that a packet is either whole or untouched",
        words: &[".store(", ".fix_checksum(", ".truncate("],
        scope: &["proxy-ebpf/src/"],
        home: &[
            "proxy-ebpf/src/rewrite",
            "proxy-ebpf/src/fake",
            "proxy-ebpf/src/kernel/packets.rs",
        ],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 4 (headers)",
        why: "only parse and rewrite know IPv4 from IPv6 headers; the rest is generic over the family",
        words: &["Ipv4Hdr", "Ipv6Hdr"],
        scope: PROXY,
        home: &[
            "proxy-ebpf/src/parse",
            "proxy-ebpf/src/rewrite",
            "proxy-ebpf/src/fake",
        ],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 5",
        why: "a verdict's number is chosen in one match per hook; everywhere else it is Action or Err(Reason)",
        words: &[
            "XDP_PASS",
            "XDP_DROP",
            "XDP_TX",
            "XDP_REDIRECT",
            "XDP_ABORTED",
            "xdp_action",
            "TC_ACT_*",
            "TCX_*",
        ],
        scope: EVERYWHERE,
        home: &[EBPF_MAIN],
        // TestRun answers with numbers.
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 7",
        why: "unsafe stands at the kernel seam only",
        words: &["unsafe"],
        scope: EVERYWHERE,
        home: &[
            EBPF_MAIN,
            EBPF_KERNEL,
            "proxy-ebpf/src/seams.rs",
            "proxy-ebpf/src/fake",
            "proxy-common/src/pod.rs",
            "proxy-userspace/src/dataplane",
            "proxy-userspace/src/links",
            "xtask/src/lab/",
        ],
        tests: Tests::Free,
    },
    Confined {
        rule: "the rules for tests",
        why: "a test that is not run passes by being skipped",
        words: &["#[ignore"],
        scope: EVERYWHERE,
        home: &[],
        tests: Tests::Bound,
    },
];
