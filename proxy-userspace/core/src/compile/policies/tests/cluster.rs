//! Small clusters for the tests of NetworkPolicy, each with its compiler.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::net::Protocol;

use crate::compile::PolicyCompiler;
use crate::compile::Touched;
use crate::contents::policies::{Isolation, Policies, PolicyDelta, verdict};
use crate::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{
    ContainerPort, Kind, Labels, Namespace, NetworkPolicy, Object, ObjectName, ObjectRef, Phase,
    Pod, PortRange, Snapshot, Update,
};

pub(super) const TCP: Protocol = Protocol::TCP;
pub(super) const UDP: Protocol = Protocol::UDP;

pub(super) fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

pub(super) fn any_of(key: &str, values: &[&str]) -> Requirement {
    Requirement::In(
        key.into(),
        values.iter().map(|value| (*value).into()).collect(),
    )
}

pub(super) fn none_of(key: &str, values: &[&str]) -> Requirement {
    Requirement::NotIn(
        key.into(),
        values.iter().map(|value| (*value).into()).collect(),
    )
}

pub(super) fn selector(requirements: &[Requirement]) -> Selector {
    Selector {
        requirements: requirements.iter().cloned().collect(),
    }
}

pub(super) fn app(name: &str) -> Selector {
    selector(&[any_of("app", &[name])])
}

/// A podSelector alone.
pub(super) fn own(pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: Namespaces::Own,
        pods,
    }
}

pub(super) fn elsewhere(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: Namespaces::Matching(namespaces),
        pods,
    }
}

pub(super) fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block {
        cidr: net(cidr),
        except: except.iter().map(|text| net(text)).collect(),
    }
}

pub(super) fn number(port: u16) -> PolicyPort {
    PolicyPort {
        protocol: TCP,
        port: PortMatch::Range(PortRange {
            first: port,
            last: port,
        }),
    }
}

pub(super) fn named(name: &str) -> PolicyPort {
    PolicyPort {
        protocol: TCP,
        port: PortMatch::Named(name.into()),
    }
}

pub(super) fn rule(peers: &[Peer], ports: &[PolicyPort]) -> Rule {
    Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    }
}

pub(super) fn ingress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    NetworkPolicy {
        pods,
        ingress: Some(rules.to_vec()),
        egress: None,
    }
}

pub(super) fn egress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    NetworkPolicy {
        pods,
        ingress: None,
        egress: Some(rules.to_vec()),
    }
}

pub(super) fn pod(addresses: &[&str], app: &str) -> Pod {
    Pod {
        addresses: addresses.iter().map(|text| addr(text)).collect(),
        node: Some("here".into()),
        phase: Phase::Running,
        ready: true,
        labels: labels(&[("app", app)]),
        created: Some(1),
        ..Pod::default()
    }
}

pub(super) fn container_port(
    container: &str,
    name: &str,
    port: u16,
    protocol: Protocol,
) -> ContainerPort {
    ContainerPort {
        container: container.into(),
        name: Some(name.into()),
        port,
        host_port: None,
        protocol,
    }
}

/// A cluster, its compiler, and the changes since it compiled.
pub(super) struct Cluster {
    pub(super) snapshot: Snapshot,
    pub(super) compiler: PolicyCompiler,
    pub(super) touched: Touched,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.settings.node_name = "here".into();
        Self {
            snapshot,
            compiler: PolicyCompiler::default(),
            touched: Touched::default(),
        }
    }

    pub(super) fn apply(&mut self, update: Update) {
        self.touched.record(&update);
        _ = self.snapshot.state.apply(update);
    }

    pub(super) fn pod(&mut self, name: &str, pod: Pod) -> &mut Self {
        self.apply(Update::Apply(Object::Pod(object(name), pod)));
        self
    }

    pub(super) fn namespace(&mut self, name: &str, pairs: &[(&str, &str)]) -> &mut Self {
        let namespace = Namespace {
            labels: labels(pairs),
        };
        self.apply(Update::Apply(Object::Namespace(
            ObjectName::cluster(name),
            namespace,
        )));
        self
    }

    pub(super) fn policy(&mut self, name: &str, policy: NetworkPolicy) -> &mut Self {
        self.apply(Update::Apply(Object::NetworkPolicy(object(name), policy)));
        self
    }

    pub(super) fn delete(&mut self, kind: Kind, name: &str) -> &mut Self {
        self.apply(Update::Delete(ObjectRef {
            kind,
            name: object(name),
        }));
        self
    }

    /// Compiles the changes, and compares with compiling from nothing.
    pub(super) fn compile(&mut self) -> PolicyDelta {
        let before = self.compiler.policies().clone();
        let delta = self
            .compiler
            .compile(&self.snapshot, &std::mem::take(&mut self.touched));
        let mut whole = PolicyCompiler::default();
        whole.compile(&self.snapshot, &Touched::everything());
        assert_eq!(self.compiler.policies(), whole.policies());
        assert_eq!(delta, PolicyDelta::between(&before, whole.policies()));
        assert_as_few_as_can_be(whole.policies());
        assert_same_allocations(&before, self.compiler.policies(), &delta);
        delta
    }

    pub(super) fn policies(&mut self) -> &Policies {
        self.compile();
        self.compiler.policies()
    }

    /// Returns true if both ends allow TCP to this port.
    pub(super) fn allows(&mut self, from: &str, to: &str, port: u16) -> bool {
        verdict(self.policies(), addr(from), addr(to), TCP, port).allows()
    }

    pub(super) fn classes(&mut self) -> Vec<String> {
        self.policies()
            .classes
            .keys()
            .map(IpNet::to_string)
            .collect()
    }
}

/// `namespace/name`. The default namespace is `shop`.
pub(super) fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    ObjectName::new(namespace, name)
}

/// No prefix has the class of the longest prefix around it.
pub(super) fn assert_as_few_as_can_be(policies: &Policies) {
    for (prefix, class) in &policies.classes {
        let mut others = policies.clone();
        others
            .classes
            .retain(|other, _| other != prefix && other.prefix_len() <= prefix.prefix_len());
        let around = others.class_of(prefix.addr()).cloned().unwrap_or_default();
        assert_ne!(&around, class, "{prefix} says nothing new");
    }
}

/// Elements that have not changed keep their allocations.
pub(super) fn assert_same_allocations(before: &Policies, after: &Policies, delta: &PolicyDelta) {
    for (prefix, class) in before
        .classes
        .iter()
        .filter(|(prefix, _)| !delta.classes.contains(prefix))
    {
        assert!(Arc::ptr_eq(class, &after.classes[prefix]), "{prefix}");
    }
    for (name, pod) in before
        .pods
        .iter()
        .filter(|(name, _)| !delta.pods.contains(name))
    {
        for (a, b) in [
            (&pod.ingress, &after.pods[name].ingress),
            (&pod.egress, &after.pods[name].egress),
        ] {
            let same = match (a, b) {
                (Isolation::Rules(a), Isolation::Rules(b)) => Arc::ptr_eq(a, b),
                _ => a == b,
            };
            assert!(same, "{name}");
        }
    }
}
