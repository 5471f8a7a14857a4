//! Other data planes and firewalls on this host.

use super::Finding;
use super::check::Check;
use crate::model::{self, ObjectName, ObjectRef};
use crate::other_dataplanes::{Kind, OtherSoftware};

/// Returns one finding for each, about the Node.
pub(super) fn findings(found: &[OtherSoftware], node: &str) -> Vec<Finding> {
    let object = ObjectRef {
        kind: model::Kind::Node,
        name: ObjectName::cluster(node),
    };
    let finding = |other: &OtherSoftware| {
        let check = match other.kind {
            Kind::DataPlane => Check::OtherDataPlane,
            Kind::Firewall => Check::FirewallPassedBy,
        };
        let problem = format!("{other}: {}", other.consequence());
        Finding::new(check, &object, "this host", problem, other.advice())
    };
    found.iter().map(finding).collect()
}
