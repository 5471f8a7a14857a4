//! Addresses that pods of this node have by the word of their CNI plugin, until the API server has
//! them (P31).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{debug, warn};

use crate::cni;
use crate::model::{Kind, Object, ObjectName, ObjectRef, Pod, State, Update};

/// The pods named by CNI plugins, and those that have their addresses from there.
#[derive(Debug, Default)]
pub struct Given {
    said: cni::Given,
    lent: BTreeSet<ObjectName>,
}

impl Given {
    /// An update with the addresses that the API server does not have yet.
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
        if let Some(said) = self
            .said
            .get(&name)
            .filter(|said| is_ours(&pod, node) && !said.is_empty())
        {
            if pod.addresses.is_empty() {
                debug!(pod = %name, addresses = ?said, "known by its CNI result");
                pod.addresses.clone_from(said);
                self.lent.insert(name.clone());
            } else if !same(&pod.addresses, said) {
                warn!(pod = %name, api = ?pod.addresses, cni = ?said, "the API server and the CNI result disagree; the API server is believed");
            }
        }
        Update::Apply(Object::Pod(name, pod))
    }

    /// The plugins say something else now: the pods that are concerned, as they are without what
    /// was lent to them.
    pub fn say(&mut self, said: cni::Given, state: &State) -> Vec<Update> {
        let before = std::mem::replace(&mut self.said, said);
        let names: BTreeSet<_> = before.keys().chain(self.said.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| before.get(*name) != self.said.get(*name));
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
        let mut given = Given::default();
        let bare = Pod {
            node: Some(here.clone()),
            ..Pod::default()
        };
        // Its object comes first, then the plugin, then the API server.
        _ = state.apply(given.complete(apply(&bare), &here));
        assert!(state.pods[&name].addresses.is_empty());
        let said = addresses(&["10.244.1.7", "fd00::7"]);
        let again = given.say([(name.clone(), said.clone())].into(), &state);
        assert_eq!(again.len(), 1);
        _ = state.apply(given.complete(again[0].clone(), &here));
        assert_eq!(state.pods[&name].addresses, said);
        // A change of labels before that does not take them away.
        assert_eq!(of(&given.complete(apply(&bare), &here)), said);
        let known = Pod {
            addresses: addresses(&["10.244.1.7"]),
            ..bare.clone()
        };
        assert_eq!(of(&given.complete(apply(&known), &here)), known.addresses);
        _ = state.apply(apply(&known));
        assert_eq!(
            given.say(cni::Given::new(), &state),
            [],
            "what the API server says stays"
        );
    }

    #[test]
    fn p31_what_was_lent_goes_with_the_container_and_only_pods_of_this_node_are_lent_anything() {
        let (name, here): (_, Arc<str>) = (ObjectName::new("shop", "db-0"), "here".into());
        let apply = |pod: &Pod| Update::Apply(Object::Pod(name.clone(), pod.clone()));
        let mut state = State::default();
        let mut given = Given::default();
        let said = addresses(&["10.244.1.7"]);
        given.say([(name.clone(), said.clone())].into(), &state);
        let bare = Pod {
            node: Some(here.clone()),
            ..Pod::default()
        };
        _ = state.apply(given.complete(apply(&bare), &here));
        assert_eq!(state.pods[&name].addresses, said);
        let without = given.say(cni::Given::new(), &state);
        assert_eq!(without.len(), 1);
        assert!(of(&given.complete(without[0].clone(), &here)).is_empty());
        given.say([(name.clone(), said)].into(), &state);
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
            assert!(of(&given.complete(apply(&other), &here)).is_empty());
        }
    }
}
