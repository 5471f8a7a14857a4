//! Names of ports, and lives of pods, on small clusters (P15-P24).

use std::sync::Arc;

use proxy_common::net::IfIndex;

use crate::contents::policies::{Class, Isolation};
use crate::model::policy::Selector;
use crate::model::{Kind, Phase, Pod};

use super::cluster::*;

#[test]
fn p15_ingress_names_are_the_selected_pods_own_over_all_its_containers() {
    let mut cluster = Cluster::new();
    let ports = vec![
        container_port("a", "http", 8080, TCP),
        container_port("b", "http", 9090, TCP),
        container_port("b", "http", 7070, UDP),
    ];
    cluster
        .pod(
            "web",
            Pod {
                ports,
                ..pod(&["10.244.1.2"], "web")
            },
        )
        .pod("bare", pod(&["10.244.1.3"], "web"));
    cluster.policy("p", ingress(app("web"), &[rule(&[], &[named("http")])]));
    let open = [8080, 9090, 7070].map(|port| cluster.allows("192.0.2.1", "10.244.1.2", port));
    assert_eq!(open, [true, true, false]);
    assert!(!cluster.allows("192.0.2.1", "10.244.1.3", 8080));
    assert_eq!(
        cluster.policies().pods[&object("bare")].ingress,
        Isolation::Rules(Arc::default()),
        "a name it lacks is nothing"
    );
}

#[test]
fn p15_egress_names_are_each_destinations_own_and_split_no_class_needlessly() {
    let mut cluster = Cluster::new();
    let with = |addr: &str, app: &str, port| Pod {
        ports: vec![
            container_port("a", "http", port, TCP),
            container_port("a", "metrics", 9, TCP),
        ],
        ..pod(&[addr], app)
    };
    cluster
        .pod("client", pod(&["10.244.1.2"], "client"))
        .pod("a", with("10.244.2.1", "web", 8080));
    cluster
        .pod("b", with("10.244.2.2", "web", 9090))
        .pod("c", with("10.244.2.3", "other", 8080));
    cluster.policy(
        "p",
        egress(app("client"), &[rule(&[own(app("web"))], &[named("http")])]),
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.1", 8080)
            && !cluster.allows("10.244.1.2", "10.244.2.1", 9090)
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.2", 9090)
            && !cluster.allows("10.244.1.2", "10.244.2.2", 8080)
    );
    assert!(
        !cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "192.0.2.1", 8080)
    );
    assert_eq!(
        cluster.classes(),
        ["10.244.2.1/32", "10.244.2.2/32"],
        "nobody asks the third"
    );
    let class = cluster.policies().classes[&net("10.244.2.1/32")].clone();
    assert_eq!(
        class.named.keys().cloned().collect::<Vec<_>>(),
        [("http".into(), TCP)],
        "nobody asks for metrics"
    );
    cluster.policy("p", egress(app("client"), &[rule(&[], &[named("http")])]));
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "192.0.2.1", 8080)
    );
    cluster.policy(
        "p",
        egress(
            app("client"),
            &[rule(&[block("10.244.2.2/31", &[])], &[named("http")])],
        ),
    );
    assert!(
        cluster.allows("10.244.1.2", "10.244.2.3", 8080)
            && !cluster.allows("10.244.1.2", "10.244.2.1", 8080)
    );
}

#[test]
fn p17_host_network_pods_are_neither_selected_nor_matched_by_selectors() {
    let mut cluster = Cluster::new();
    let host = Pod {
        host_network: true,
        ..pod(&["192.0.2.7"], "client")
    };
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("host", host);
    cluster.policy(
        "p",
        ingress(
            Selector::default(),
            &[rule(&[own(Selector::default())], &[])],
        ),
    );
    assert!(!cluster.allows("192.0.2.7", "10.244.1.2", 80));
    assert!(!cluster.policies().pods.contains_key(&object("host")));
    cluster.policy(
        "q",
        ingress(
            Selector::default(),
            &[rule(&[block("192.0.2.0/24", &[])], &[])],
        ),
    );
    assert!(cluster.allows("192.0.2.7", "10.244.1.2", 80));
    cluster.delete(Kind::Pod, "web");
    assert!(
        cluster.classes().is_empty(),
        "it does not make a policy count either"
    );
}

#[test]
fn p20_finished_pods_leave_at_once_and_terminating_ones_stay() {
    let mut cluster = Cluster::new();
    let client = pod(&["10.244.1.3"], "client");
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("a", client.clone());
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "a",
        Pod {
            terminating: true,
            ..client.clone()
        },
    );
    assert!(cluster.compile().is_empty());
    for phase in [Phase::Succeeded, Phase::Failed] {
        cluster.pod(
            "a",
            Pod {
                phase,
                ..client.clone()
            },
        );
        assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
        assert!(!cluster.policies().pods.contains_key(&object("a")));
        cluster.pod("a", client.clone()).compile();
    }
    cluster.pod(
        "web",
        Pod {
            phase: Phase::Failed,
            ..pod(&["10.244.1.2"], "web")
        },
    );
    assert!(cluster.classes().is_empty());
}

