//! The conflict of two service ports that claim one frontend.

use std::fmt;
use std::sync::Arc;

use crate::contents::Frontend;
use crate::model::ObjectName;

/// Two service ports that claim one frontend. The loser is not served there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The claimed frontend.
    pub frontend: Frontend,
    /// The service port that is served: `namespace/name:port`.
    pub winner: Arc<str>,
    /// The service port that is not.
    pub loser: Arc<str>,
    /// The Service of the loser.
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
