//! The policy tables in memory, asked by the functions that the kernel runs.

use std::net::IpAddr;

use proxy_common::net::{Addr4, Addr6, Protocol, V4, V6};
use proxy_common::policy::PodRows;
use proxy_ebpf::fake::Memory;
use proxy_ebpf::policy::allows;

use crate::contents::policies::{Policies, PolicyDelta};
use crate::model::ObjectName;
use crate::place::policies::{PolicyTables, PolicyWrite};

#[path = "../../../../tests/support/policy_tables.rs"]
mod policy_tables;

/// Addresses that questions are about.
pub(super) const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "10.0.0.130",
    "192.0.2.1",
    "fd00::1",
    "fd00::2",
    "2001:db8::1",
];

/// The tables, their contents, and the state that they were brought to.
#[derive(Default)]
pub(super) struct World {
    pub(super) tables: PolicyTables,
    pub(super) v4: Memory<V4>,
    pub(super) v6: Memory<V6>,
    pub(super) policies: Policies,
}

/// A connection of a pod, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) pod: ObjectName,
    pub(super) ingress: bool,
    pub(super) other: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl World {
    pub(super) fn bring_to(&mut self, policies: Policies) {
        self.bring_watched(policies, |_, _| ());
    }

    pub(super) fn bring_watched(
        &mut self,
        policies: Policies,
        check: impl Fn(&Self, &PolicyWrite),
    ) {
        let delta = PolicyDelta::between(&self.policies, &policies);
        for write in &self.tables.place(&policies, &delta) {
            policy_tables::write(write, &mut self.v4, &mut self.v6);
            check(self, write);
        }
        self.policies = policies;
    }

    /// As `bring_to`, but checks each single write against both states. If they agree on a
    /// question, so do the tables, or the pod is closed before or after it (P34). If they do not,
    /// any verdict is one of theirs.
    pub(super) fn bring_agreeing(&mut self, policies: Policies) {
        let before = self.policies.clone();
        let closed_before = self.tables.closed().clone();
        let both =
            |pod: &ObjectName| before.pods.contains_key(pod) && policies.pods.contains_key(pod);
        let asked = questions(&policies)
            .into_iter()
            .filter(|question| both(&question.pod));
        let agreed = asked.map(|question| {
            (
                verdict_of(&before, &question),
                verdict_of(&policies, &question),
                question,
            )
        });
        let agreed: Vec<_> = agreed.filter(|(old, new, _)| old == new).collect();
        self.bring_watched(policies, |world, write| {
            // While a change without room is written, more pods may be closed.
            let tables = &world.tables;
            let closed = |pod| {
                tables.directory.overflows()
                    || closed_before.contains(pod)
                    || tables.closed().contains(pod)
            };
            for (both, _, question) in &agreed {
                let answer = world.answer(question);
                assert!(
                    answer == *both || !answer && closed(&question.pod),
                    "{question:?} is {answer} at {write:?}"
                );
            }
        });
        self.agrees();
    }

    pub(super) fn rest(&mut self) {
        for write in self.tables.rest() {
            policy_tables::write(&write, &mut self.v4, &mut self.v6);
        }
    }

    /// The verdict of the tables.
    pub(super) fn answer(&self, question: &Question) -> bool {
        let pod_id = self.tables.pod_id(&question.pod).expect("a pod_id");
        let rows = self.v4.rows.get(&pod_id).copied().unwrap_or_default();
        self.answer_by(rows, question)
    }

    pub(super) fn answer_by(&self, rows: PodRows, question: &Question) -> bool {
        let row = if question.ingress {
            rows.ingress
        } else {
            rows.egress
        };
        let Question { protocol, port, .. } = *question;
        match question.other {
            IpAddr::V4(addr) => allows::<V4, _>(&self.v4, row, &Addr4::from(addr), protocol, port),
            IpAddr::V6(addr) => allows::<V6, _>(&self.v6, row, &Addr6::from(addr), protocol, port),
        }
    }

    #[track_caller]
    pub(super) fn agrees(&self) {
        for question in questions(&self.policies) {
            let (answer, expected) = (
                self.answer(&question),
                verdict_of(&self.policies, &question),
            );
            let closed = !answer && self.tables.closed().contains(&question.pod);
            assert!(answer == expected || closed, "{question:?} is {answer}");
        }
    }
}

/// The verdict of a state.
pub(super) fn verdict_of(policies: &Policies, question: &Question) -> bool {
    let pod = &policies.pods[&question.pod];
    let isolation = if question.ingress {
        &pod.ingress
    } else {
        &pod.egress
    };
    isolation.allows(
        policies.class_of(question.other),
        question.protocol,
        question.port,
    )
}

pub(super) fn questions(policies: &Policies) -> Vec<Question> {
    let others = ADDRESSES.map(|text| text.parse::<IpAddr>().expect("an address"));
    let ports = [
        (Protocol::TCP, 80),
        (Protocol::TCP, 8080),
        (Protocol::UDP, 53),
        (Protocol(1), 0),
    ];
    let mut questions = Vec::new();
    for pod in policies.pods.keys() {
        for (ingress, other) in [true, false]
            .into_iter()
            .flat_map(|ingress| others.map(|other| (ingress, other)))
        {
            questions.extend(ports.map(|(protocol, port)| Question {
                pod: pod.clone(),
                ingress,
                other,
                protocol,
                port,
            }));
        }
    }
    questions
}
