//! The Services that the kernel holds: each service port with its frontends and where they lead.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::print::{PinArgs, lines, print, table};
use crate::contents::{Backends, Contents, Endpoint, Frontend, Target};
use crate::dataplane::{Maps, StateDir};
use crate::model::Word as _;

struct Services {
    contents: Contents,
}

/// `portway services`.
pub fn run(args: &PinArgs) -> Result<String> {
    print(args, read, text)
}

fn read(dir: &StateDir) -> Result<Services> {
    Ok(Services {
        contents: Maps::from_pins(dir)?.read()?.contents(),
    })
}

/// Frontends by service port; BTreeMap order within.
fn by_service(services: &Services) -> BTreeMap<&Arc<str>, Vec<(&Frontend, &Target)>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (frontend, target) in &services.contents.frontends {
        all.entry(&target.service)
            .or_default()
            .push((frontend, target));
    }
    all
}

fn text(services: &Services) -> String {
    let mut table = table(&["SERVICE", "FRONTEND", "KIND", "BACKENDS"]);
    for (name, frontends) in by_service(services) {
        let mut shown = name.to_string();
        for (frontend, target) in frontends {
            table.add_row([
                std::mem::take(&mut shown),
                front(frontend),
                target.flag_names().join(","),
                backends(&target.backends),
            ]);
        }
    }
    lines(&table)
}

fn front(frontend: &Frontend) -> String {
    match frontend.addr.is_unspecified() {
        true => {
            format!(
                "*:{}/{}{}",
                frontend.port,
                frontend.protocol.name(),
                if frontend.addr.is_ipv6() {
                    " (IPv6)"
                } else {
                    ""
                }
            )
        }
        false => frontend.to_string(),
    }
}

fn backends(backends: &Backends) -> String {
    let mark = |list: &[Endpoint], mark: &str| {
        list.iter()
            .map(|e| format!("{}{mark}", e.addr))
            .collect::<Vec<_>>()
    };
    let all = [
        mark(&backends.local_only, " (Local)"),
        mark(&backends.both, ""),
        mark(&backends.cluster_only, ""),
    ]
    .concat();
    if all.is_empty() {
        "<none>".into()
    } else {
        all.join(" ")
    }
}

impl From<&Services> for Value {
    fn from(services: &Services) -> Self {
        let list = |endpoints: &[Endpoint]| {
            endpoints
                .iter()
                .map(|e| e.addr.to_string())
                .collect::<Vec<_>>()
        };
        let frontend = |(frontend, target): &(&Frontend, &Target)| {
            let Backends {
                local_only,
                both,
                cluster_only,
                ..
            } = &*target.backends;
            json!({
                "address": frontend.addr.to_string(),
                "port": frontend.port,
                "protocol": frontend.protocol.name(),
                "kind": target.flag_names(),
                "affinitySeconds": target.affinity,
                "algorithm": target.backends.algorithm.word(),
                "forwarding": target.forwarding().word(),
                "backends": { "localOnly": list(local_only), "both": list(both), "clusterOnly": list(cluster_only) },
            })
        };
        by_service(services)
            .into_iter()
            .map(|(name, frontends): (&Arc<str>, Vec<_>)| {
                let frontends: Vec<_> = frontends.iter().map(frontend).collect();
                json!({ "service": **name, "frontends": frontends })
            })
            .collect::<Vec<_>>()
            .into()
    }
}
