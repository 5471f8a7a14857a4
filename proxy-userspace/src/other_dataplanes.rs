//! Other software that handles this host's packets: data planes, and firewalls that redirected
//! packets bypass.
//!
//! Looking is I/O and never fails: what cannot be read counts as absent. Judging what was found is
//! pure.

mod judge;
mod look;
mod rules;

use std::fmt;
use std::path::Path;

use tracing::warn;

use crate::model::ForwardFirewall;

/// A data plane or firewall that is not Portway's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherSoftware {
    /// Its kind.
    pub kind: Kind,
    /// Its name, as people call it.
    pub name: String,
    /// By what it was recognised.
    pub evidence: String,
}

/// The kinds of other software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It translates Services, or judges pods' packets, too.
    DataPlane,
    /// It refuses some of the packets that this host forwards; those that are redirected pass it
    /// by.
    Firewall,
}

impl Kind {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataPlane => "dataPlane",
            Self::Firewall => "firewall",
        }
    }
}

impl fmt::Display for OtherSoftware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.evidence)
    }
}

impl OtherSoftware {
    /// Returns the consequence, in one sentence.
    pub fn consequence(&self) -> &'static str {
        match self.kind {
            Kind::DataPlane => {
                "it handles packets of Services or pods on this node too, and each may undo what the other does"
            }
            Kind::Firewall => {
                "packets that Portway redirects between clients and pods pass it by; with --host-firewall respect they do not"
            }
        }
    }

    /// Returns the advice.
    pub fn advice(&self) -> &'static str {
        match self.kind {
            Kind::DataPlane => {
                "let only one of them serve this node, and remove what the other has left (kube-proxy --cleanup)"
            }
            Kind::Firewall => {
                "say the same in a NetworkPolicy or in loadBalancerSourceRanges, or run with --host-firewall respect"
            }
        }
    }
}

/// Returns all findings from the calling thread's network namespace. eBPF objects are pinned at
/// `bpffs`.
pub fn find(bpffs: &Path) -> Vec<OtherSoftware> {
    judge::judge(&look::look(bpffs))
}

/// Logs the findings. Returns `Present` if a firewall filters forwarded packets.
pub fn report(found: &[OtherSoftware]) -> ForwardFirewall {
    for other in found {
        let kind = match other.kind {
            Kind::DataPlane => "another data plane",
            Kind::Firewall => "a firewall for forwarded packets",
        };
        warn!(
            evidence = other.evidence,
            "{kind} is on this node: {}; {}",
            other.name,
            other.consequence()
        );
    }
    let filtered = found.iter().any(|other| other.kind == Kind::Firewall);
    if filtered {
        ForwardFirewall::Present
    } else {
        ForwardFirewall::Absent
    }
}

/// Returns the programs on the devices of the calling thread's network namespace, for tests that
/// attach some.
#[cfg(test)]
pub(crate) fn programs_here() -> Vec<(String, String)> {
    look::programs(&look::devices())
}

#[cfg(test)]
mod tests;
