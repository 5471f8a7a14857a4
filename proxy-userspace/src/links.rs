//! The host's network as the kernel has it configured: our devices, our addresses, and the device
//! of each local pod.
//!
//! The only source is rtnetlink in the network namespace of the process: neither the CNI nor sysfs.

pub(crate) mod facts;
mod netlink;
mod node_devices;
mod unclaimed;
mod wiring;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use proxy_common::net::IfIndex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::devices::Devices;
use crate::model;

pub use crate::devices::Driver;
use netlink::{Neighbours, Netlink};
use wiring::Wiring;

/// Time for which changes are gathered before they are looked at together.
const GATHER: Duration = Duration::from_millis(10);
/// First pause before a pod without device is looked for again; doubled each time.
const RETRY: Duration = Duration::from_millis(50);
/// The longest pause between two looks at pods without device.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Pause after netlink has failed.
const FAILED: Duration = Duration::from_secs(5);
/// Everything is read anew after this time, should a message have been lost.
const REFRESH: Duration = Duration::from_secs(60);

/// The inputs for choosing devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Devices that the operator named; if there are any, no others are taken.
    pub devices: Vec<String>,
    /// The Node's addresses, the preferred ones first.
    pub node_addresses: Vec<IpAddr>,
    /// Prefixes of pods of other nodes.
    pub pod_cidrs: Vec<IpNet>,
    /// Prefixes of this node's pods, as far as its Node says.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Addresses of the pods of this node.
    pub pods: BTreeSet<IpAddr>,
}

/// The findings on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The inputs that these findings belong to.
    pub wanted: Wanted,
    /// The part that reaches the maps.
    pub links: model::Links,
    /// Names of node devices and of the pods' devices.
    pub names: BTreeMap<IfIndex, String>,
    /// Devices that look like pods' devices, of pods that are not known yet (P31).
    pub unclaimed: BTreeSet<IfIndex>,
    /// Every device of this host.
    pub present: BTreeSet<IfIndex>,
    /// Node devices by what XDP can do there, and loopback where processes go by a gate.
    pub drivers: BTreeMap<IfIndex, Driver>,
}

impl Found {
    /// Returns the devices that programs are attached to.
    pub fn devices(&self) -> Devices {
        Devices {
            present: self.present.clone(),
            names: self.names.clone(),
            pods: self
                .links
                .pods
                .values()
                .chain(&self.unclaimed)
                .copied()
                .collect(),
            drivers: self.drivers.clone(),
        }
    }
}

/// Publishes the findings in `found` and keeps them current until `wanted` is closed. `earlier` has
/// the pods' devices as an earlier agent found them.
///
/// # Errors
/// Only if netlink cannot be reached at all; failed reads are repeated.
pub async fn run(
    mut wanted: watch::Receiver<Wanted>,
    found: watch::Sender<Option<Found>>,
    earlier: BTreeMap<IpAddr, IfIndex>,
) -> Result<()> {
    let mut netlink = Netlink::open().context("open netlink")?;
    let mut wiring = Wiring::after(earlier);
    let mut retry = RETRY;
    loop {
        let want = wanted.borrow_and_update().clone();
        let pause = match look(&netlink, &mut wiring, &want).await {
            Ok(now) => {
                publish(&found, now);
                if wiring.missing(&want) {
                    retry
                } else {
                    REFRESH
                }
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "cannot read the host's network configuration; trying again"
                );
                FAILED
            }
        };
        let neighbours = if wiring.missing(&want) {
            Neighbours::Heeded
        } else {
            Neighbours::Ignored
        };
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => retry = RETRY,
                Err(_) => return Ok(()),
            },
            news = netlink.news(neighbours) => news.context("receive netlink messages")?,
            () = sleep_until(Instant::now() + pause) => {
                retry = (retry * 2).min(RETRY_MAX);
                continue;
            }
        }
        gather(&mut netlink, neighbours).await?;
    }
}

async fn look(netlink: &Netlink, wiring: &mut Wiring, wanted: &Wanted) -> Result<Found> {
    let facts = netlink.read().await?;
    wiring.find_pods(netlink, &facts, wanted).await?;
    Ok(wiring.found(&facts, wanted))
}

fn publish(found: &watch::Sender<Option<Found>>, now: Found) {
    found.send_if_modified(|old| {
        let changed = old.as_ref() != Some(&now);
        if changed {
            debug!(
                devices = now.links.devices.len(),
                pods = now.links.pods.len(),
                "the host's network has changed"
            );
            *old = Some(now);
        }
        changed
    });
}

/// Waits until the burst of news is over, or for a little while.
async fn gather(netlink: &mut Netlink, neighbours: Neighbours) -> Result<()> {
    let end = Instant::now() + GATHER;
    while let Ok(news) = timeout_at(end, netlink.news(neighbours)).await {
        news.context("receive netlink messages")?;
    }
    Ok(())
}
