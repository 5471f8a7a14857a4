//! The backends that UDP flows and sockets may lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The backends that the UDP flows of each service port may lead to (V14).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// The endpoints that serve, by the id of the service port.
    pub endpoints: BTreeMap<u32, BTreeSet<SocketAddr>>,
    /// Ids from here on were assigned later than this value was made, and are allowed everything.
    pub unknown_from: u32,
}

impl Serving {
    /// Returns a value that also allows what `other` allows, for as long as the kernel may hold
    /// either.
    pub fn or(mut self, other: &Self) -> Self {
        for (id, endpoints) in &other.endpoints {
            self.endpoints.entry(*id).or_default().extend(endpoints);
        }
        self.unknown_from = self.unknown_from.min(other.unknown_from);
        self
    }

    /// Returns true if a flow of a service port may lead to a backend.
    pub fn allows(&self, service: u32, backend: SocketAddr) -> bool {
        // A flow without Service does not end with backends.
        service == 0
            || service >= self.unknown_from
            || self
                .endpoints
                .get(&service)
                .is_some_and(|endpoints| endpoints.contains(&backend))
    }
}
