//! NetworkPolicies with a probable mistake: selectors that match nothing, unknown port names, no
//! access to DNS.

mod clients;
mod dns;
mod peers;
mod ports;

use super::Finding;
use super::check::Check;
use super::services::{Hint, nearly};
use crate::explain::{Side, selector_words};
use crate::model::policy::{Requirement, Rule, Selector};
use crate::model::{
    Kind, Labels, NetworkPolicy, ObjectName, ObjectRef, Pod, ServiceOptions, Snapshot, State,
};

/// Maximum number of letters in which a misspelling differs. Labels that differ in more are meant
/// for other pods, which may not exist yet.
const MISSPELT: usize = 2;

pub(super) fn examine(
    Snapshot {
        state, settings, ..
    }: &Snapshot,
) -> Vec<Finding> {
    let all = state
        .policies
        .iter()
        .map(|(name, policy)| Examined::new(state, settings.service_options, name, policy));
    all.flat_map(|examined| examined.findings()).collect()
}

/// A policy, with the pods that it selects.
struct Examined<'a> {
    state: &'a State,
    options: ServiceOptions,
    object: ObjectRef,
    policy: &'a NetworkPolicy,
    selected: Vec<(&'a ObjectName, &'a Pod)>,
}

impl<'a> Examined<'a> {
    fn new(
        state: &'a State,
        options: ServiceOptions,
        name: &ObjectName,
        policy: &'a NetworkPolicy,
    ) -> Self {
        let own = state
            .pods
            .iter()
            .filter(|(pod, _)| pod.namespace == name.namespace);
        let selected = own
            .filter(|(_, pod)| !pod.finished() && policy.pods.selects(&pod.labels))
            .collect();
        Self {
            state,
            options,
            object: ObjectRef {
                kind: Kind::NetworkPolicy,
                name: name.clone(),
            },
            policy,
            selected,
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.selects_nothing());
        findings.extend(self.host_network());
        for (side, rules, path) in self.directions() {
            for (i, rule) in rules.iter().enumerate() {
                findings.extend(self.peers(rule, &format!("{path}[{i}].{}", peers_field(side))));
                findings.extend(self.port_names(side, rule, &format!("{path}[{i}].ports")));
            }
        }
        findings.extend(self.without_dns());
        findings.extend(self.hidden_clients());
        findings
    }

    fn directions(&self) -> impl Iterator<Item = (Side, &'a [Rule], &'static str)> {
        let NetworkPolicy {
            ingress, egress, ..
        } = self.policy;
        let both = [
            (Side::Ingress, ingress, "spec.ingress"),
            (Side::Egress, egress, "spec.egress"),
        ];
        both.into_iter()
            .filter_map(|(side, rules, path)| Some((side, rules.as_deref()?, path)))
    }

    fn namespace(&self) -> &str {
        &self.object.name.namespace
    }

    fn finding(
        &self,
        check: Check,
        field: impl Into<String>,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding::new(check, &self.object, field, problem, advice)
    }

    /// Finds a policy that isolates nobody (P3, P5). An empty selector is meant for later pods, and
    /// so is one that a Deployment's pods match.
    fn selects_nothing(&self) -> Option<Finding> {
        let selector = &self.policy.pods;
        let own = |name: &ObjectName| *name.namespace == *self.namespace();
        let mut made = self
            .state
            .workloads
            .iter()
            .filter(|(name, _)| own(&name.name));
        if !self.selected.is_empty()
            || selector.requirements.is_empty()
            || made.any(|(_, w)| selector.selects(&w.labels))
        {
            return None;
        }
        let (hint, advice) = self
            .elsewhere()
            .or_else(|| nearly(self.namespace(), &pairs(selector), MISSPELT, self.state))
            .unwrap_or_else(|| {
                (
                    "it isolates nobody".to_owned(),
                    "correct the selector, or create the pods".to_owned(),
                )
            });
        let problem = format!(
            "the selector {} matches no pod of namespace {}; {hint}",
            selector_words(selector),
            self.namespace()
        );
        Some(self.finding(
            Check::PolicySelectsNothing,
            "spec.podSelector",
            problem,
            advice,
        ))
    }

    fn elsewhere(&self) -> Hint {
        let (other, _) = self
            .state
            .pods
            .iter()
            .find(|(_, pod)| self.policy.pods.selects(&pod.labels))?;
        let hint = format!(
            "pod {other} has these labels, but a policy only selects pods of its own namespace"
        );
        Some((
            hint,
            format!(
                "if that pod is meant, move the policy to namespace {}",
                other.namespace
            ),
        ))
    }

    /// Finds a policy that selects a hostNetwork pod (P17).
    fn host_network(&self) -> Option<Finding> {
        let (name, _) = self.selected.iter().find(|(_, pod)| pod.host_network)?;
        if self.policy.pods.requirements.is_empty() {
            return None;
        }
        let problem = format!("pod {name} has its node's network, where no policy is enforced");
        let advice = "take hostNetwork from the pod, or guard the node itself";
        Some(self.finding(
            Check::PolicyOnHostNetwork,
            "spec.podSelector",
            problem,
            advice,
        ))
    }
}

fn peers_field(side: Side) -> &'static str {
    match side {
        Side::Ingress => "from",
        Side::Egress => "to",
    }
}

/// Returns the pairs that a selector asks for, as labels.
fn pairs(selector: &Selector) -> Labels {
    let pair = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) if values.len() == 1 => {
            Some((key.clone(), values.first()?.clone()))
        }
        Requirement::In(..)
        | Requirement::NotIn(..)
        | Requirement::Exists(_)
        | Requirement::DoesNotExist(_) => None,
    };
    selector.requirements.iter().filter_map(pair).collect()
}
