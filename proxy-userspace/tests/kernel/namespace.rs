//! A network namespace for one test: two node devices, two pods' veths, routes and neighbours, with
//! the same routes in the fakes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::{Pid, geteuid};
use proxy_common::net::{IfIndex, V4, V6};
use proxy_ebpf::Route;
use proxy_ebpf::fake::Memory;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

use crate::family::{Dotted, Net};
use crate::generate::{CLIENT, NODE, NODE_B, NODE2, POD_A, POD_B, REMOTE};

/// The devices: two of the node, then two pods'.
pub const DEVICES: [&str; 4] = ["dev0", "dev1", "pod0", "pod1"];
/// A router on `dev0`.
const GATEWAY: Dotted = [192, 0, 2, 254];

/// The kind of a route's next hop.
#[derive(Clone, Copy, PartialEq)]
enum NextHop {
    /// The destination itself, with a known MAC address.
    Resolved,
    /// The destination itself, not resolved yet.
    Unresolved,
    /// [`GATEWAY`].
    Router,
}

/// Destinations by index in [`DEVICES`]. All others are unreachable.
const ROUTES: [(Dotted, usize, NextHop); 12] = [
    (GATEWAY, 0, NextHop::Resolved),
    (CLIENT, 0, NextHop::Resolved),
    ([198, 51, 100, 8], 0, NextHop::Unresolved),
    ([203, 0, 113, 5], 0, NextHop::Router),
    ([203, 0, 113, 6], 1, NextHop::Resolved),
    (NODE2, 0, NextHop::Resolved),
    (REMOTE, 0, NextHop::Resolved),
    ([10, 244, 2, 11], 0, NextHop::Unresolved),
    ([10, 244, 2, 12], 0, NextHop::Router),
    ([10, 244, 3, 10], 1, NextHop::Resolved),
    (POD_A, 2, NextHop::Resolved),
    (POD_B, 3, NextHop::Unresolved),
];

/// The namespace's devices, for as long as its thread lives.
pub struct Network {
    devices: [IfIndex; 4],
}

impl Network {
    /// A device of the node: 0 or 1.
    pub fn device(&self, number: usize) -> IfIndex {
        self.devices[number & 1]
    }
    /// The host side of a pod's veth: 0 or 1.
    pub fn pod(&self, number: usize) -> IfIndex {
        self.devices[2 + (number & 1)]
    }
    /// Copies the kernel's routes into a fake.
    pub fn copy_routes<F: Net>(&self, memory: &mut Memory<F>) {
        for (dotted, device, next) in ROUTES {
            let neighbour = match next {
                NextHop::Unresolved => None,
                NextHop::Resolved => Some(link(dotted, device)),
                NextHop::Router => Some(link(GATEWAY, device)),
            };
            memory.routes.insert(
                F::at(dotted),
                Route {
                    device: self.devices[device],
                    neighbour,
                },
            );
        }
    }
}

/// The MAC addresses in front of a packet to a neighbour by a device.
fn link(neighbour: Dotted, device: usize) -> [u8; 12] {
    let mut link = [0; 12];
    link[..6].copy_from_slice(&neighbour_mac(neighbour));
    link[6..].copy_from_slice(&device_mac(device));
    link
}

fn neighbour_mac([a, b, c, d]: Dotted) -> [u8; 6] {
    [2, 0, a, b, c, d]
}

fn device_mac(device: usize) -> [u8; 6] {
    [2, 1, 0, 0, 0, device as u8]
}

/// Runs a test in a namespace of its own, on a thread of its own: both end together.
pub fn in_namespace(test: impl FnOnce(&Network) -> Result<()> + Send + 'static) -> Result<()> {
    let thread = thread::spawn(move || {
        ensure!(
            geteuid().is_root(),
            "this test needs root: it makes a network namespace and loads eBPF programs"
        );
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start a runtime")?;
        let network = runtime
            .block_on(build())
            .context("build the test's network")?;
        test(&network)
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Keeps this thread on one CPU, so that what is counted per CPU is counted once.
pub fn stay_on_this_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    // SAFETY: no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    cpus.set(usize::try_from(cpu).context("ask which CPU this is")?)
        .context("name the CPU")?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("stay on one CPU")
}

async fn build() -> Result<Network> {
    fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "1")
        .context("switch IPv4 forwarding on")?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        .context("switch IPv6 forwarding on")?;
    let (connection, handle, _) = new_connection().context("open netlink")?;
    tokio::spawn(connection);
    let mut devices = [IfIndex::NONE; 4];
    for (number, device) in devices.iter_mut().enumerate() {
        *device = veth(&handle, number)
            .await
            .with_context(|| format!("make {}", DEVICES[number]))?;
    }
    for (dotted, device) in [(NODE, 0), (NODE_B, 1)] {
        for (ip, len) in [(V4::ip(dotted), 32), (V6::ip(dotted), 128)] {
            let add = handle.address().add(devices[device].0, ip, len);
            add.execute()
                .await
                .with_context(|| format!("give the node {ip}"))?;
        }
    }
    for (dotted, device, next) in ROUTES {
        for (ip, gateway) in [
            (V4::ip(dotted), V4::ip(GATEWAY)),
            (V6::ip(dotted), V6::ip(GATEWAY)),
        ] {
            let gateway = if next == NextHop::Router {
                Some(gateway)
            } else {
                None
            };
            route(&handle, devices[device], ip, gateway)
                .await
                .with_context(|| format!("add the route to {ip}"))?;
            if next == NextHop::Resolved {
                let add = handle
                    .neighbours()
                    .add(devices[device].0, ip)
                    .link_layer_address(&neighbour_mac(dotted));
                add.execute()
                    .await
                    .with_context(|| format!("add the neighbour {ip}"))?;
            }
        }
    }
    Ok(Network { devices })
}

/// Makes one of [`DEVICES`], both ends up; returns the index of the tested end. Indexes do not
/// begin at 2, so that no test passes by a guessed number.
async fn veth(handle: &Handle, number: usize) -> Result<IfIndex> {
    let index = 10 + number as u32;
    let peer = format!("peer{number}");
    let link = LinkVeth::new(DEVICES[number], &peer)
        .index(index)
        .address(device_mac(number).to_vec())
        .up()
        .build();
    handle
        .link()
        .add(link)
        .execute()
        .await
        .context("add the veth pair")?;
    handle
        .link()
        .set(LinkUnspec::new_with_name(&peer).up().build())
        .execute()
        .await
        .context("set its peer up")?;
    Ok(IfIndex(index))
}

async fn route(
    handle: &Handle,
    device: IfIndex,
    to: IpAddr,
    gateway: Option<IpAddr>,
) -> Result<()> {
    let len = if to.is_ipv4() { 32 } else { 128 };
    let scope = if gateway.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    let message = match (to, gateway) {
        (IpAddr::V4(to), gateway) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, len)
                .output_interface(device.0)
                .scope(scope);
            match gateway {
                Some(IpAddr::V4(gateway)) => route.gateway(gateway).build(),
                _ => route.build(),
            }
        }
        (IpAddr::V6(to), gateway) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, len)
                .output_interface(device.0);
            match gateway {
                Some(IpAddr::V6(gateway)) => route.gateway(gateway).build(),
                _ => route.build(),
            }
        }
    };
    handle
        .route()
        .add(message)
        .execute()
        .await
        .context("add a route")
}
