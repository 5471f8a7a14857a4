//! Two service ports that claim one frontend.

use std::fmt;
use std::sync::Arc;

use crate::contents::Frontend;
use crate::model::ObjectName;

/// Two service ports claimed one frontend; the loser is not served there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// What both claimed.
    pub frontend: Frontend,
    /// Who has it: `namespace/name:port`.
    pub winner: Arc<str>,
    /// Who has not.
    pub loser: Arc<str>,
    /// The Service that has not.
    pub object: ObjectName,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frontend,
            winner,
            loser,
            ..
        } = self;
        write!(
            f,
            "Service {loser} is not served at {frontend}: Service {winner} has it"
        )
    }
}
