//! Other data planes and firewalls on this host.

use super::Finding;
use super::check::Check;
use crate::foreign::{Foreign, Kind};
use crate::model::{self, ObjectName, ObjectRef};

/// One for each, about the Node.
pub(super) fn findings(found: &[Foreign], node: &str) -> Vec<Finding> {
    let object = ObjectRef {
        kind: model::Kind::Node,
        name: ObjectName::cluster(node),
    };
    let finding = |foreign: &Foreign| {
        let check = match foreign.kind {
            Kind::DataPlane => Check::OtherDataPlane,
            Kind::Firewall => Check::FirewallPassedBy,
        };
        let problem = format!("{foreign}: {}", foreign.consequence());
        Finding::new(check, &object, "this host", problem, foreign.advice())
    };
    found.iter().map(finding).collect()
}
