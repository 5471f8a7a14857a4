//! Entries of `from` and `to` that no pod matches.

use super::super::Finding;
use super::super::check::Check;
use super::super::services::{Hint, nearly};
use super::{Examined, MISSPELT, pairs};
use crate::explain::{peer_words, selector_words};
use crate::model::policy::{Namespaces, Peer, Rule, Selector};
use crate::model::{ObjectName, Pod};

impl<'a> Examined<'a> {
    /// Finds entries that no pod matches (P8-P10).
    pub(super) fn peers(&self, rule: &Rule, path: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (i, peer) in rule.peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else {
                continue;
            };
            if self.matching(namespaces, pods).next().is_none() && !self.made(namespaces, pods) {
                findings.push(self.peer_without_pods(namespaces, pods, &format!("{path}[{i}]")));
            }
        }
        findings
    }

    fn peer_without_pods(&self, namespaces: &Namespaces, pods: &Selector, path: &str) -> Finding {
        let (hint, advice) = self.peer_hint(namespaces, pods).unwrap_or_else(|| {
            (
                "it lets nobody through".to_owned(),
                "correct the selectors, or create the pods".to_owned(),
            )
        });
        let problem = format!(
            "there is not {}; {hint}",
            peer_words(self.namespace(), namespaces, pods)
        );
        self.finding(Check::PeerMatchesNothing, path, problem, advice)
    }

    fn peer_hint(&self, namespaces: &Namespaces, pods: &Selector) -> Hint {
        match namespaces {
            Namespaces::Own => {
                let elsewhere = self
                    .state
                    .pods
                    .iter()
                    .find(|(_, pod)| pods.selects(&pod.labels) && !pod.host_network);
                let hint = elsewhere.map(|(pod, _)| {
                    let hint = format!("pod {pod} has these labels, but a podSelector alone means the policy's own namespace");
                    let label = format!("kubernetes.io/metadata.name: {}", pod.namespace);
                    (hint, format!("to mean that pod, add to the same entry a namespaceSelector with matchLabels {label}"))
                });
                hint.or_else(|| nearly(self.namespace(), &pairs(pods), MISSPELT, self.state))
            }
            Namespaces::Matching(selector) => {
                let any = self
                    .state
                    .namespaces
                    .values()
                    .any(|namespace| selector.selects(&namespace.labels));
                let all: Vec<_> = self
                    .state
                    .namespaces
                    .keys()
                    .map(|name| &*name.name)
                    .take(8)
                    .collect();
                (!any).then(|| {
                    let hint = format!("no namespace has {}", selector_words(selector));
                    let advice = format!(
                        "label the namespace, or choose it by kubernetes.io/metadata.name: {}",
                        all.join(", ")
                    );
                    (hint, advice)
                })
            }
        }
    }

    /// Returns the pods that a peer matches (P10, P17, P20).
    pub(super) fn matching(
        &self,
        namespaces: &Namespaces,
        pods: &Selector,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
        let state = self.state;
        let counted = state
            .pods
            .iter()
            .filter(|(_, pod)| !pod.finished() && !pod.host_network && pods.selects(&pod.labels));
        counted.filter(|(name, _)| self.means(namespaces, name))
    }

    /// Returns true if a workload would make such pods.
    fn made(&self, namespaces: &Namespaces, pods: &Selector) -> bool {
        let all = self.state.workloads.iter();
        all.into_iter().any(|(name, workload)| {
            pods.selects(&workload.labels) && self.means(namespaces, &name.name)
        })
    }

    fn means(&self, namespaces: &Namespaces, name: &ObjectName) -> bool {
        match namespaces {
            Namespaces::Own => *name.namespace == *self.namespace(),
            Namespaces::Matching(selector) => {
                let namespace = self
                    .state
                    .namespaces
                    .get(&ObjectName::cluster(&name.namespace));
                namespace.is_some_and(|namespace| selector.selects(&namespace.labels))
            }
        }
    }
}
