//! The consequences of each sync for others: health checks, nodePorts, warnings, and kube-proxy's
//! metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::triggers::{Trigger, Triggers};
use crate::compile::{Conflict, PortConflict, health_checks, no_local_endpoints};
use crate::contents::Contents;
use crate::events::{Events, Warning, Warnings};
use crate::health::Checks;
use crate::metrics::{Counted, Metrics};
use crate::model::{Kind, ObjectName, ObjectRef, Snapshot, State, Update};
use crate::shadow::{NodePorts, node_ports};

/// The senders with their last values, and the warnings that hold.
pub struct Reports {
    checks: watch::Sender<Checks>,
    node_ports: watch::Sender<NodePorts>,
    warnings: Warnings,
    closed: Warnings,
    metrics: Arc<Metrics>,
    pending: Pending,
}

/// The receivers of the reports.
pub struct Audience {
    /// The health checks (V22).
    pub checks: watch::Receiver<Checks>,
    /// The nodePorts in use (V8).
    pub node_ports: watch::Receiver<NodePorts>,
}

/// Changes that are not in force yet.
struct Pending {
    endpoints: usize,
    services: usize,
    triggers: Triggers,
}

impl Reports {
    /// Returns reports of an agent that starts at `now`, and their receivers.
    pub fn new(events: Events, metrics: Arc<Metrics>, now: Timestamp) -> (Self, Audience) {
        let (checks_tx, checks) = watch::channel(Checks::default());
        let (node_ports_tx, node_ports) = watch::channel(NodePorts::default());
        let pending = Pending {
            endpoints: 0,
            services: 0,
            triggers: Triggers::since(now),
        };
        let (warnings, closed) = (Warnings::new(events.clone()), Warnings::new(events));
        let reports = Self {
            checks: checks_tx,
            node_ports: node_ports_tx,
            warnings,
            closed,
            metrics,
            pending,
        };
        (reports, Audience { checks, node_ports })
    }

    /// Counts an update.
    pub fn count(&self, change: &Change) {
        if let Some(what) = change.counted {
            self.metrics.changed(what);
        }
    }

    /// Adds a change that the kernel does not have yet.
    pub fn queue(&mut self, change: Change, now: Timestamp) {
        let Pending {
            endpoints,
            services,
            triggers,
        } = &mut self.pending;
        match change.counted {
            Some(Counted::Endpoints) => *endpoints += 1,
            Some(Counted::Services) => *services += 1,
            None => {}
        }
        change
            .trigger
            .into_iter()
            .for_each(|trigger| triggers.wait(trigger));
        self.report_pending();
        self.metrics.queued(seconds(now));
    }

    /// Reports that the kernel has all changes.
    pub fn settled(&mut self, now: Timestamp) {
        for (family, time) in self.pending.triggers.take().into_values().flatten() {
            self.metrics.programmed(
                family,
                now.duration_since(time).try_into().unwrap_or_default(),
            );
        }
        (self.pending.endpoints, self.pending.services) = (0, 0);
        self.report_pending();
    }

    fn report_pending(&self) {
        self.metrics
            .pending(Counted::Endpoints, self.pending.endpoints);
        self.metrics
            .pending(Counted::Services, self.pending.services);
    }

    /// Reports health checks, nodePorts and conflicts of the compiled contents.
    pub fn compiled<'a>(
        &mut self,
        snapshot: &Snapshot,
        contents: &Contents,
        conflicts: impl Iterator<Item = &'a Conflict>,
    ) {
        self.metrics
            .no_local_endpoints(&no_local_endpoints(contents));
        let health = health_checks(snapshot);
        let taken = conflicts
            .map(frontend_taken)
            .chain(health.conflicts.iter().map(port_taken));
        self.warnings.are(taken.collect::<BTreeSet<_>>());
        send_changed(&self.checks, health.served);
        send_changed(&self.node_ports, node_ports(snapshot, contents));
    }

    /// Reports pods that are closed because their policies could not be represented, and addresses
    /// with too many policies' blocks in common (P34).
    pub fn closed<'a>(
        &mut self,
        snapshot: &Snapshot,
        closed: &BTreeSet<ObjectName>,
        crowding: impl Iterator<Item = &'a ObjectName>,
    ) {
        self.closed.are(
            closed_for(snapshot, closed)
                .into_iter()
                .chain(crowding.map(crowds))
                .collect(),
        );
    }
}

