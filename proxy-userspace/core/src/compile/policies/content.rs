//! The content of a rule's peers in normal form, and its keyed hash: rules with equal content share
//! their peers.

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::sync::Arc;

use ipnet::IpNet;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::contents::policies::Peers;
use crate::model::Labels;
use crate::model::policy::{Namespaces, Peer, Requirement, Selector};

/// Half of the key; the other half is the settings' secret.
const KEY: u64 = u64::from_le_bytes(*b"peers v1");

/// The peers of one rule: any of these.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Pods, sorted.
    pub(super) pods: Vec<PodPeer>,
    /// Addresses, sorted.
    pub(super) blocks: Vec<Block>,
}

/// Pods by labels, independent of the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PodPeer {
    /// Their namespaces.
    pub(super) scope: Scope,
    /// Their labels.
    pub(super) labels: Selector,
}

/// Namespaces of peers (P8).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// The policy's own.
    Own(Arc<str>),
    /// Those with these labels.
    Matching(Selector),
}

/// An ipBlock: the addresses in `cidr` and in none of `except` (P11).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub(super) cidr: IpNet,
    /// Within `cidr` and longer than it; sorted, and none within another.
    pub(super) except: Vec<IpNet>,
}

impl PodPeer {
    /// Returns true if the peer selects pods with these labels, in a namespace of this name and
    /// these labels.
    pub(super) fn means(
        &self,
        namespace: &str,
        namespace_labels: &Labels,
        labels: &Labels,
    ) -> bool {
        self.scope.has(namespace, namespace_labels) && self.labels.selects(labels)
    }
}

impl Scope {
    /// Returns true if the namespace is one of them.
    pub(super) fn has(&self, namespace: &str, labels: &Labels) -> bool {
        match self {
            Self::Own(own) => **own == *namespace,
            Self::Matching(selector) => selector.selects(labels),
        }
    }
}

impl Content {
    /// Returns the content of a rule's peers, for a policy in this namespace; `None` for everybody
    /// (P6).
    pub(super) fn of(peers: &[Peer], namespace: &Arc<str>) -> Option<Self> {
        if peers.is_empty() {
            return None;
        }
        let mut content = Self::default();
        for peer in peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    let scope = match namespaces {
                        Namespaces::Own => Scope::Own(namespace.clone()),
                        Namespaces::Matching(selector) => Scope::Matching(selector.clone()),
                    };
                    content.pods.push(PodPeer {
                        scope,
                        labels: pods.clone(),
                    });
                }
                Peer::Block { cidr, except } => content.blocks.extend(block(*cidr, except)),
            }
        }
        content.pods.sort();
        content.pods.dedup();
        content.blocks.sort();
        content.blocks.dedup();
        Some(content)
    }

    /// Returns the hash of these peers: equal for equal secrets, at any time and on any node, and
    /// never [`Peers::EVERYBODY`].
    pub(super) fn peers(&self, secret: u64) -> Peers {
        let mut text = Text::default();
        text.list(&self.pods, |text, peer| {
            match &peer.scope {
                Scope::Own(namespace) => text.tag(0).string(namespace),
                Scope::Matching(selector) => text.tag(1).selector(selector),
            };
            text.selector(&peer.labels);
        });
        text.list(&self.blocks, |text, block| {
            text.prefix(block.cidr)
                .list(&block.except, |text, except| _ = text.prefix(*except));
        });
        let mut hasher = SipHasher13::new_with_keys(secret, KEY);
        hasher.write(&text.0);
        Peers(hasher.finish128().as_u128().max(1))
    }
}

/// Returns an ipBlock in normal form; `None` if its excepts cover all of it.
fn block(cidr: IpNet, except: &BTreeSet<IpNet>) -> Option<Block> {
    if except.iter().any(|except| except.contains(&cidr)) {
        return None;
    }
    let mut outer: Vec<IpNet> = Vec::new();
    // A prefix comes before those within it.
    for except in except.iter().filter(|except| cidr.contains(*except)) {
        if !outer.last().is_some_and(|last| last.contains(except)) {
            outer.push(*except);
        }
    }
    Some(Block {
        cidr,
        except: outer,
    })
}

