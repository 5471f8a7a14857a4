//! Endpoints come and go; a bad object costs itself; a lost API server costs nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use xtask::lab::controlplane::wait_for;
use xtask::lab::probe::Kind;
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, HOST, IN_FORCE, WEB};

#[test]
fn changes_take_effect_and_bad_objects_cost_only_themselves() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::Bridge, Join::Routes)?;
    let node3 = cluster.lab.node("node3")?.addresses().v4.into();
    let ready = |status: &str| json!({ "conditions": [{ "type": "Ready", "status": status }] });
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("web-3"), &ready("False"))?;
    wait_for("web-3 to leave", IN_FORCE, || {
        Ok((cluster.far(Kind::Http, node3, WEB, 30)?.pods() == ["web-1", "web-2"]).then_some(()))
    })?;
    let bad = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "bad", "namespace": "default", "labels": { "kubernetes.io/service-name": "host" } },
        "addressType": "IPv4",
        // The API server takes it, but nobody can connect to a group.
        "endpoints": [{ "addresses": ["239.1.2.3"] }],
        "ports": [{ "name": "http", "port": 8088 }],
    });
    cluster.plane.client().apply(&bad)?;
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("web-3"), &ready("True"))?;
    cluster.settle()?;
    for agent in &cluster.agents {
        let warning = "EndpointSlice default/bad: endpoints[0].addresses[0]";
        let log = wait_for("a warning", IN_FORCE, || {
            Ok(Some(agent.log()).filter(|log| log.contains(warning)))
        })?;
        ensure!(
            log.matches(warning).count() == 1,
            "more than one warning:\n{log}"
        );
    }
    let host = cluster.far(Kind::Http, node3, HOST, 20)?;
    ensure!(
        host.served() == 20,
        "the Service with the bad slice: {host}"
    );
    cluster.plane.stop_apiserver();
    let tally = cluster.far(Kind::Http, node3, WEB, 60)?;
    ensure!(
        tally.pods().len() == 3 && tally.unserved() == 0,
        "without an API server: {tally:?}"
    );
    cluster.plane.start_apiserver()?;
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("web-1"), &ready("False"))?;
    wait_for(
        "web-1 to leave after the API server came back",
        Duration::from_secs(60),
        || {
            Ok(
                (cluster.far(Kind::Http, node3, WEB, 30)?.pods() == ["web-2", "web-3"])
                    .then_some(()),
            )
        },
    )
}

/// The API server comes back without memory of what was: an object went while nobody watched, and
/// the agents' watches are answered 410.
#[test]
fn what_went_while_nobody_watched_is_found_out_after_410_gone() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::PointToPoint, Join::Routes)?;
    let node3 = cluster.lab.node("node3")?.addresses().v4.into();
    cluster.plane.stop_apiserver();
    cluster
        .plane
        .lose_history_and("services/specs/default/host")?;
    ensure!(
        cluster.far(Kind::Http, node3, WEB, 60)?.unserved() == 0,
        "without an API server"
    );
    ensure!(
        cluster.far(Kind::Http, node3, HOST, 20)?.served() == 20,
        "the Service is not known to be gone yet"
    );
    cluster.plane.start_apiserver()?;
    wait_for("the Service to go", Duration::from_secs(60), || {
        let web = cluster.far(Kind::Http, node3, WEB, 10)?;
        ensure!(web.unserved() == 0, "meanwhile: {web}");
        Ok((cluster.far(Kind::Http, node3, HOST, 2)?.refused == 2).then_some(()))
    })?;
    for agent in &cluster.agents {
        let log = agent.log();
        ensure!(
            log.contains("too old resource version"),
            "no watch was answered 410:\n{log}"
        );
    }
    let ready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    cluster
        .plane
        .client()
        .patch_status(&cluster.pod_ref("web-1"), &ready)?;
    wait_for("web-1 to leave", IN_FORCE, || {
        Ok((cluster.far(Kind::Http, node3, WEB, 30)?.pods() == ["web-2", "web-3"]).then_some(()))
    })
}
