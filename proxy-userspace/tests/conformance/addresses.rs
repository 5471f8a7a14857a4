//! The addresses of a host that nodePorts are served on (V8).

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portway::compile::node_port_addresses;
use portway::model::{NodePortAddresses, Snapshot};
use proxy_common::net::IfIndex;

use crate::cases::{AddressCase, AddressFile};
use crate::report::{Tally, Weight};
use crate::world::prefixes;

/// Checks a file.
pub fn check(file: &AddressFile, tally: &mut Tally) -> Result<()> {
    for case in &file.node_ips {
        let prefixes = prefixes(&case.nodeport_addresses)?;
        let selected = selected(case, &prefixes)?;
        for (family, expect) in &case.expect {
            let of_family = |ip: &IpAddr| ip.is_ipv4() == (family == "IPv4");
            let found: BTreeSet<_> = selected.iter().copied().filter(of_family).collect();
            let owed = (expect.ips.iter().copied().collect(), expect.match_all);
            let name = format!("{}, {family}", case.name);
            tally.compare(
                &name,
                Weight::Binding,
                &owed,
                &(found, has_all(&prefixes, of_family)),
            );
        }
    }
    for case in &file.contains_ipv4_loopback {
        let prefixes = prefixes(&case.nodeport_addresses)?;
        for (family, owed) in &case.expect {
            // IPv6 has none of IPv4's addresses.
            let found = family == "IPv4" && has_loopback4(&prefixes)?;
            tally.compare(
                &format!("{}, {family}", case.name),
                Weight::Binding,
                owed,
                &found,
            );
        }
    }
    Ok(())
}

/// Returns the selected addresses of a host that has these, loopback's included.
fn selected(case: &AddressCase, prefixes: &[IpNet]) -> Result<BTreeSet<IpAddr>> {
    let mut snapshot = Snapshot::default();
    snapshot.settings.nodeport_addresses = NodePortAddresses::Within(prefixes.to_vec());
    for text in case
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
    {
        let net: IpNet = text
            .parse()
            .with_context(|| format!("read the address {text}"))?;
        snapshot.links.host_addresses.insert(net.addr(), IfIndex(1));
    }
    Ok(node_port_addresses(&snapshot))
}

/// Returns true if every address of a family is selected. If one is not, then also one at an end of
/// the family or next to a prefix.
fn has_all(prefixes: &[IpNet], of_family: impl Fn(&IpAddr) -> bool) -> bool {
    let ends = ["0.0.0.0/0", "::/0"].map(|all| {
        all.parse::<IpNet>()
            .map(|all| [all.network(), all.broadcast()])
    });
    let ends = ends.into_iter().flatten().flatten();
    let beside = prefixes
        .iter()
        .flat_map(|p| [before(p.network()), after(p.broadcast())])
        .flatten();
    ends.chain(beside)
        .filter(of_family)
        .all(|ip| NodePortAddresses::have_within(prefixes, ip))
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip
            .to_bits()
            .checked_sub(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip
            .to_bits()
            .checked_sub(1)
            .map(|bits| IpAddr::V6(bits.into())),
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Returns true if an address of 127.0.0.0/8 is selected. If one is, then also its first one or
/// that of a prefix within.
fn has_loopback4(prefixes: &[IpNet]) -> Result<bool> {
    let loopback: IpNet = "127.0.0.0/8".parse().context("read a prefix")?;
    let within = prefixes
        .iter()
        .map(IpNet::network)
        .filter(|ip| loopback.contains(ip));
    Ok(within
        .chain([loopback.network()])
        .any(|ip| NodePortAddresses::have_within(prefixes, ip)))
}
