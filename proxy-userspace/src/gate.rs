//! The gate: a pair of devices by which processes of this node reach Services where no hooks of
//! sockets serve them (V21). The routes to the Service ranges lead into one of the pair, and what
//! comes out of the other meets the programs like what a node device received. What asks a nodePort
//! of this host, or an address that is elsewhere, the programs put there on its way out by loopback
//! or a node device.
//!
//! Owns both devices and the routes by the first; of the host's own it changes two settings of
//! loopback, and puts them back.

mod loopback;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use proxy_common::net::{Device, RangeKind};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::model::Links;

/// The device with the routes.
const ENTRY: &str = "portway0";
/// The device with the programs.
pub const EXIT: &str = "portway1";
/// Whatever a device of the node takes goes through, in bytes; the routes say how much that is.
const MTU: u32 = 65_535;
/// The MTU that every IPv6 link has, in bytes (RFC 8200), for a node without devices.
const LEAST_MTU: u32 = 1280;
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Interval of checks: routes vanish when somebody sets a device down.
const REFRESH: Duration = Duration::from_secs(60);

/// The gate as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateSpec {
    /// True if there is to be a gate: only where the socket hooks do not serve processes.
    pub open: bool,
    /// The Service ranges.
    pub ranges: BTreeSet<IpNet>,
    /// The Node's addresses, the preferred ones first: the sources that processes get.
    pub sources: Vec<IpAddr>,
    /// The least MTU of the node's devices, in bytes: what is sent to a Service in fragments must
    /// fit whichever way it takes.
    pub mtu: u32,
}

impl GateSpec {
    /// All Service ranges among these, for a node with such links and addresses.
    pub fn of(ranges: &BTreeMap<IpNet, RangeKind>, links: &Links, sources: &[IpAddr]) -> Self {
        let services =
            |(range, kind): (&IpNet, &RangeKind)| (*kind == RangeKind::SERVICES).then_some(*range);
        let others = links
            .devices
            .iter()
            .filter(|(index, _)| Some(**index) != links.gate);
        let mtu = others
            .map(|(_, device)| device.mtu)
            .min()
            .unwrap_or(LEAST_MTU);
        Self {
            open: true,
            ranges: ranges.iter().filter_map(services).collect(),
            sources: sources.to_vec(),
            mtu,
        }
    }
}

/// Makes the gate as it is wished, whenever that changes, until nobody specs any more. What fails
/// is said, and tried again.
///
/// # Errors
/// Only where netlink cannot be reached at all.
pub async fn run(mut specs: watch::Receiver<Option<GateSpec>>) -> Result<()> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let task = tokio::spawn(connection);
    let (mut pause, mut done) = (REFRESH, None);
    // Who specs no more has closed it; a pause that is over is a reason to look after what was
    // made.
    while !matches!(timeout(pause, specs.changed()).await, Ok(Err(_))) {
        let Some(spec) = specs.borrow_and_update().clone() else {
            continue;
        };
        if let Err(error) = bring(&handle, &spec).await {
            warn!(
                error = format!("{error:#}"),
                "processes of this node do not reach Services; trying again"
            );
            pause = RETRY;
            continue;
        }
        if done.as_ref() != Some(&spec) && spec.open {
            info!(
                ranges = spec.ranges.len(),
                "processes of this node reach Services by packets, through {ENTRY}"
            );
            loopback::warn_of_filter();
        }
        (pause, done) = (REFRESH, Some(spec));
    }
    task.abort();
    Ok(())
}

/// Takes the gate away, if there is one.
///
/// # Errors
/// If netlink refuses.
pub async fn remove() -> Result<()> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let task = tokio::spawn(connection);
    let done = remove_by(&handle).await;
    task.abort();
    done
}

async fn bring(handle: &Handle, spec: &GateSpec) -> Result<()> {
    if !spec.open {
        return remove_by(handle).await;
    }
    let entry = match index_of(handle, ENTRY).await? {
        Some(entry) => entry,
        None => make(handle)
            .await
            .with_context(|| format!("make the devices {ENTRY} and {EXIT}"))?,
    };
    for name in [ENTRY, EXIT] {
        let message = LinkUnspec::new_with_name(name).up().build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("set {name} up"))?;
    }
    let there = routes(handle, entry)
        .await
        .with_context(|| format!("list the routes by {ENTRY}"))?;
    for range in &spec.ranges {
        let request = handle.route().add(route(*range, entry, spec)).replace();
        request
            .execute()
            .await
            .with_context(|| format!("route {range} by {ENTRY}"))?;
    }
    for message in there {
        let to = crate::links::facts::destination(&message);
        if to.is_some_and(|to| !spec.ranges.contains(&to)) {
            handle
                .route()
                .del(message)
                .execute()
                .await
                .with_context(|| format!("remove a route by {ENTRY}"))?;
        }
    }
    loopback::open(handle, entry)
        .await
        .context("let loopback take this host's own addresses")
}

async fn remove_by(handle: &Handle) -> Result<()> {
    let Some(entry) = index_of(handle, ENTRY).await? else {
        return Ok(());
    };
    loopback::close(handle, entry)
        .await
        .context("put the settings of loopback back")?;
    handle
        .link()
        .del(entry)
        .execute()
        .await
        .with_context(|| format!("remove the devices {ENTRY} and {EXIT}"))?;
    info!("the gate of processes is gone");
    Ok(())
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>> {
    let all = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_collect::<Vec<LinkMessage>>()
        .await;
    match all {
        Ok(links) => Ok(links.first().map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(error).with_context(|| format!("look for the device {name}")),
    }
}

/// Without neighbours to ask for, and without addresses of their own.
async fn make(handle: &Handle) -> Result<u32> {
    handle
        .link()
        .add(LinkVeth::new(ENTRY, EXIT).build())
        .execute()
        .await
        .context("add them")?;
    for name in [ENTRY, EXIT] {
        // Where /proc/sys cannot be written the device gets a link-local address, which harms
        // nobody.
        set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1");
        let message = LinkUnspec::new_with_name(name)
            .mtu(MTU)
            .address(Device::GATE_MAC.to_vec())
            .arp(false)
            .build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("set up {name}"))?;
    }
    index_of(handle, ENTRY)
        .await?
        .context("find the device just made")
}

fn set(key: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("/proc/sys/net/{key}"), value) {
        debug!(key, %error, "a setting of the gate stays as it was");
    }
}

