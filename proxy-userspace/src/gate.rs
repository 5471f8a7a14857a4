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
/// MTU of both devices, in bytes: the largest. The routes have the MTU of the node's devices.
const MTU: u32 = 65_535;
/// The MTU that every IPv6 link has, in bytes (RFC 8200), for a node without devices.
const LEAST_MTU: u32 = 1280;
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Interval of checks: the kernel removes the routes when a device is set down.
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
    /// Returns the gate for the Service ranges among `ranges`, on a node with these links and
    /// addresses.
    pub fn of(ranges: &BTreeMap<IpNet, RangeKind>, links: &Links, sources: &[IpAddr]) -> Self {
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
            ranges: ranges
                .iter()
                .filter(|(_, kind)| **kind == RangeKind::SERVICES)
                .map(|(range, _)| *range)
                .collect(),
            sources: sources.to_vec(),
            mtu,
        }
    }
}

/// Makes and checks the gate by the latest spec until the channel is closed. Failures are logged,
/// and tried again.
///
/// # Errors
/// Only if no netlink socket can be opened.
pub async fn run(mut specs: watch::Receiver<Option<GateSpec>>) -> Result<()> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let task = tokio::spawn(connection);
    let (mut pause, mut done) = (REFRESH, None);
    // The inner error means that the channel is closed; a timeout, that a check is due.
    while !matches!(timeout(pause, specs.changed()).await, Ok(Err(_))) {
        let Some(spec) = specs.borrow_and_update().clone() else {
            continue;
        };
        if let Err(error) = bring(&handle, &spec).await {
            warn!(
                error = format!("{error:#}"),
                "cannot set up the gate, so processes of this node do not reach Services; trying again"
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

/// Removes the gate, if there is one.
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
        .context("set loopback to accept this host's own addresses")
}

async fn remove_by(handle: &Handle) -> Result<()> {
    let Some(entry) = index_of(handle, ENTRY).await? else {
        return Ok(());
    };
    loopback::close(handle, entry)
        .await
        .context("restore the settings of loopback")?;
    handle
        .link()
        .del(entry)
        .execute()
        .await
        .with_context(|| format!("remove the devices {ENTRY} and {EXIT}"))?;
    info!("removed the gate");
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
        Err(error) => Err(error).with_context(|| format!("find the device {name}")),
    }
}

/// Makes the pair of devices, without ARP and without addresses. Returns the index of the first.
async fn make(handle: &Handle) -> Result<u32> {
    handle
        .link()
        .add(LinkVeth::new(ENTRY, EXIT).build())
        .execute()
        .await
        .context("add them")?;
    for name in [ENTRY, EXIT] {
        // If /proc/sys cannot be written the device gets a link-local address: no harm.
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
        debug!(key, %error, "cannot change a setting of the gate");
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
mod tests;
