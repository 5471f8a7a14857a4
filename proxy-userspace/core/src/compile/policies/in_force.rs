//! The policies that select pods of this node: how they come into force and go.

use std::collections::BTreeSet;

use super::alike::GroupId;
use super::content::Content;
use super::dirty::Dirty;
use super::peers::Parts;
use super::rules::{self, Rule, Rules};
use super::{InForce, PolicyCompiler};
use crate::model::{NetworkPolicy, ObjectName, Snapshot};

impl PolicyCompiler {
    /// Compiles a policy as it is in the snapshot.
    pub(super) fn policy(&mut self, name: &ObjectName, snapshot: &Snapshot, dirty: &mut Dirty) {
        let after = snapshot.state.policies.get(name).and_then(|policy| {
            let local = self
                .groups
                .within(&name.namespace)
                .filter(|id| !self.groups.get(*id).local.is_empty());
            let selected =
                local.filter(|id| policy.pods.selects(&self.groups.get(*id).alike.labels));
            let groups: BTreeSet<GroupId> = selected.collect();
            (!groups.is_empty()).then_some((policy, groups))
        });
        // The new version comes into force before the old one goes, so that shared parts stay.
        let after = after.map(|(policy, groups)| InForce {
            groups,
            rules: self.enforce(name, policy, snapshot, dirty),
        });
        for id in after.iter().flat_map(|after| &after.groups) {
            self.groups.get_mut(*id).policies.insert(name.clone());
            dirty.rows.insert(*id);
        }
        if let Some(before) = self.in_force.remove(name) {
            let selected = after.as_ref().map(|after| &after.groups);
            for id in before
                .groups
                .iter()
                .filter(|id| !selected.is_some_and(|groups| groups.contains(id)))
            {
                self.groups.get_mut(*id).policies.remove(name);
                dirty.rows.insert(*id);
            }
            self.unforce(&before.rules, dirty);
        }
        after.map(|after| self.in_force.insert(name.clone(), after));
    }

    /// Finds the policies that select a group which may have got its first pod of this node or lost
    /// the last one. The touched policies are compiled already.
    pub(super) fn select(
        &mut self,
        id: GroupId,
        snapshot: &Snapshot,
        touched: &BTreeSet<ObjectName>,
        dirty: &mut Dirty,
    ) {
        let group = self.groups.get(id);
        let (alike, local) = (group.alike.clone(), !group.local.is_empty());
        dirty.rows.insert(id);
        let first = ObjectName {
            namespace: alike.namespace.clone(),
            name: "".into(),
        };
        let policies = snapshot
            .state
            .policies
            .range(first..)
            .take_while(|(name, _)| name.namespace == alike.namespace);
        for (name, policy) in policies
            .filter(|(name, policy)| !touched.contains(name) && policy.pods.selects(&alike.labels))
        {
            if !local {
                self.groups.get_mut(id).policies.remove(name);
                self.in_force
                    .get_mut(name)
                    .map(|in_force| in_force.groups.remove(&id));
                continue;
            }
            self.groups.get_mut(id).policies.insert(name.clone());
            if let Some(in_force) = self.in_force.get_mut(name) {
                in_force.groups.insert(id);
            } else {
                let rules = self.enforce(name, policy, snapshot, dirty);
                self.in_force.insert(
                    name.clone(),
                    InForce {
                        groups: BTreeSet::from([id]),
                        rules,
                    },
                );
            }
        }
    }

    /// Brings the rules of a policy into force.
    pub(super) fn enforce(
        &mut self,
        name: &ObjectName,
        policy: &NetworkPolicy,
        snapshot: &Snapshot,
        dirty: &mut Dirty,
    ) -> Rules {
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        let peers = &mut self.peers;
        let mut compile = |rules: &Vec<crate::model::policy::Rule>| -> Vec<Rule> {
            rules
                .iter()
                .map(|rule| {
                    let content = Content::of(&rule.peers, &name.namespace);
                    Rule {
                        peers: peers.acquire(content, &snapshot.settings, parts),
                        ports: rules::ports(&rule.ports),
                    }
                })
                .collect()
        };
        let rules = Rules {
            ingress: policy.ingress.as_ref().map(&mut compile),
            egress: policy.egress.as_ref().map(compile),
        };
        peers.ask(&rules, parts);
        rules
    }

    pub(super) fn unforce(&mut self, rules: &Rules, dirty: &mut Dirty) {
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        self.peers.ask_no_more(rules, parts);
        rules.all().for_each(|rule| self.peers.release(rule.peers));
    }

    /// Removes policies without pods of this node, peers without rules, and groups without pods.
    pub(super) fn end_unused(&mut self, dirty: &mut Dirty) {
        let unused: Vec<_> = self
            .in_force
            .extract_if(.., |_, in_force| in_force.groups.is_empty())
            .collect();
        unused
            .iter()
            .for_each(|(_, in_force)| self.unforce(&in_force.rules, dirty));
        let parts = &mut Parts {
            groups: &mut self.groups,
            prefixes: &mut self.prefixes,
            changed: &mut dirty.classes,
        };
        self.peers.end_unused(parts);
        for (id, group) in self.groups.end_empty() {
            self.peers.end_group(id, &group);
            dirty.classes.remove(&id);
            dirty.rows.remove(&id);
        }
    }
}
