//! The checks of `portway doctor`: one table of their names and what each finds.

use serde::{Serialize, Serializer};

/// Declares [`Check`] with a name and a sentence for each value.
macro_rules! checks {
    ($($check:ident = $name:literal: $finds:literal,)*) => {
        /// A check of `portway doctor`. Ordered by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check { $(#[doc = $finds] $check,)* }

        impl Check {
            /// Every check, in the order of their names.
            pub const ALL: &'static [Self] = &[$(Self::$check,)*];

            /// Returns its name, which is stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$check => $name,)* }
            }

            /// Returns one sentence about what it finds.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$check => $finds,)* }
            }
        }
    };
}

checks! {
    ClaimedTwice = "claimed-twice": "Two Services claim the same address, port and protocol; only the older one is served there.",
    ClientAddressesHidden = "client-addresses-hidden": "An ipBlock is meant for clients outside, but behind another node's masquerade only that node's address is visible (P29).",
    EgressBlocksDns = "egress-blocks-dns": "The policy isolates its pods for egress and no policy lets them reach the cluster's DNS.",
    FirewallPassedBy = "firewall-passed-by": "This host has firewall rules for forwarded packets that redirected packets skip.",
    NoReadyEndpoint = "no-ready-endpoint": "The Service has no endpoint that is ready, so clients are refused.",
    NodePortTaken = "node-port-taken": "A process of this host listens on a nodePort; clients from outside reach the Service, not the process (V8).",
    OtherDataPlane = "other-data-plane": "Another data plane (kube-proxy, Cilium, Calico) is active on this host.",
    PeerMatchesNothing = "peer-matches-nothing": "An entry of `from` or `to` matches no pod, so it lets nobody through.",
    PolicyOnHostNetwork = "policy-on-host-network": "The policy selects a hostNetwork pod, where no policy is enforced (P17).",
    PolicySelectsNothing = "policy-selects-nothing": "The policy's podSelector matches no pod of its namespace, so it isolates nobody.",
    SelectorMatchesNothing = "selector-matches-nothing": "The Service's selector matches no pod of its namespace.",
    UnknownPortName = "unknown-port-name": "A named port of a policy's rule is declared by no destination pod, so it allows nothing (P15).",
    UnknownTargetPort = "unknown-target-port": "A named targetPort is declared by no container of the matching pods.",
    UnusableField = "unusable-field": "A field of an object is invalid; the rest of the object is in force.",
    UnusableObject = "unusable-object": "An object is invalid and left out; nothing else is affected.",
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_sorted_by_the_names_of_their_checks() {
        let names: Vec<_> = Check::ALL.iter().map(|check| check.name()).collect();
        assert!(names.is_sorted() && names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(Check::ALL.is_sorted());
    }
}
