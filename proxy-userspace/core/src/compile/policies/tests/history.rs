//! Histories: the incremental result equals that of compiling from nothing.

use std::net::IpAddr;

use proptest::prelude::*;
use proxy_common::net::IfIndex;

use crate::model::policy::{Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{
    Invalid, Labels, Namespace, NetworkPolicy, Object, ObjectName, Phase, Pod, PortRange, Update,
};

use super::cluster::*;

/// Bytes that decide each choice. When they are used up, the first option is taken.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn below(&mut self, n: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % n)
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.below(all.len() as u8))].clone()
    }

    fn some<T>(&mut self, most: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| one(self)).collect()
    }

    fn name(&mut self) -> ObjectName {
        ObjectName::new(self.pick(&["a", "b"]), self.pick(&["k", "l", "m", "n"]))
    }

    fn selector(&mut self) -> Selector {
        let requirement = |dice: &mut Self| {
            let (key, values) = (
                dice.pick(&["app", "tier"]),
                dice.pick(&[&["x"][..], &["y"], &["x", "y"]]),
            );
            match dice.below(4) {
                0 => any_of(key, values),
                1 => none_of(key, values),
                2 => Requirement::Exists(key.into()),
                _ => Requirement::DoesNotExist(key.into()),
            }
        };
        Selector {
            requirements: self.some(2, requirement).into_iter().collect(),
        }
    }

    fn labels(&mut self) -> Labels {
        self.some(2, |dice| {
            (
                dice.pick(&["app", "tier"]).into(),
                dice.pick(&["x", "y"]).into(),
            )
        })
        .into_iter()
        .collect()
    }

    fn peer(&mut self) -> Peer {
        match self.below(4) {
            0 => own(self.selector()),
            1 => elsewhere(self.selector(), self.selector()),
            _ => {
                let cidrs = [
                    "0.0.0.0/0",
                    "10.0.0.0/29",
                    "10.0.0.0/30",
                    "10.0.0.2/31",
                    "10.0.0.3/32",
                    "::/0",
                    "fd00::2/127",
                ];
                let cidr = net(self.pick(&cidrs));
                let except = self.some(2, |dice| net(dice.pick(&cidrs[1..]))).into_iter();
                Peer::Block {
                    cidr,
                    except: except.filter(|except| cidr.contains(except)).collect(),
                }
            }
        }
    }

    fn policy_port(&mut self) -> PolicyPort {
        let port = match self.below(4) {
            0 | 1 => PortMatch::Named(self.pick(&["http", "dns"]).into()),
            2 => {
                let (first, last) = self.pick(&[(80, 80), (80, 90), (1, 65535)]);
                PortMatch::Range(PortRange { first, last })
            }
            _ => PortMatch::All,
        };
        PolicyPort {
            protocol: self.pick(&[TCP, UDP]),
            port,
        }
    }

    fn rules(&mut self) -> Option<Vec<Rule>> {
        let rule = |dice: &mut Self| Rule {
            peers: dice.some(2, Self::peer),
            ports: dice.some(2, Self::policy_port),
        };
        (self.below(4) != 0).then(|| self.some(2, rule))
    }

    fn policy(&mut self) -> NetworkPolicy {
        NetworkPolicy {
            pods: self.selector(),
            ingress: self.rules(),
            egress: self.rules(),
        }
    }

    fn address(&mut self) -> IpAddr {
        addr(self.pick(&[
            "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::2", "fd00::9",
        ]))
    }

    fn pod(&mut self) -> Pod {
        let port = |dice: &mut Self| {
            container_port(
                "c",
                dice.pick(&["http", "dns"]),
                dice.pick(&[80, 81]),
                dice.pick(&[TCP, UDP]),
            )
        };
        Pod {
            addresses: self.some(2, Self::address),
            node: self
                .pick(&[Some("here"), Some("there"), None])
                .map(Into::into),
            host_network: self.pick(&[false, false, false, true]),
            phase: self.pick(&[
                Phase::Running,
                Phase::Running,
                Phase::Pending,
                Phase::Failed,
            ]),
            labels: self.labels(),
            ports: self.some(2, port),
            created: self.pick(&[Some(1), Some(2)]),
            ..pod(&[], "")
        }
    }
}

fn happen(dice: &mut Dice, cluster: &mut Cluster) {
    let object = match dice.below(10) {
        0..4 => Object::Pod(dice.name(), dice.pod()),
        4..8 => Object::NetworkPolicy(dice.name(), dice.policy()),
        8 => Object::Namespace(
            ObjectName::cluster(dice.pick(&["a", "b"])),
            Namespace {
                labels: dice.labels(),
            },
        ),
        _ => {
            let before = cluster.snapshot.links.clone();
            cluster.snapshot.links.pods = dice
                .some(2, |dice| (dice.address(), IfIndex(dice.below(3).into())))
                .into_iter()
                .collect();
            return cluster
                .touched
                .record_links(&before, &cluster.snapshot.links);
        }
    };
    cluster.apply(match dice.below(8) {
        0 => Update::Delete(object.reference()),
        1 => Update::Invalid(Invalid {
            object: object.reference(),
            field: String::new(),
            why: String::new(),
        }),
        _ => Update::Apply(object),
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_to_the_same_policies_as_compiling_from_nothing(
        history in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 48), 1..4), 1..24),
    ) {
        let mut cluster = Cluster::new();
        for batch in history {
            for bytes in &batch {
                happen(&mut Dice(bytes.iter()), &mut cluster);
            }
            cluster.compile();
        }
    }
}
