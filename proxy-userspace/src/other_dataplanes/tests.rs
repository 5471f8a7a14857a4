//! Captured rulesets, and real rules of `nft` and `iptables` in network namespaces.

use std::path::PathBuf;

use super::look::Seen;
use super::rules::{from_iptables, from_nft};
use super::*;
use crate::testing::Namespace;

fn judged(seen: Seen) -> Vec<String> {
    judge::judge(&seen)
        .iter()
        .map(|foreign| format!("{}: {foreign}", foreign.kind.name()))
        .collect()
}

fn by_nft(objects: &str) -> Vec<String> {
    judged(Seen {
        tables: from_nft(&format!("{{\"nftables\": [{objects}]}}")),
        ..Seen::default()
    })
}

fn by_iptables(text: &str) -> Vec<String> {
    judged(Seen {
        tables: from_iptables("iptables", text),
        ..Seen::default()
    })
}

/// Output of nft 1.0.6.
const FIREWALLD: &str = r#"{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
{"table": {"family": "inet", "name": "firewalld", "handle": 1}},
{"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 10, "policy": "accept"}},
{"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD_POLICIES", "handle": 2}},
{"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "handle": 5, "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "handle": 6, "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"an expression of tomorrow": 1}, {"drop": null}]}}"#;

#[test]
fn a_rule_that_refuses_is_found_although_not_all_of_it_is_understood() {
    assert_eq!(
        by_nft(FIREWALLD),
        [
            "firewall: firewalld (chain filter_FORWARD in nftables inet table firewalld: a rule refuses)"
        ]
    );
}

#[test]
fn refusals_are_followed_through_jumps_goto_and_verdict_maps_and_loops_end() {
    let chain = |name: &str, more: &str| {
        format!(r#"{{"chain": {{"family": "inet", "table": "t", "name": "{name}"{more}}}}},"#)
    };
    let rule = |chain: &str, expr: &str| {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "t", "chain": "{chain}", "expr": [{expr}]}}}},"#
        )
    };
    let chains = chain("f", r#", "hook": "forward", "policy": "accept""#)
        + &chain("a", "")
        + &chain("b", "");
    let there =
        rule("f", r#"{"goto": {"target": "a"}}"#) + &rule("a", r#"{"jump": {"target": "f"}}"#);
    let last = rule(
        "b",
        r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#,
    );
    let map = rule(
        "a",
        r#"{"vmap": {"key": {"meta": {"key": "iif"}}, "data": {"set": [["eth0", {"jump": {"target": "b"}}]]}}}"#,
    );
    let end = r#"{"metainfo": {}}"#;
    assert_eq!(
        by_nft(&format!("{chains}{there}{last}{end}")),
        [""; 0],
        "b is not reached"
    );
    assert_eq!(
        by_nft(&format!("{chains}{there}{map}{last}{end}")),
        ["firewall: this host's own rules (chain f in nftables inet table t: a rule refuses in b)"]
    );
}

#[test]
fn a_chain_of_another_hook_is_no_firewall_for_forwarded_packets() {
    assert_eq!(
        by_nft(&FIREWALLD.replace("\"hook\": \"forward\"", "\"hook\": \"input\"")),
        [""; 0]
    );
}

#[test]
fn kube_proxys_modes_are_told_apart() {
    let nft = r#"{"table": {"family": "ip6", "name": "kube-proxy", "handle": 1}},
        {"chain": {"family": "ip6", "table": "kube-proxy", "name": "filter-forward", "hook": "forward", "policy": "accept"}},
        {"rule": {"family": "ip6", "table": "kube-proxy", "chain": "filter-forward", "expr": [{"drop": null}]}}"#;
    assert_eq!(
        by_nft(nft),
        ["dataPlane: kube-proxy, nftables mode (nftables ip6 table kube-proxy)"]
    );

    let iptables = "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
        -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n";
    assert_eq!(
        by_iptables(iptables),
        ["dataPlane: kube-proxy, iptables mode (chain KUBE-SERVICES in iptables table nat)"]
    );

    let tables = from_iptables("iptables", iptables);
    let seen = Seen {
        tables,
        devices: vec!["kube-ipvs0".to_owned()],
        ..Seen::default()
    };
    assert_eq!(
        judged(seen),
        ["dataPlane: kube-proxy, IPVS mode (device kube-ipvs0)"]
    );
}

#[test]
fn the_kubelets_own_chains_are_no_data_plane() {
    assert_eq!(
        by_iptables("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"),
        [""; 0]
    );
}

#[test]
fn cilium_and_calico_are_known_by_any_of_their_marks() {
    let on = |name: &str| vec![("eth0".to_owned(), name.to_owned())];
    let cilium = Seen {
        devices: vec!["lo".into(), "cilium_host".into()],
        pins: vec!["cilium_lb4_services_v2".into()],
        programs: on("cil_from_netdev"),
        ..Seen::default()
    };
    assert_eq!(
        judged(cilium),
        [
            "dataPlane: Cilium (device cilium_host)",
            "dataPlane: Cilium (pinned map cilium_lb4_services_v2)",
            "dataPlane: Cilium (program cil_from_netdev on eth0)"
        ]
    );
    let calico = Seen {
        programs: on("cali_tc_preambl"),
        ..Seen::default()
    };
    assert_eq!(
        judged(calico),
        ["dataPlane: Calico (program cali_tc_preambl on eth0)"]
    );
    let chains = "*filter\n:FORWARD ACCEPT [0:0]\n:cali-FORWARD - [0:0]\n-A FORWARD -j cali-FORWARD\n-A cali-FORWARD -j DROP\n";
    assert_eq!(
        by_iptables(chains),
        ["dataPlane: Calico (chain cali-FORWARD in iptables table filter)"]
    );
}

#[test]
fn ufw_and_dockers_policy_are_named() {
    let ufw = "*filter\n:FORWARD ACCEPT [0:0]\n:ufw-reject-forward - [0:0]\n-A FORWARD -j ufw-reject-forward\n\
        -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
    let evidence = "chain FORWARD in iptables table filter";
    assert_eq!(
        by_iptables(ufw),
        [format!(
            "firewall: ufw ({evidence}: a rule refuses in ufw-reject-forward)"
        )]
    );
    let docker = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\nCOMMIT\n";
    assert_eq!(
        by_iptables(docker),
        [format!(
            "firewall: Docker's rules, or others beside them ({evidence}: policy drop)"
        )]
    );
}

#[test]
fn nothing_is_made_of_what_is_no_ruleset() {
    for text in [
        "",
        "{",
        "[]",
        "{\"nftables\": 3}",
        "{\"nftables\": [{\"rule\": 7}, 8]}",
    ] {
        assert_eq!(from_nft(text), [], "{text}");
        assert_eq!(from_iptables("iptables", text), []);
    }
}

/// Returns the findings in this namespace, without the evidence's numbers.
fn found_in(host: &Namespace) -> Vec<String> {
    host.run(|| {
        find(&PathBuf::from("/nonexistent"))
            .iter()
            .map(ToString::to_string)
            .collect()
    })
}

#[test]
fn real_rules_of_nft_are_found_and_gone_when_they_are() {
    let host = Namespace::new();
    assert_eq!(found_in(&host), [""; 0], "a fresh namespace");
    host.command("nft", "add table ip kube-proxy");
    host.command("nft", "add table inet edge");
    host.command(
        "nft",
        "add chain inet edge guard { type filter hook forward priority 0 ; policy accept ; }",
    );
    assert_eq!(
        found_in(&host),
        ["kube-proxy, nftables mode (nftables ip table kube-proxy)"],
        "a chain that lets all pass"
    );
    host.command(
        "nft",
        "add rule inet edge guard ip saddr 203.0.113.0/24 counter drop",
    );
    let guard = "this host's own rules (chain guard in nftables inet table edge: a rule refuses)";
    assert_eq!(
        found_in(&host),
        [
            "kube-proxy, nftables mode (nftables ip table kube-proxy)",
            guard
        ]
    );
    host.command("nft", "delete table ip kube-proxy");
    assert_eq!(found_in(&host), [guard]);
}

#[test]
fn real_rules_of_both_kinds_of_iptables_are_found() {
    let host = Namespace::new();
    host.command("iptables-nft", "-t nat -N KUBE-SERVICES");
    host.command("iptables-nft", "-A FORWARD -s 203.0.113.0/24 -j REJECT");
    assert_eq!(
        found_in(&host),
        [
            "kube-proxy, iptables mode (chain KUBE-SERVICES in nftables ip table nat)",
            "this host's own rules (chain FORWARD in nftables ip table filter: a rule refuses)"
        ]
    );
    let older = Namespace::new();
    older.command("ip6tables-legacy", "-P FORWARD DROP");
    assert_eq!(
        found_in(&older),
        ["this host's own rules (chain FORWARD in ip6tables table filter: policy drop)"]
    );
}

#[test]
fn a_device_of_cilium_is_found_in_the_namespace_of_the_caller_only() {
    let (host, other) = (Namespace::new(), Namespace::new());
    host.ip("link add cilium_host type veth peer name cilium_net");
    assert_eq!(found_in(&host), ["Cilium (device cilium_host)"]);
    assert_eq!(found_in(&other), [""; 0]);
}
