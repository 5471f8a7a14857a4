//! Contents for people: services with their frontends and backends, addresses, pods, devices,
//! settings.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use proxy_common::net::{Address, AddressFlags, Device, IfIndex, RangeKind};
use proxy_common::service::{BackendFlags, ServiceFlags};

use super::{Backends, Contents, Endpoint, Frontend, Target};
use crate::model::Algorithm;

const SERVICE_FLAGS: [(u32, &str); 8] = [
    (ServiceFlags::CLUSTER_IP, "cluster-ip"),
    (ServiceFlags::NODE_PORT, "node-port"),
    (ServiceFlags::EXTERNAL_IP, "external-ip"),
    (ServiceFlags::LOAD_BALANCER, "load-balancer"),
    (ServiceFlags::LOCAL, "local"),
    (ServiceFlags::LOCAL_DROP, "local-drop"),
    (ServiceFlags::SOURCE_RANGES, "source-ranges"),
    (ServiceFlags::DSR, "dsr"),
];

const ADDRESS_FLAGS: [(u32, &str); 5] = [
    (AddressFlags::HOST, "host"),
    (AddressFlags::NODE_PORTS, "node-ports"),
    (AddressFlags::CLUSTER_IP, "cluster-ip"),
    (AddressFlags::FOREIGN, "foreign"),
    (AddressFlags::NODE, "node"),
];

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            SocketAddr::new(self.addr, self.port),
            self.protocol.name()
        )
    }
}

impl Target {
    /// Returns the names of the flags that are set.
    pub fn flag_names(&self) -> Vec<&'static str> {
        names(self.flags, &SERVICE_FLAGS)
    }
}

fn names(flags: u32, all: &[(u32, &'static str)]) -> Vec<&'static str> {
    all.iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.services(f)?;
        if !self.sources.is_empty() {
            writeln!(f, "sources")?;
            self.sources
                .iter()
                .try_for_each(|(service, range)| writeln!(f, "  {service} {range}"))?;
        }
        if !self.ranges.is_empty() {
            section(f, "ranges", &self.ranges, |f, range, kind| {
                write!(f, "{range} {}", range_word(*kind))
            })?;
        }
        section(f, "addresses", &self.addresses, |f, addr, flags| {
            write!(f, "{addr} {}", names(flags.0, &ADDRESS_FLAGS).join(" "))
        })?;
        section(f, "pods", &self.pods, |f, addr, device| match *device {
            IfIndex::NONE => write!(f, "{addr} device not found"),
            IfIndex(index) => write!(f, "{addr} device {index}"),
        })?;
        section(f, "devices", &self.devices, |f, index, device| {
            write!(f, "{} {}", index.0, device_words(device))
        })?;
        let c = &self.config;
        let last = u32::from(c.masquerade_first) + u32::from(c.masquerade_len).saturating_sub(1);
        writeln!(
            f,
            "config\n  masquerade-ports {}-{last}",
            c.masquerade_first
        )?;
        writeln!(
            f,
            "  opening-timeout {} udp-timeout {}",
            c.opening_timeout, c.udp_timeout
        )
    }
}

fn range_word(kind: RangeKind) -> &'static str {
    match kind {
        RangeKind::SERVICES => "services",
        RangeKind::PODS => "pods",
        _ => "nodes",
    }
}

fn section<K, V>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    entries: &BTreeMap<K, V>,
    line: impl Fn(&mut fmt::Formatter<'_>, &K, &V) -> fmt::Result,
) -> fmt::Result {
    writeln!(f, "{title}")?;
    for (key, value) in entries {
        f.write_str("  ")?;
        line(f, key, value)?;
        writeln!(f)?;
    }
    Ok(())
}

fn device_words(device: &Device) -> String {
    let known = |ips: [IpAddr; 2]| {
        let known: Vec<_> = ips
            .iter()
            .filter(|ip| !ip.is_unspecified())
            .map(IpAddr::to_string)
            .collect();
        if known.is_empty() {
            "nothing".to_owned()
        } else {
            known.join(" ")
        }
    };
    let xdp = if device.flags & Device::XDP_TARGET != 0 {
        " xdp-target"
    } else {
        ""
    };
    let [masquerade, node] = [
        [device.masquerade4.ip(), device.masquerade6.ip()],
        [device.node4.ip(), device.node6.ip()],
    ]
    .map(known);
    format!(
        "mtu {} masquerade {masquerade} node {node}{xdp}",
        device.mtu
    )
}

/// Service port, IPv6 or not, backends.
type Group<'a> = (&'a str, bool, &'a Backends);

impl Contents {
    /// Frontends with the same backends stand together.
    fn services(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups = BTreeMap::<Group, Vec<(&Frontend, &Target)>>::new();
        for (frontend, target) in &self.frontends {
            groups
                .entry((&target.service, frontend.addr.is_ipv6(), &target.backends))
                .or_default()
                .push((frontend, target));
        }
        writeln!(f, "services")?;
        for ((service, v6, backends), frontends) in groups {
            writeln!(f, "  {service} {}", if v6 { "IPv6" } else { "IPv4" })?;
            for (frontend, target) in frontends {
                write!(f, "    at {frontend} {}", target.flag_names().join(" "))?;
                if target.backends.algorithm == Algorithm::Maglev {
                    f.write_str(" maglev")?;
                }
                if target.affinity > 0 {
                    write!(f, " affinity {}s", target.affinity)?;
                }
                writeln!(f)?;
            }
            for (set, endpoints) in [
                ("local-only", &backends.local_only),
                ("both", &backends.both),
                ("cluster-only", &backends.cluster_only),
            ] {
                endpoints.iter().try_for_each(|Endpoint { addr, flags }| {
                    writeln!(
                        f,
                        "    {set} {addr}{}",
                        if flags & BackendFlags::POD != 0 {
                            " pod"
                        } else {
                            ""
                        }
                    )
                })?;
            }
        }
        Ok(())
    }
}
