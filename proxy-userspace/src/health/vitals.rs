//! The state that health is judged by (V22, V23): updates that wait, and the node's taints.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{ObjectName, State};

/// An update that waits longer than this means that the agent is stuck (V23).
pub const TOO_LONG: Duration = Duration::from_secs(60);

/// The state of this agent and its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// IPv4.
    pub v4: Progress,
    /// IPv6.
    pub v6: Progress,
    /// The state of our Node object.
    pub node: NodeVitals,
    /// True once the kernel holds everything that was listed at the start, programs and tables.
    pub in_step: bool,
}

/// The progress of updates in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Time of the last update; the start of the agent counts as one.
    pub updated: Option<Instant>,
    /// Time since which an update has not reached the kernel.
    pub waiting_since: Option<Instant>,
}

/// The node's eligibility for traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeVitals {
    /// Nodes have not been listed yet, or the source has never had ours.
    #[default]
    Unknown,
    /// It is among the Nodes.
    Present,
    /// It is being deleted, or the autoscaler has marked it so.
    Leaving,
    /// Ours is not among the Nodes: there are others, or it was there before.
    Missing,
}

impl NodeVitals {
    /// Returns the state of the Node with this name; `before` is the last one.
    pub fn of(state: &State, name: &str, before: Self) -> Self {
        match state.nodes.get(&ObjectName::cluster(name)) {
            Some(node) if node.leaving => Self::Leaving,
            Some(_) => Self::Present,
            None if state.nodes.is_empty() && before == Self::Unknown => Self::Unknown,
            None => Self::Missing,
        }
    }

    /// Returns true if load balancers may choose the node.
    pub fn eligible(self) -> bool {
        matches!(self, Self::Unknown | Self::Present)
    }
}

impl Progress {
    /// Records that an update waits from now on, unless one did before.
    pub fn queue(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// Records that all updates have reached the kernel.
    pub fn update(&mut self, now: Instant) {
        *self = Self {
            updated: Some(now),
            waiting_since: None,
        };
    }

    /// Returns true unless an update has waited longer than `patience`. Before the first update it
    /// is healthy.
    pub fn well(&self, now: Instant, patience: Duration) -> bool {
        self.updated.is_none()
            || self
                .waiting_since
                .is_none_or(|since| now.duration_since(since) <= patience)
    }
}

impl Vitals {
    /// Returns the vitals of an agent that starts now.
    pub fn starting(now: Instant) -> Self {
        let mut vitals = Self::default();
        vitals.update(now);
        vitals
    }

    /// Records that updates of both families wait: one task serves both.
    pub fn queue(&mut self, now: Instant) {
        self.v4.queue(now);
        self.v6.queue(now);
    }

    /// Records that all updates of both families have reached the kernel.
    pub fn update(&mut self, now: Instant) {
        self.v4.update(now);
        self.v6.update(now);
    }

    /// Returns true if an update has not reached the kernel.
    pub fn waiting(&self) -> bool {
        self.v4.waiting_since.is_some() || self.v6.waiting_since.is_some()
    }

    /// Returns true if both families are healthy (V23, without the node part).
    pub fn alive(&self, now: Instant, patience: Duration) -> bool {
        self.v4.well(now, patience) && self.v6.well(now, patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v23_an_update_that_waits_for_more_than_a_minute_is_unhealthy_in_its_family_only() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut vitals = Vitals::default();
        vitals.v4.queue(start);
        assert!(vitals.alive(at(3600), TOO_LONG), "healthy while starting");
        vitals.update(start);
        vitals.v4.queue(at(10));
        vitals.v4.queue(at(20));
        assert!(
            vitals.alive(at(70), TOO_LONG) && !vitals.alive(at(71), TOO_LONG),
            "the oldest update counts"
        );
        assert!(vitals.v6.well(at(71), TOO_LONG));
        vitals.update(at(80));
        assert!(vitals.alive(at(7000), TOO_LONG), "nothing waits");
    }

    #[test]
    fn v23_the_last_node_that_goes_is_missed_if_it_was_ours() {
        let none = State::default();
        assert_eq!(
            NodeVitals::of(&none, "node1", NodeVitals::Unknown),
            NodeVitals::Unknown
        );
        assert_eq!(
            NodeVitals::of(&none, "node1", NodeVitals::Present),
            NodeVitals::Missing
        );
        assert_eq!(
            NodeVitals::of(&none, "node1", NodeVitals::Missing),
            NodeVitals::Missing
        );
    }

    #[test]
    fn v23_an_agent_that_never_gets_its_first_update_through_is_unhealthy() {
        let start = Instant::now();
        let mut vitals = Vitals::starting(start);
        vitals.queue(start);
        assert!(!vitals.alive(start + Duration::from_secs(61), TOO_LONG));
    }
}