/// The hashed text. Different contents have different texts: a length precedes each list.
#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    fn list<'a, T: 'a>(
        &mut self,
        all: impl IntoIterator<Item = &'a T, IntoIter: ExactSizeIterator>,
        one: impl Fn(&mut Self, &'a T),
    ) {
        let all = all.into_iter();
        self.0.extend((all.len() as u64).to_le_bytes());
        all.for_each(|item| one(self, item));
    }

    fn string(&mut self, string: &str) -> &mut Self {
        self.0.extend((string.len() as u64).to_le_bytes());
        self.0.extend(string.as_bytes());
        self
    }

    fn selector(&mut self, selector: &Selector) -> &mut Self {
        self.list(
            &selector.requirements,
            |text, requirement| match requirement {
                Requirement::In(key, values) => text
                    .tag(0)
                    .string(key)
                    .list(values, |text, value| _ = text.string(value)),
                Requirement::NotIn(key, values) => text
                    .tag(1)
                    .string(key)
                    .list(values, |text, value| _ = text.string(value)),
                Requirement::Exists(key) => _ = text.tag(2).string(key),
                Requirement::DoesNotExist(key) => _ = text.tag(3).string(key),
            },
        );
        self
    }

    fn prefix(&mut self, prefix: IpNet) -> &mut Self {
        match prefix {
            IpNet::V4(net) => self.tag(4).0.extend(net.addr().octets()),
            IpNet::V6(net) => self.tag(6).0.extend(net.addr().octets()),
        }
        self.tag(prefix.prefix_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn of_block(cidr: &str, except: &[&str]) -> Peer {
        Peer::Block {
            cidr: net(cidr),
            except: except.iter().map(|text| net(text)).collect(),
        }
    }

    fn own_pods() -> Peer {
        Peer::Pods {
            namespaces: Namespaces::Own,
            pods: Selector::default(),
        }
    }

    fn content(peers: &[Peer], namespace: &str) -> Content {
        Content::of(peers, &namespace.into()).expect("not everybody")
    }

    #[test]
    fn p11_excepts_that_say_nothing_leave_no_trace_and_a_block_without_addresses_is_none() {
        let blocks = content(
            &[of_block(
                "10.0.0.0/8",
                &["10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8"],
            )],
            "shop",
        )
        .blocks;
        assert_eq!(
            blocks,
            [Block {
                cidr: net("10.0.0.0/8"),
                except: vec![net("10.1.0.0/16")]
            }]
        );
        let none = content(
            &[
                of_block("10.0.0.0/8", &["10.0.0.0/8"]),
                of_block("10.0.0.0/8", &["0.0.0.0/0"]),
            ],
            "shop",
        );
        assert_eq!(none, Content::default());
        assert_ne!(none.peers(7), Peers::EVERYBODY);
    }

    #[test]
    fn p8_the_same_peers_have_the_same_name_and_others_another() {
        let (a, b) = (of_block("10.0.0.0/8", &[]), of_block("fd00::/8", &[]));
        let name = |peers: &[Peer], namespace| content(peers, namespace).peers(7);
        assert_eq!(
            name(&[a.clone(), b.clone()], "shop"),
            name(&[b.clone(), a.clone(), b], "other"),
            "no namespace is part of it"
        );
        assert_ne!(name(&[own_pods()], "shop"), name(&[own_pods()], "other"));
        assert_ne!(
            name(std::slice::from_ref(&a), "shop"),
            name(&[a.clone(), own_pods()], "shop")
        );
        assert_ne!(
            content(std::slice::from_ref(&a), "shop").peers(7),
            content(&[a], "shop").peers(8),
            "the secret is the key"
        );
    }

    #[test]
    fn the_name_of_peers_stays_what_it_was_in_the_kernel_of_an_older_agent() {
        assert_eq!(
            content(
                &[own_pods(), of_block("10.0.0.0/8", &["10.1.0.0/16"])],
                "shop"
            )
            .peers(7)
            .0,
            0xd8652000_4fe98777_85ee5b7e_efece879
        );
    }
}
