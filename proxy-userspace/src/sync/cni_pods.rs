//! Completes pods of this node with the addresses of their CNI results, until the API server has
//! them (P31).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{debug, warn};

use crate::cni::CniPods;
use crate::model::{Kind, Object, ObjectName, ObjectRef, Pod, State, Update};

/// The pods of CNI results, and those that have their addresses from there.
#[derive(Debug, Default)]
pub struct CniAddresses {
    cni_pods: CniPods,
    lent: BTreeSet<ObjectName>,
}

impl CniAddresses {
    /// Adds the addresses that the API server does not have yet to an update of a pod of `node`.
    pub fn complete(&mut self, update: Update, node: &Arc<str>) -> Update {
        if let Update::Delete(ObjectRef {
            kind: Kind::Pod,
            name,
        }) = &update
        {
            self.lent.remove(name);
        }
        let Update::Apply(Object::Pod(name, mut pod)) = update else {
            return update;
        };
        self.lent.remove(&name);
        if let Some(addresses) = self
            .cni_pods
            .get(&name)
            .filter(|addresses| is_ours(&pod, node) && !addresses.is_empty())
        {
            if pod.addresses.is_empty() {
                debug!(pod = %name, ?addresses, "addresses taken from the CNI result");
                pod.addresses.clone_from(addresses);
                self.lent.insert(name.clone());
            } else if !same(&pod.addresses, addresses) {
                warn!(pod = %name, api = ?pod.addresses, cni = ?addresses, "the addresses of the API server and of the CNI result differ; the API server's are used");
            }
        }
        Update::Apply(Object::Pod(name, pod))
    }

    /// Replaces the CNI results. Returns an update for each pod that this concerns, without the
    /// addresses that it had from an earlier result.
    pub fn replace(&mut self, cni_pods: CniPods, state: &State) -> Vec<Update> {
        let before = std::mem::replace(&mut self.cni_pods, cni_pods);
        let names: BTreeSet<_> = before.keys().chain(self.cni_pods.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| before.get(*name) != self.cni_pods.get(*name));
        let concerned = changed.filter_map(|name| {
            let pod = state.pods.get(name)?;
            let lent = self.lent.contains(name);
            let bare = || Pod {
                addresses: Vec::new(),
                ..pod.clone()
            };
            (lent || pod.addresses.is_empty())
                .then(|| Update::Apply(Object::Pod(name.clone(), bare())))
        });
        concerned.collect()
    }
}

fn is_ours(pod: &Pod, node: &Arc<str>) -> bool {
    pod.node.as_ref() == Some(node) && !pod.host_network && !pod.finished()
}

fn same(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    /// The addresses of the pod in an update.
    fn of(update: &Update) -> &[IpAddr] {
        match update {
            Update::Apply(Object::Pod(_, pod)) => &pod.addresses,
            other @ (Update::Apply(_)
            | Update::Flawed(..)
            | Update::Delete(_)
            | Update::Invalid(_)
            | Update::Synced
            | Update::Connection(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn p31_a_pod_has_what_its_plugin_gave_it_until_the_api_server_says_so() {
        let (name, here): (_, Arc<str>) = (ObjectName::new("shop", "db-0"), "here".into());
        let apply = |pod: &Pod| Update::Apply(Object::Pod(name.clone(), pod.clone()));
        let mut state = State::default();
        let mut completer = CniAddresses::default();
        let bare = Pod {
            node: Some(here.clone()),
            ..Pod::default()
        };
        // Its object comes first, then the plugin, then the API server.
        _ = state.apply(completer.complete(apply(&bare), &here));
        assert!(state.pods[&name].addresses.is_empty());
        let from_cni = addresses(&["10.244.1.7", "fd00::7"]);
        let again = completer.replace([(name.clone(), from_cni.clone())].into(), &state);
        assert_eq!(again.len(), 1);
        _ = state.apply(completer.complete(again[0].clone(), &here));
        assert_eq!(state.pods[&name].addresses, from_cni);
        // A change of labels before that does not take them away.
        assert_eq!(of(&completer.complete(apply(&bare), &here)), from_cni);
        let known = Pod {
            addresses: addresses(&["10.244.1.7"]),
            ..bare.clone()
        };
        assert_eq!(
            of(&completer.complete(apply(&known), &here)),
            known.addresses
        );
        _ = state.apply(apply(&known));
        assert_eq!(
            completer.replace(CniPods::new(), &state),
            [],
            "what the API server says stays"
        );
    }

    #[test]
    fn p31_what_was_lent_goes_with_the_container_and_only_pods_of_this_node_are_lent_anything() {
        let (name, here): (_, Arc<str>) = (ObjectName::new("shop", "db-0"), "here".into());
        let apply = |pod: &Pod| Update::Apply(Object::Pod(name.clone(), pod.clone()));
        let mut state = State::default();
        let mut completer = CniAddresses::default();
        let from_cni = addresses(&["10.244.1.7"]);
        completer.replace([(name.clone(), from_cni.clone())].into(), &state);
        let bare = Pod {
            node: Some(here.clone()),
            ..Pod::default()
        };
        _ = state.apply(completer.complete(apply(&bare), &here));
        assert_eq!(state.pods[&name].addresses, from_cni);
        let without = completer.replace(CniPods::new(), &state);
        assert_eq!(without.len(), 1);
        assert!(of(&completer.complete(without[0].clone(), &here)).is_empty());
        completer.replace([(name.clone(), from_cni)].into(), &state);
        for other in [
            Pod {
                node: Some("there".into()),
                ..bare.clone()
            },
            Pod {
                host_network: true,
                ..bare.clone()
            },
        ] {
            assert!(of(&completer.complete(apply(&other), &here)).is_empty());
        }
    }
}
