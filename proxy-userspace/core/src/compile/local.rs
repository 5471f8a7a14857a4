//! Service ports that have backends, but none for their Local policy (V24).

use std::collections::BTreeSet;
use std::sync::Arc;

use proxy_common::service::ServiceFlags;

use crate::contents::Contents;
use crate::model::Family;

/// Service ports of each policy, by family and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// Clients of the cluster IP on this node are dropped.
    pub internal: BTreeSet<(Family, Arc<str>)>,
    /// Clients from outside are refused or dropped at this node.
    pub external: BTreeSet<(Family, Arc<str>)>,
}

/// Finds them in the contents of the maps.
pub fn no_local_endpoints(contents: &Contents) -> NoLocalEndpoints {
    let mut found = NoLocalEndpoints::default();
    for (frontend, target) in contents
        .frontends
        .iter()
        .filter(|(_, target)| target.misses_local_backend())
    {
        let inside = target.flags & ServiceFlags::CLUSTER_IP != 0;
        let services = if inside {
            &mut found.internal
        } else {
            &mut found.external
        };
        services.insert((Family::of(frontend.addr), target.service.clone()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contents::{Backends, Endpoint, Frontend, Target};
    use proxy_common::net::Protocol;

    fn frontend(addr: &str, flags: u32, backends: Backends) -> (Frontend, Target) {
        let frontend = Frontend {
            addr: addr.parse().expect("an address"),
            port: 80,
            protocol: Protocol::TCP,
        };
        (
            frontend,
            Target {
                service: "shop/web:80".into(),
                flags,
                affinity: 0,
                backends: Arc::new(backends),
            },
        )
    }

    #[test]
    fn v24_only_backends_elsewhere_count_and_only_where_the_policy_is_local() {
        let there = || {
            vec![Endpoint {
                addr: "10.244.2.2:80".parse().expect("an address"),
                flags: 0,
            }]
        };
        let elsewhere = || Backends {
            cluster_only: there(),
            ..Backends::default()
        };
        let local = ServiceFlags::LOCAL;
        let contents = |frontends: Vec<_>| Contents {
            frontends: frontends.into_iter().collect(),
            ..Contents::default()
        };
        let found = no_local_endpoints(&contents(vec![
            frontend("10.96.0.1", ServiceFlags::CLUSTER_IP, elsewhere()),
            frontend("0.0.0.0", ServiceFlags::NODE_PORT | local, elsewhere()),
            frontend(
                "192.0.2.100",
                ServiceFlags::LOAD_BALANCER | local,
                elsewhere(),
            ),
            frontend("fd00:96::1", ServiceFlags::CLUSTER_IP | local, elsewhere()),
            frontend(
                "fd00:96::2",
                ServiceFlags::CLUSTER_IP | local,
                Backends::default(),
            ),
            frontend(
                "::",
                ServiceFlags::NODE_PORT | local,
                Backends {
                    both: there(),
                    ..Backends::default()
                },
            ),
        ]));
        let name: Arc<str> = "shop/web:80".into();
        assert_eq!(found.external, [(Family::V4, name.clone())].into());
        assert_eq!(found.internal, [(Family::V6, name)].into());
    }
}
