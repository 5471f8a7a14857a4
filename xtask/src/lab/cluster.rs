//! Makes a cluster of a lab: a control plane next to its router, with the nodes and pods as their
//! kubelets would report them.

use anyhow::{Context, Result};
use serde_json::Value;

use super::controlplane::{ControlPlane, ControlPlaneSpec, ObjectRef, User};
use super::topology::ROUTER;
use super::{Lab, agent, objects};

/// The ranges of cluster IPs, IPv4 and IPv6.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];
const DEPLOY: &str = include_str!("../../../deploy/portway.yaml");

/// Starts a control plane beside the lab's router, with the agents' account, the nodes and the
/// pods.
///
/// # Errors
/// If it does not start, or refuses an object.
pub fn begin(lab: &Lab) -> Result<ControlPlane> {
    let ranges = SERVICE_RANGES
        .iter()
        .map(|range| range.parse().context("read a Service range"));
    let service_ranges = ranges.collect::<Result<_>>()?;
    let spec = ControlPlaneSpec {
        netns: lab.router().path(),
        address: ROUTER.v4.into(),
        service_ranges,
    };
    let plane = ControlPlane::start(&spec)?;
    plane
        .client()
        .apply_yaml(DEPLOY)
        .context("apply deploy/portway.yaml")?;
    lab.nodes()
        .iter()
        .try_for_each(|node| apply_with_status(&plane, &objects::node(node)))?;
    lab.pods()
        .try_for_each(|(node, pod)| apply_with_status(&plane, &objects::pod(node, pod)))?;
    Ok(plane)
}

/// Returns the source of agents: the API server, with the account that the DaemonSet uses.
///
/// # Errors
/// If the control plane gives it no token.
pub fn source(plane: &ControlPlane) -> Result<agent::Source> {
    let account = User::ServiceAccount {
        namespace: "portway".into(),
        name: "portway".into(),
    };
    Ok(agent::Source::Kubeconfig(plane.kubeconfig(&account)?))
}

/// Gives the API server an object, and then its status, which it takes separately only.
///
/// # Errors
/// If it has no status, or either is refused.
pub fn apply_with_status(plane: &ControlPlane, object: &Value) -> Result<()> {
    let mut bare = object.clone();
    let status = bare
        .as_object_mut()
        .and_then(|fields| fields.remove("status"))
        .context("find the status")?;
    plane.client().apply(&bare)?;
    plane
        .client()
        .patch_status(&ObjectRef::of(object)?, &status)
        .map(drop)
}
