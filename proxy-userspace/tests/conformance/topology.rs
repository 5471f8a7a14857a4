//! The endpoints of a Service for Cluster and Local (V5-V7), from the intervals of slots that its
//! frontends use.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use portway::compile::compile;
use portway::contents::{Contents, Endpoint};
use portway::model::{Node, ObjectName, Snapshot};
use proxy_common::service::ServiceFlags;

use crate::cases::{TopologyCase, TopologyExpect, TopologyFile};
use crate::cluster;
use crate::report::Tally;

/// Checks a file.
pub fn check(file: &TopologyFile, tally: &mut Tally) -> Result<()> {
    for case in &file.cases {
        let TopologyExpect {
            cluster_endpoints,
            local_endpoints,
            all_endpoints,
            has_any_endpoints,
        } = &case.expect;
        let set = |list: &[SocketAddr]| list.iter().copied().collect::<BTreeSet<_>>();
        let owed = (
            set(cluster_endpoints),
            set(local_endpoints),
            set(all_endpoints),
            *has_any_endpoints,
        );
        let Sets {
            cluster,
            local,
            any,
        } = sets(&contents(case)?);
        let all = cluster.union(&local).copied().collect();
        tally.compare(
            &case.name,
            case.weight(),
            &owed,
            &(cluster, local, all, any),
        );
    }
    Ok(())
}

fn contents(case: &TopologyCase) -> Result<Contents> {
    let mut snapshot = Snapshot {
        state: cluster::of(&case.objects)?,
        ..Snapshot::default()
    };
    snapshot.settings.node_name = case.config.node_name.as_str().into();
    let node = Node {
        zone: case.config.zone.as_deref().map(Into::into),
        ..Node::default()
    };
    snapshot
        .state
        .nodes
        .insert(ObjectName::cluster(&case.config.node_name), node);
    Ok(compile(&snapshot))
}

struct Sets {
    cluster: BTreeSet<SocketAddr>,
    local: BTreeSet<SocketAddr>,
    any: bool,
}

/// Returns both sets. Frontends of policy Cluster use the Cluster set, and so do this node's pods
/// at frontends that are Local from outside (V11).
fn sets(contents: &Contents) -> Sets {
    let addresses = |lists: [&Vec<Endpoint>; 2]| {
        lists
            .into_iter()
            .flatten()
            .map(|e| e.addr)
            .collect::<BTreeSet<_>>()
    };
    let mut sets = Sets {
        cluster: BTreeSet::new(),
        local: BTreeSet::new(),
        any: false,
    };
    for target in contents.frontends.values() {
        let (here, everywhere) = (
            addresses([&target.backends.local_only, &target.backends.both]),
            addresses([&target.backends.both, &target.backends.cluster_only]),
        );
        sets.any |= !here.is_empty() || !everywhere.is_empty();
        let local = target.flags & ServiceFlags::LOCAL != 0;
        if local {
            sets.local.extend(here);
        }
        if !local || target.flags & ServiceFlags::CLUSTER_IP == 0 {
            sets.cluster.extend(everywhere);
        }
    }
    sets
}
