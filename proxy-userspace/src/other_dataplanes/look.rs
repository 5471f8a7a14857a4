//! Looks at the host: rules, devices, programs and pins. A tool that is missing sees nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcOption};
use tracing::debug;

use super::rules::{Table, from_iptables, from_nft};
use crate::dataplane::tcx_programs;

/// The findings on this host, as far as they can be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Tables of firewall rules.
    pub tables: Vec<Table>,
    /// Names of devices.
    pub devices: Vec<String>,
    /// Names of maps that are pinned for tc.
    pub pins: Vec<String>,
    /// Programs on devices: the device's name and theirs.
    pub programs: Vec<(String, String)>,
}

pub(super) fn look(bpffs: &Path) -> Seen {
    let devices = devices();
    let programs = programs(&devices);
    Seen {
        tables: tables(),
        pins: pins(bpffs),
        programs,
        devices: devices.into_iter().map(|(_, name)| name).collect(),
    }
}

/// iptables' rules are among nftables' too, unless they are in the older tables that only their own
/// tools see.
fn tables() -> Vec<Table> {
    let nft = run("nft", &["-j", "-t", "list", "ruleset"]);
    let seen_by_nft = nft.is_some();
    let mut tables = nft.map(|json| from_nft(&json)).unwrap_or_default();
    for (tool, names) in [
        ("iptables", "ip_tables_names"),
        ("ip6tables", "ip6_tables_names"),
    ] {
        // The tool would load the kernel's module if it is not in use yet.
        let legacy = fs::read_to_string(format!("/proc/thread-self/net/{names}"))
            .is_ok_and(|names| !names.trim().is_empty());
        if legacy {
            let text = run(&format!("{tool}-legacy-save"), &[])
                .or_else(|| run(&format!("{tool}-save"), &[]));
            tables.extend(from_iptables(tool, &text.unwrap_or_default()));
        } else if !seen_by_nft {
            tables.extend(from_iptables(
                tool,
                &run(&format!("{tool}-save"), &[]).unwrap_or_default(),
            ));
        }
    }
    tables
}

/// Returns the output of a tool; `None` if it is missing or fails.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            debug!(tool, error = %String::from_utf8_lossy(&output.stderr).trim(), "cannot list firewall rules");
            None
        }
        Err(error) => {
            debug!(tool, %error, "cannot list firewall rules");
            None
        }
    }
}

/// Returns the programs of anybody on these devices, by tcx and in filters.
pub(super) fn programs(devices: &[(u32, String)]) -> Vec<(String, String)> {
    let by_tcx = devices.iter().flat_map(|(_, device)| tcx(device));
    by_tcx.chain(clsact(devices)).collect()
}

/// Returns the names of devices; not by sysfs, which shows the namespace that it was mounted in.
pub(super) fn devices() -> Vec<(u32, String)> {
    let Ok(devices) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    devices
        .iter()
        .map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
        .collect()
}

fn pins(bpffs: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(bpffs.join("tc/globals")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn tcx(device: &str) -> Vec<(String, String)> {
    tcx_programs(device)
        .into_iter()
        .map(|program| (device.to_owned(), program))
        .collect()
}

/// Programs in filters, as they were attached before tcx. A thread of its own has this one's
/// namespace, and no runtime yet.
fn clsact(devices: &[(u32, String)]) -> Vec<(String, String)> {
    let look = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .ok()?;
        Some(runtime.block_on(filters(devices)))
    };
    std::thread::scope(|scope| scope.spawn(look).join().ok().flatten()).unwrap_or_default()
}

async fn filters(devices: &[(u32, String)]) -> Vec<(String, String)> {
    let Ok((connection, handle, _)) = rtnetlink::new_connection() else {
        return Vec::new();
    };
    tokio::spawn(connection);
    let mut found = Vec::new();
    for (index, device) in devices {
        let Ok(index) = i32::try_from(*index) else {
            continue;
        };
        let both = [
            handle.traffic_filter(index).get().ingress(),
            handle.traffic_filter(index).get().egress(),
        ];
        for request in both {
            // A device without such a qdisc is an error, and has no filters.
            let messages: Vec<_> = request.execute().try_collect().await.unwrap_or_default();
            let attributes = messages.into_iter().flat_map(|message| message.attributes);
            found.extend(
                attributes
                    .flat_map(program_names)
                    .map(|name| (device.clone(), name)),
            );
        }
    }
    found
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the list of tc's options is open"
)]
fn program_names(attribute: TcAttribute) -> Vec<String> {
    let TcAttribute::Options(options) = attribute else {
        return Vec::new();
    };
    options
        .into_iter()
        .filter_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
            _ => None,
        })
        .collect()
}