async fn routes(handle: &Handle, entry: u32) -> Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let all: Vec<RouteMessage> = handle.route().get(question).execute().try_collect().await?;
        found.extend(
            all.into_iter()
                .filter(|message| crate::links::facts::leaves_by(message, entry)),
        );
    }
    Ok(found)
}

fn route(range: IpNet, entry: u32, spec: &GateSpec) -> RouteMessage {
    let source = spec
        .sources
        .iter()
        .find(|source| source.is_ipv4() == range.addr().is_ipv4());
    let mut message = match (range, source) {
        (IpNet::V4(range), source) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(range.network(), range.prefix_len())
                .output_interface(entry)
                .scope(RouteScope::Link);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(*source);
            }
            builder.build()
        }
        (IpNet::V6(range), source) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(range.network(), range.prefix_len())
                .output_interface(entry);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(*source);
            }
            builder.build()
        }
    };
    message
        .attributes
        .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(spec.mtu)]));
    message
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::IpNet;
    use rtnetlink::{Handle, LinkUnspec, new_connection};

    use super::{ENTRY, EXIT, GateSpec, bring, index_of, remove, remove_by, routes};
    use crate::links::facts::destination;
    use crate::testing::Namespace;

    fn spec(ranges: &[&str]) -> GateSpec {
        let ranges = ranges
            .iter()
            .map(|range| range.parse().expect("a range"))
            .collect();
        let sources = ["192.0.2.1", "2001:db8::1"]
            .map(|source| source.parse().expect("an address"))
            .into();
        GateSpec {
            open: true,
            ranges,
            sources,
            mtu: 1400,
        }
    }

    /// Returns two settings of loopback: `accept_local`, `route_localnet`.
    fn lets_in() -> [String; 2] {
        ["accept_local", "route_localnet"].map(|setting| {
            let path = format!("/proc/sys/net/ipv4/conf/lo/{setting}");
            std::fs::read_to_string(path)
                .expect("a setting")
                .trim()
                .to_owned()
        })
    }

    /// Returns the destinations of the routes by the entry.
    async fn lead_to(handle: &Handle) -> BTreeSet<IpNet> {
        let entry = index_of(handle, ENTRY)
            .await
            .expect("an answer")
            .expect("the entry");
        routes(handle, entry)
            .await
            .expect("routes")
            .iter()
            .filter_map(destination)
            .collect()
    }

    #[test]
    fn v21_its_routes_follow_the_ranges_come_back_and_go() {
        let host = Namespace::new();
        host.ip("addr add 192.0.2.1/32 dev lo");
        host.ip("addr add 2001:db8::1/128 dev lo nodad");
        host.block_on(async {
            let (connection, handle, _) = new_connection().expect("netlink");
            let task = tokio::spawn(connection);
            bring(&handle, &GateSpec::default())
                .await
                .expect("nothing to do");
            assert_eq!(lets_in(), ["0", "0"]);
            let (both, other) = (
                spec(&["10.96.0.0/12", "fd00:10:96::/112"]),
                spec(&["10.97.0.0/16", "fd00:10:96::/112"]),
            );
            for spec in [&both, &both, &other] {
                bring(&handle, spec).await.expect("a gate");
                assert_eq!(lead_to(&handle).await, spec.ranges);
            }
            // Somebody sets it down, and so takes its routes away.
            for name in [ENTRY, EXIT] {
                handle
                    .link()
                    .set(LinkUnspec::new_with_name(name).down().build())
                    .execute()
                    .await
                    .expect("down");
            }
            assert_ne!(lead_to(&handle).await, other.ranges);
            bring(&handle, &other).await.expect("a gate");
            assert_eq!(lead_to(&handle).await, other.ranges);
            assert_eq!(lets_in(), ["1", "1"]);
            // No range is known: nodePorts are served.
            bring(&handle, &spec(&[])).await.expect("a gate");
            assert_eq!(lead_to(&handle).await, BTreeSet::new());
            bring(&handle, &GateSpec::default()).await.expect("no gate");
            assert_eq!(index_of(&handle, EXIT).await.expect("an answer"), None);
            assert_eq!(lets_in(), ["0", "0"]);
            remove().await.expect("it is gone already");
            task.abort();
        });
    }

    #[test]
    fn what_loopback_let_in_before_it_lets_in_after() {
        let host = Namespace::new();
        host.block_on(async {
            // Also for devices that are made later.
            for device in ["lo", "default"] {
                std::fs::write(
                    format!("/proc/sys/net/ipv4/conf/{device}/accept_local"),
                    "1",
                )
                .expect("a setting");
            }
            let (connection, handle, _) = new_connection().expect("netlink");
            let task = tokio::spawn(connection);
            for _ in 0..2 {
                bring(&handle, &spec(&[])).await.expect("a gate");
                assert_eq!(lets_in(), ["1", "1"]);
            }
            remove_by(&handle).await.expect("no gate");
            assert_eq!(lets_in(), ["1", "0"]);
            task.abort();
        });
    }
}