#[test]
fn p21_a_pod_has_its_rows_before_it_has_an_address() {
    let mut cluster = Cluster::new();
    cluster
        .pod(
            "web",
            Pod {
                phase: Phase::Pending,
                ..pod(&[], "web")
            },
        )
        .policy("p", ingress(app("web"), &[]));
    let web = cluster.policies().pods[&object("web")].clone();
    assert!(web.addresses.is_empty() && web.ingress != Isolation::None);
    cluster.pod("web", pod(&["10.244.1.2"], "web"));
    assert!(!cluster.allows("192.0.2.1", "10.244.1.2", 80));
}

#[test]
fn p22_an_address_used_again_is_the_new_pods() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("old", pod(&["10.244.1.3"], "client"));
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "new",
        Pod {
            created: Some(2),
            ..pod(&["10.244.1.3"], "other")
        },
    );
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    assert!(cluster.policies().pods[&object("old")].addresses.is_empty());
    cluster.delete(Kind::Pod, "new");
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod(
        "web-2",
        Pod {
            created: Some(2),
            ..pod(&["10.244.1.2"], "other")
        },
    );
    assert!(
        cluster.allows("192.0.2.1", "10.244.1.2", 80),
        "what selected the predecessor does not bind the successor"
    );
}

#[test]
fn p23_a_pod_of_two_families_is_one_peer_with_two_addresses() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2", "fd00::2"], "web"))
        .pod("a", pod(&["10.244.1.3", "fd00::3"], "client"));
    cluster.policy(
        "p",
        ingress(app("web"), &[rule(&[own(app("client"))], &[])]),
    );
    assert_eq!(cluster.classes(), ["10.244.1.3/32", "fd00::3/128"]);
    assert!(cluster.allows("fd00::3", "fd00::2", 80) && !cluster.allows("fd00::4", "fd00::2", 80));
    cluster.policy(
        "q",
        ingress(app("web"), &[rule(&[block("::/0", &["fd00::/8"])], &[])]),
    );
    assert!(
        cluster.allows("2001:db8::1", "fd00::2", 80) && !cluster.allows("fd00::4", "fd00::2", 80)
    );
    assert!(!cluster.allows("192.0.2.1", "10.244.1.2", 80), "P12");
}

#[test]
fn p24_new_labels_of_pods_and_namespaces_count_at_once() {
    let mut cluster = Cluster::new();
    cluster
        .pod("web", pod(&["10.244.1.2"], "web"))
        .pod("team/a", pod(&["10.244.1.3"], "client"));
    let of_team = selector(&[any_of("team", &["red"])]);
    cluster.policy(
        "p",
        ingress(
            app("web"),
            &[rule(&[elsewhere(of_team, app("client"))], &[])],
        ),
    );
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.namespace("team", &[("team", "red")]);
    assert!(cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod("team/a", pod(&["10.244.1.3"], "other"));
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster
        .pod("team/a", pod(&["10.244.1.3"], "client"))
        .namespace("team", &[]);
    assert!(!cluster.allows("10.244.1.3", "10.244.1.2", 80));
    cluster.pod("web", pod(&["10.244.1.2"], "free"));
    assert!(
        cluster.allows("10.244.1.3", "10.244.1.2", 80),
        "no policy selects it any more"
    );
}

#[test]
fn a_pods_device_comes_and_goes_with_the_links() {
    let mut cluster = Cluster::new();
    cluster.pod("web", pod(&["10.244.1.2", "fd00::2"], "web"));
    assert_eq!(
        cluster.policies().pods[&object("web")].device,
        IfIndex::NONE
    );
    let before = cluster.snapshot.links.clone();
    cluster
        .snapshot
        .links
        .pods
        .insert(addr("fd00::2"), IfIndex(7));
    cluster
        .touched
        .record_links(&before, &cluster.snapshot.links);
    assert_eq!(cluster.policies().pods[&object("web")].device, IfIndex(7));
}

#[test]
fn pods_that_are_alike_share_rows_and_classes() {
    let mut cluster = Cluster::new();
    cluster
        .pod("a", pod(&["10.244.1.2"], "web"))
        .pod("b", pod(&["10.244.1.3"], "web"));
    cluster.policy("p", ingress(app("web"), &[rule(&[own(app("web"))], &[])]));
    let policies = cluster.policies();
    let row = |name: &str| match &policies.pods[&object(name)].ingress {
        Isolation::Rules(row) => row.clone(),
        Isolation::None => panic!("not isolated"),
    };
    assert!(Arc::ptr_eq(&row("a"), &row("b")));
    let classes: Vec<&Arc<Class>> = policies.classes.values().collect();
    assert!(classes.len() == 2 && Arc::ptr_eq(classes[0], classes[1]));
}
