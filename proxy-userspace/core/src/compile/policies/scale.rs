//! Time to compile a large cluster from nothing, and after one change. A debug build has a tenth of
//! it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::PolicyCompiler;
use crate::compile::Touched;
use crate::contents::policies::{Policies, PolicyDelta};
use crate::model::policy::{Namespaces, Peer, Selector};
use crate::model::{self, Labels, Namespace, Object, ObjectName, Pod, Snapshot, Update};

#[path = "../../../tests/support/large.rs"]
mod large;

use large::{APPS, Size, TEAMS, block, cluster, in_namespace, pod};

const SIZE: Size = Size {
    namespaces: if cfg!(debug_assertions) { 10 } else { 100 },
    cidrs: 100,
};
const NAMESPACES: u32 = SIZE.namespaces;
/// Changes of each kind, every one in another namespace.
const ROUNDS: u32 = if cfg!(debug_assertions) { 9 } else { 51 };

/// Returns the resident memory of the process, in megabytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| {
        text.split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<usize>().ok())
    });
    pages.unwrap_or_default() * 4096 / 1_000_000
}

/// A cluster, with its compiler.
struct Measured {
    snapshot: Snapshot,
    compiler: PolicyCompiler,
}

impl Measured {
    /// Returns the median and the longest time of some changes of one kind, and the difference that
    /// the last one made.
    fn change(
        &mut self,
        what: &str,
        mut object: impl FnMut(u32) -> Object,
    ) -> (Duration, PolicyDelta) {
        let (mut times, mut delta) = (Vec::new(), PolicyDelta::default());
        for round in 0..ROUNDS {
            let (update, mut touched) = (Update::Apply(object(round)), Touched::default());
            touched.record(&update);
            _ = self.snapshot.state.apply(update);
            let begun = Instant::now();
            delta = self.compiler.compile(&self.snapshot, &touched);
            times.push(begun.elapsed());
        }
        times.sort();
        let (pods, classes) = (delta.pods.len(), delta.classes.len());
        let (median, longest) = (times[ROUNDS as usize / 2], times[ROUNDS as usize - 1]);
        println!(
            "{what}: median {median:.1?}, longest {longest:.1?}; changes {pods} pods, {classes} classes"
        );
        (median, delta)
    }
}

fn differ(policies: &Policies) -> usize {
    policies
        .classes
        .values()
        .map(std::sync::Arc::as_ptr)
        .collect::<BTreeSet<_>>()
        .len()
}

#[test]
fn one_change_in_a_large_cluster_costs_only_what_depends_on_it() {
    let snapshot = cluster(SIZE);
    let (mut compiler, memory, begun) = (PolicyCompiler::default(), resident(), Instant::now());
    compiler.compile(&snapshot, &Touched::everything());
    let whole = begun.elapsed();
    let (policies, pods) = (compiler.policies(), snapshot.state.pods.len());
    println!(
        "{pods} pods, {} policies, {} CIDRs: from nothing {whole:.1?}, {} MB; {} prefixes of {} classes, {} pods here",
        snapshot.state.policies.len(),
        snapshot.state.policies.len() * SIZE.cidrs as usize,
        resident() - memory,
        policies.classes.len(),
        differ(policies),
        policies.pods.len(),
    );
    assert_eq!(policies.pods.len() as u32, NAMESPACES * APPS);
    let mut measured = Measured { snapshot, compiler };
    let at = |round: u32| round * 7 % NAMESPACES;
    let (time, delta) = measured.change("a pod is ready or not", |round| {
        Object::Pod(
            in_namespace(at(round), "app-1-0".into()),
            Pod {
                ready: false,
                ..pod(at(round), 1, 0)
            },
        )
    });
    assert!(
        delta.is_empty() && time * 50 < whole,
        "{time:?} of {whole:?}"
    );
    let (time, delta) = measured.change("a pod gets other labels", |round| {
        let labels = Labels::from([
            ("app".into(), "app-2".into()),
            ("round".into(), round.to_string()),
        ]);
        Object::Pod(
            in_namespace(at(round), "app-1-0".into()),
            Pod {
                labels,
                ..pod(at(round), 1, 0)
            },
        )
    });
    assert!(
        delta.pods.len() == 1 && time * 20 < whole,
        "{time:?} of {whole:?}"
    );
    let (time, delta) = measured.change("a pod comes to this node", |round| {
        let addresses: Vec<IpAddr> = vec![Ipv4Addr::from_bits(0x0aff_0000 + round).into()];
        Object::Pod(
            in_namespace(at(round), format!("new-{round}")),
            Pod {
                addresses,
                ..pod(at(round), 3, 0)
            },
        )
    });
    assert!(
        delta.pods.len() == 1 && delta.classes.len() == 1 && time * 50 < whole,
        "{time:?} of {whole:?}"
    );
    let (time, _) = measured.change("a policy has other ports", |round| {
        let mut policy = large::policy(at(round), 4, SIZE.cidrs);
        policy
            .ingress
            .iter_mut()
            .flatten()
            .for_each(|rule| rule.ports.clear());
        Object::NetworkPolicy(in_namespace(at(round), "policy-4".into()), policy)
    });
    assert!(time * 20 < whole, "{time:?} of {whole:?}");
    let (time, _) = measured.change("a policy has one more cidr", |round| {
        let mut policy = large::policy(at(round), 2, SIZE.cidrs);
        policy
            .egress
            .iter_mut()
            .flatten()
            .for_each(|rule| rule.peers.push(block(u32::MAX - round)));
        Object::NetworkPolicy(in_namespace(at(round), "policy-2".into()), policy)
    });
    assert!(time * 20 < whole, "{time:?} of {whole:?}");
    let (time, _) = measured.change("a policy's peers are all pods", |round| {
        let mut policy = large::policy(at(round), 3, SIZE.cidrs);
        let all = Peer::Pods {
            namespaces: Namespaces::Matching(Selector::default()),
            pods: Selector::default(),
        };
        policy
            .ingress
            .iter_mut()
            .flatten()
            .for_each(|rule| rule.peers.push(all.clone()));
        Object::NetworkPolicy(in_namespace(at(round), "policy-3".into()), policy)
    });
    // Here all pods' classes have to be written.
    assert!(time < whole, "{time:?} of {whole:?}");
    measured.change("a namespace changes teams", |round| {
        let labels = Labels::from([("team".into(), format!("team-{}", (at(round) + 1) % TEAMS))]);
        Object::Namespace(
            ObjectName::cluster(&format!("namespace-{}", at(round))),
            Namespace { labels },
        )
    });
    let mut again = PolicyCompiler::default();
    again.compile(&measured.snapshot, &Touched::everything());
    assert_eq!(measured.compiler.policies(), again.policies());
}