/// Returns a warning for each policy that selects closed pods (P34).
fn closed_for(snapshot: &Snapshot, closed: &BTreeSet<ObjectName>) -> BTreeSet<Warning> {
    let mut pods_of: BTreeMap<&ObjectName, Vec<&ObjectName>> = BTreeMap::new();
    for pod in closed {
        let Some(labels) = snapshot.state.pods.get(pod).map(|pod| &pod.labels) else {
            continue;
        };
        let first = ObjectName {
            namespace: pod.namespace.clone(),
            name: "".into(),
        };
        let policies = snapshot
            .state
            .policies
            .range(first..)
            .take_while(|(name, _)| name.namespace == pod.namespace);
        for (name, _) in policies.filter(|(_, policy)| policy.pods.selects(labels)) {
            pods_of.entry(name).or_default().push(pod);
        }
    }
    let warning = |(policy, pods): (&ObjectName, Vec<&ObjectName>)| {
        let more = if pods.len() > 1 {
            format!(" and {} more", pods.len() - 1)
        } else {
            String::new()
        };
        let note = format!(
            "the policy tables have no room for the rules of {}{more}: in isolated directions these pods get no traffic",
            pods[0]
        );
        let object = ObjectRef {
            kind: Kind::NetworkPolicy,
            name: policy.clone(),
        };
        Warning {
            object,
            reason: "NoRoomForPolicy",
            action: "Enforce",
            note,
        }
    };
    pods_of.into_iter().map(warning).collect()
}

/// Returns the warning for a policy that is among too many with blocks around the same addresses
/// (P34).
fn crowds(policy: &ObjectName) -> Warning {
    let note = "too many rules have ipBlocks around the same addresses: none of these rules allows those addresses";
    let object = ObjectRef {
        kind: Kind::NetworkPolicy,
        name: policy.clone(),
    };
    Warning {
        object,
        reason: "NoRoomForPolicy",
        action: "Enforce",
        note: note.to_owned(),
    }
}

fn send_changed<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|old| {
        let changed = *old != now;
        *old = now;
        changed
    });
}

/// Returns seconds since 1970, the time format of metrics.
pub fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

fn frontend_taken(conflict: &Conflict) -> Warning {
    let reason = if conflict.frontend.addr.is_unspecified() {
        "NodePortTaken"
    } else {
        "AddressTaken"
    };
    warning(&conflict.object, reason, "Serve", conflict.to_string())
}

fn port_taken(conflict: &PortConflict) -> Warning {
    warning(
        &conflict.loser,
        "HealthCheckNodePortTaken",
        "Listen",
        conflict.to_string(),
    )
}

fn warning(
    service: &ObjectName,
    reason: &'static str,
    action: &'static str,
    note: String,
) -> Warning {
    Warning {
        object: ObjectRef {
            kind: Kind::Service,
            name: service.clone(),
        },
        reason,
        action,
        note,
    }
}

/// The part of an update that metrics count.
#[derive(Clone, Debug)]
pub struct Change {
    counted: Option<Counted>,
    trigger: Option<Trigger>,
}

impl Change {
    /// Returns the change that an update is about to make to `state`.
    pub fn of(update: &Update, state: &State) -> Self {
        let counted = match update.object().map(|object| object.kind) {
            Some(Kind::EndpointSlice) => Some(Counted::Endpoints),
            Some(Kind::Service) => Some(Counted::Services),
            None
            | Some(
                Kind::Pod
                | Kind::Node
                | Kind::Namespace
                | Kind::NetworkPolicy
                | Kind::ServiceCIDR
                | Kind::Deployment
                | Kind::ReplicaSet
                | Kind::StatefulSet
                | Kind::DaemonSet
                | Kind::Manifest,
            ) => None,
        };
        Self {
            counted,
            trigger: Trigger::of(update, state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::{Requirement, Selector};
    use crate::model::{Labels, NetworkPolicy, Object, Phase, Pod};

    fn pod(name: &str, app: &str) -> Update {
        let labels = Labels::from([("app".to_owned(), app.to_owned())]);
        let pod = Pod {
            phase: Phase::Running,
            labels,
            ..Pod::default()
        };
        Update::Apply(Object::Pod(ObjectName::new("shop", name), pod))
    }

    fn policy(namespace: &str, name: &str, app: &str) -> Update {
        let pods = Selector {
            requirements: [Requirement::In("app".into(), [app.to_owned()].into())].into(),
        };
        let policy = NetworkPolicy {
            pods,
            ingress: Some(Vec::new()),
            egress: None,
        };
        Update::Apply(Object::NetworkPolicy(
            ObjectName::new(namespace, name),
            policy,
        ))
    }

    #[test]
    fn p34_the_policies_of_closed_pods_are_warned_of() {
        let mut snapshot = Snapshot::default();
        let updates = [
            pod("web-1", "web"),
            pod("web-2", "web"),
            pod("db", "db"),
            policy("shop", "of-web", "web"),
            policy("shop", "of-db", "db"),
            policy("other", "of-web", "web"),
        ];
        updates
            .into_iter()
            .for_each(|update| _ = snapshot.state.apply(update));
        let closed = ["web-1", "web-2", "gone"]
            .map(|name| ObjectName::new("shop", name))
            .into();
        let notes: Vec<_> = closed_for(&snapshot, &closed)
            .into_iter()
            .map(|w| format!("{}: {}", w.object, w.note))
            .collect();
        assert_eq!(
            notes,
            [
                "NetworkPolicy shop/of-web: the policy tables have no room for the rules of shop/web-1 and 1 more: \
              in isolated directions these pods get no traffic"
            ]
        );
        assert!(closed_for(&snapshot, &BTreeSet::new()).is_empty());
    }
}
