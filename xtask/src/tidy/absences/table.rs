//! The words of the design's invariants, and the files that may have them.

/// Words that may stand in the code of some files only.
pub struct Confined {
    /// The invariant's number or name.
    pub rule: &'static str,
    /// The reason for the rule.
    pub why: &'static str,
    /// The words. A `*` at the end of a word stands for any letters.
    pub words: &'static [&'static str],
    /// The rule applies to paths that begin with one of these. Each matches a file.
    pub scope: &'static [&'static str],
    /// Paths that begin with one of these may have the words. Below each, some line has one.
    pub home: &'static [&'static str],
    /// Selects the lines that the rule applies to.
    pub tests: Tests,
}

/// The lines of a file that a rule applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    /// All lines.
    Bound,
    /// All lines but those of tests.
    Free,
}

const EVERYWHERE: &[&str] = &[""];
const PROXY: &[&str] = &["proxy-"];
const AGENT: &[&str] = &["proxy-userspace/src/", "proxy-userspace/core/src/"];
const PLACE: &str = "proxy-userspace/core/src/place";
const DATAPLANE: &str = "proxy-userspace/src/dataplane";
const SYNC: &str = "proxy-userspace/src/sync";
const EBPF_MAIN: &str = "proxy-ebpf/src/main.rs";
const EBPF_KERNEL: &str = "proxy-ebpf/src/kernel/";

/// Every such rule.
pub const CONFINED: &[Confined] = &[
    Confined {
        rule: "invariant 1 (aya_ebpf)",
        why: "only the binary, main.rs and kernel/ of proxy-ebpf, uses the kernel side of aya, so that the packet path also runs on the host",
        words: &["aya_ebpf", "aya_log_ebpf"],
        scope: EVERYWHERE,
        home: &[EBPF_MAIN, EBPF_KERNEL],
        tests: Tests::Bound,
    },
    Confined {
        rule: "invariant 1 (kube)",
        why: "Kubernetes' types stop at source and model/k8s; everything behind uses our own types",
        words: &["kube", "k8s_openapi"],
        scope: PROXY,
        // The reading of NetworkPolicies that the compiler is compared to shares no code with it.
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
        why: "only dataplane touches the kernel through aya; everything else is values",
        words: &["aya::", "aya_log::"],
        scope: PROXY,
        home: &[DATAPLANE, "proxy-common/src/pod.rs"],
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
        why: "place plans the writes and dataplane carries them out; nothing else writes the tables",
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
        home: &[SYNC, PLACE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (ids)",
        why: "only place assigns generations, slots and ids, and dataplane stores them; everything else uses names",
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
        why: "only sync asks place for a service port's id, for the sweep",
        words: &["id_of(", "next_id("],
        scope: AGENT,
        home: &[SYNC, PLACE],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (flows)",
        why: "in the packet path only flow writes flows, so that both directions are created and removed together",
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
        why: "beside the packet path only the sweep writes flows, and it checks both directions",
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
        home: &["proxy-userspace/src/flows.rs"],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 3 (flows)",
        why: "whole maps, flows among them, are copied only when a new agent adopts those of an earlier one",
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
        why: "only parse names the headers of IPv4 and IPv6; the rest is generic over the family",
        words: &["Ipv4Hdr", "Ipv6Hdr"],
        scope: PROXY,
        home: &["proxy-ebpf/src/parse"],
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 5",
        why: "each hook turns its result into a verdict number in one match; everywhere else a verdict is Action or Err(Reason)",
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
        // TestRun returns verdicts as numbers.
        tests: Tests::Free,
    },
    Confined {
        rule: "invariant 7",
        why: "unsafe is allowed at the kernel seam only",
        words: &["unsafe"],
        scope: EVERYWHERE,
        home: &[
            EBPF_MAIN,
            EBPF_KERNEL,
            "proxy-ebpf/src/seams.rs",
            "proxy-ebpf/src/fake",
            "proxy-common/src/pod.rs",
            DATAPLANE,
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
