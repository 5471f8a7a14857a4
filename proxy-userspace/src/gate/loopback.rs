//! Settings of the host's loopback that let replies to processes in: packets with the host's own
//! and loopback's addresses, which the programs put there (IPv4; IPv6 needs no such settings).
//!
//! The old settings are recorded at the gate, as the alias of its entry (`ip link show` prints it):
//! the record goes when the gate goes.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the lists of netlink's attributes are open"
)]

use std::fs;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED};
use proxy_common::net::IfIndex;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use tracing::warn;

/// `IFLA_INET_CONF` of linux/if_link.h.
const INET_CONF: u16 = 1;

/// A setting of a device for IPv4.
struct Setting {
    name: &'static str,
    /// Its `IPV4_DEVCONF_*` of linux/ip.h.
    number: u16,
    of: fn(&InetDevConf) -> i32,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "accept_local",
        number: 23,
        of: |conf| conf.accept_local,
    },
    Setting {
        name: "route_localnet",
        number: 26,
        of: |conf| conf.route_localnet,
    },
];

/// Sets loopback to accept the packets that the programs redirect to it.
pub async fn open(handle: &Handle, entry: u32) -> Result<()> {
    let loopback = link(handle, IfIndex::LOOPBACK.0).await?;
    let Some(now) = settings(&loopback) else {
        return Ok(());
    };
    let missing: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| (setting.of)(now) == 0)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let recorded = record(&link(handle, entry).await?);
    let names = SETTINGS.iter().filter(|setting| {
        recorded.contains(setting.name) || missing.iter().any(|m| m.name == setting.name)
    });
    let names: Vec<_> = names.map(|setting| setting.name).collect();
    let alias = LinkAttribute::IfAlias(format!("portway has set of lo: {}", names.join(" ")));
    let message = LinkUnspec::new_with_index(entry)
        .append_extra_attribute(alias)
        .build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .context("note what is changed")?;
    for setting in missing {
        set(handle, setting, 1).await?;
    }
    Ok(())
}

/// Restores the settings that [`open`] has changed.
pub async fn close(handle: &Handle, entry: u32) -> Result<()> {
    let recorded = record(&link(handle, entry).await?);
    for setting in SETTINGS
        .iter()
        .filter(|setting| recorded.contains(setting.name))
    {
        set(handle, setting, 0).await?;
    }
    Ok(())
}

/// A host that takes a packet only by the device that leads to its sender refuses by loopback what
/// comes from elsewhere.
pub fn warn_of_filter() {
    if is_strict(&["all", "lo"].map(|device| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"))
            .unwrap_or_default()
    })) {
        warn!(
            "net.ipv4.conf.all.rp_filter is 1 (strict): processes of this node reach cluster IPs and nodePorts, but not external and load balancer \
             IPs that are on no device here; with 2 (loose) or 0 they would"
        );
    }
}

/// Returns true if the filter is strict: the larger value counts, and only 1 is strict.
fn is_strict(filters: &[String]) -> bool {
    filters
        .iter()
        .filter_map(|filter| filter.trim().parse::<u8>().ok())
        .max()
        == Some(1)
}

async fn link(handle: &Handle, device: u32) -> Result<LinkMessage> {
    let mut found: Vec<LinkMessage> = handle
        .link()
        .get()
        .match_index(device)
        .execute()
        .try_collect()
        .await
        .with_context(|| format!("read device {device}"))?;
    found.pop().with_context(|| format!("read device {device}"))
}

/// Returns the IPv4 settings of a device; `None` if it has none.
fn settings(link: &LinkMessage) -> Option<&InetDevConf> {
    let specs = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(specs) => Some(specs),
            _ => None,
        });
    let inet = specs?.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet(inet) => Some(inet),
        _ => None,
    });
    inet?.iter().find_map(|spec| match spec {
        AfSpecInet::DevConf(conf) => Some(conf),
        _ => None,
    })
}

/// Returns the record at a device; empty if there is none.
fn record(link: &LinkMessage) -> String {
    let alias = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.clone()),
            _ => None,
        });
    alias.unwrap_or_default()
}

/// Changes a setting of loopback.
async fn set(handle: &Handle, setting: &Setting, value: u32) -> Result<()> {
    let one = DefaultNla::new(setting.number, value.to_ne_bytes().to_vec());
    let mut bytes = vec![0; one.buffer_len()];
    one.emit(&mut bytes);
    let conf = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, bytes));
    let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])]);
    let message = LinkUnspec::new_with_index(IfIndex::LOOPBACK.0)
        .append_extra_attribute(spec)
        .build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .with_context(|| format!("set {} of loopback to {value}", setting.name))
}

#[cfg(test)]
mod tests {
    use super::is_strict;

    #[test]
    fn the_larger_filter_counts() {
        let strict = |all: &str, lo: &str| is_strict(&[all.into(), lo.into()]);
        assert!(strict("1\n", "0\n") && strict("0\n", "1\n"));
        assert!(
            !strict("0\n", "0\n")
                && !strict("2\n", "1\n")
                && !strict("1\n", "2\n")
                && !strict("", "")
        );
    }
}
