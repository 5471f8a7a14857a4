//! Attributes what was found on the host to its owners; pure.

use std::collections::BTreeSet;

use super::look::Seen;
use super::rules::{Chain, Policy, Step, Table};
use super::{Kind, OtherSoftware};

/// Returns the recognised software, each once.
pub(super) fn judge(seen: &Seen) -> Vec<OtherSoftware> {
    let mut found = BTreeSet::new();
    found.extend(kube_proxy(seen));
    found.extend(marked(seen, &CILIUM));
    found.extend(marked(seen, &CALICO));
    found.extend(seen.tables.iter().flat_map(firewall));
    found.into_iter().collect()
}

fn data_plane(name: &str, evidence: String) -> OtherSoftware {
    OtherSoftware {
        kind: Kind::DataPlane,
        name: name.to_owned(),
        evidence,
    }
}

/// In IPVS mode it has iptables' chain too, so that mode is judged first.
fn kube_proxy(seen: &Seen) -> Vec<OtherSoftware> {
    let mut found = Vec::new();
    for table in seen
        .tables
        .iter()
        .filter(|table| table.name == "kube-proxy" && table.from.starts_with("nftables"))
    {
        found.push(data_plane(
            "kube-proxy, nftables mode",
            format!("{} table kube-proxy", table.from),
        ));
    }
    if seen.devices.iter().any(|device| device == "kube-ipvs0") {
        found.push(data_plane(
            "kube-proxy, IPVS mode",
            "device kube-ipvs0".to_owned(),
        ));
        return found;
    }
    for table in seen
        .tables
        .iter()
        .filter(|table| table.chains.contains_key("KUBE-SERVICES"))
    {
        let evidence = format!("chain KUBE-SERVICES in {} table {}", table.from, table.name);
        found.push(data_plane("kube-proxy, iptables mode", evidence));
    }
    found
}

/// The traces that a data plane leaves on a host.
struct Marks {
    name: &'static str,
    device: Option<&'static str>,
    /// The beginning of its pinned maps' names.
    pin: Option<&'static str>,
    /// The beginning of its programs' names.
    program: &'static str,
    /// The beginning of its chains' names.
    chain: Option<&'static str>,
}

const CILIUM: Marks = Marks {
    name: "Cilium",
    device: Some("cilium_host"),
    pin: Some("cilium_"),
    program: "cil_",
    chain: Some("CILIUM_"),
};
const CALICO: Marks = Marks {
    name: "Calico",
    device: None,
    pin: Some("cali_"),
    program: "cali_",
    chain: Some("cali-"),
};

/// Returns one piece of evidence of each sort.
fn marked(seen: &Seen, marks: &Marks) -> Vec<OtherSoftware> {
    let device = seen
        .devices
        .iter()
        .find(|device| Some(device.as_str()) == marks.device)
        .map(|d| format!("device {d}"));
    let pin = seen
        .pins
        .iter()
        .find(|pin| marks.pin.is_some_and(|start| pin.starts_with(start)));
    let program = seen
        .programs
        .iter()
        .find(|(_, name)| name.starts_with(marks.program));
    let chains = seen
        .tables
        .iter()
        .flat_map(|table| table.chains.keys().map(move |chain| (table, chain)));
    let chain = marks
        .chain
        .and_then(|start| chains.clone().find(|(_, chain)| chain.starts_with(start)));
    let evidence = [
        device,
        pin.map(|pin| format!("pinned map {pin}")),
        program.map(|(device, name)| format!("program {name} on {device}")),
        chain.map(|(table, chain)| format!("chain {chain} in {} table {}", table.from, table.name)),
    ];
    evidence
        .into_iter()
        .flatten()
        .map(|evidence| data_plane(marks.name, evidence))
        .collect()
}

/// Returns the firewalls with chains that forwarded packets enter and that refuse some.
fn firewall(table: &Table) -> Vec<OtherSoftware> {
    if table.name == "kube-proxy" {
        return Vec::new();
    }
    let forwards = table
        .chains
        .iter()
        .filter(|(_, chain)| chain.hook.as_deref() == Some("forward"));
    let refusing = forwards.filter_map(|(name, chain)| Some((name, refusal(table, name, chain)?)));
    refusing
        .map(|(name, why)| OtherSoftware {
            kind: Kind::Firewall,
            name: owner(table).to_owned(),
            evidence: format!("chain {name} in {} table {}: {why}", table.from, table.name),
        })
        .collect()
}

fn refusal(table: &Table, name: &str, chain: &Chain) -> Option<String> {
    if chain.policy == Policy::Drop {
        return Some("policy drop".to_owned());
    }
    let refusing = refusing_chain(table, name, &mut BTreeSet::new())?;
    Some(if refusing == name {
        "a rule refuses".to_owned()
    } else {
        format!("a rule refuses in {refusing}")
    })
}

/// The first chain on the way that has a rule which refuses. Those of other data planes are judged
/// as theirs.
fn refusing_chain<'a>(
    table: &'a Table,
    name: &'a str,
    visited: &mut BTreeSet<&'a str>,
) -> Option<&'a str> {
    const DATA_PLANES: [&str; 4] = ["KUBE-", "cali-", "CILIUM_", "CNI-"];
    if !visited.insert(name) || DATA_PLANES.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    table
        .chains
        .get(name)?
        .steps
        .iter()
        .find_map(|step| match step {
            Step::Refuse => Some(name),
            Step::To(next) => refusing_chain(table, next, visited),
        })
}

/// Returns the owner of rules, by the names that the well-known tools use.
fn owner(table: &Table) -> &'static str {
    let has = |start: &str| table.chains.keys().any(|chain| chain.starts_with(start));
    if table.name == "firewalld" || has("FORWARD_direct") {
        "firewalld"
    } else if has("ufw-") || has("ufw6-") {
        "ufw"
    } else if has("DOCKER") {
        "Docker's rules, or others beside them"
    } else {
        "this host's own rules"
    }
}
