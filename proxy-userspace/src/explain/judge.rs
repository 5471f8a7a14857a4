//! The judgement of one end of a connection: the policies that select it, and for each of their
//! rules the match or the mismatches (P1-P20).

use std::net::IpAddr;

use serde::Serialize;

use super::party::{Party, Port, Who};
use super::{ports, words};
use crate::model::policy::{Namespaces, Peer, Rule, Selector};
use crate::model::{NetworkPolicy, ObjectName, Pod, State};

/// The end that judges (P1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The source, by its egress rules.
    Egress,
    /// The destination, by its ingress rules.
    Ingress,
}

impl Side {
    /// Returns the direction as `policyTypes` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Egress => "Egress",
            Self::Ingress => "Ingress",
        }
    }

    fn rules(self, policy: &NetworkPolicy) -> Option<&[Rule]> {
        match self {
            Self::Egress => policy.egress.as_deref(),
            Self::Ingress => policy.ingress.as_deref(),
        }
    }
}

/// The judgement of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// The end that judges.
    pub side: Side,
    /// The end's name.
    pub of: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The policies that select it for this direction, in the order of their names.
    pub policies: Vec<PolicyView>,
}

/// The outcome of one end's policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The end is no pod of the pod network, so no policy applies (P1, P17, P20). Holds what it is.
    NoPod(String),
    /// No policy selects it for this direction (P3).
    NotIsolated,
    /// The other end is its own node, which may always reach it (P18).
    OwnNode,
    /// The pod is both ends (P19).
    Itself,
    /// This rule of this policy allows it; others may as well (P4).
    Allowed {
        /// The policy.
        policy: String,
        /// Its rule, counted from 1.
        rule: usize,
    },
    /// It is isolated, and no rule allows the connection (P4).
    Denied,
}

/// A policy that selects an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// Namespace and name.
    pub name: String,
    /// Its rules of this direction.
    pub rules: Vec<RuleView>,
}

/// A rule of a policy that selects an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Number of the rule, from 1, among the valid ones of its direction.
    pub number: usize,
    /// True if it allows the connection.
    pub allows: bool,
    /// The matching entries, or each mismatch, in words.
    pub because: Vec<String>,
}

impl Judgement {
    /// Returns true if this end allows the connection.
    pub fn allows(&self) -> bool {
        self.outcome != Outcome::Denied
    }
}

/// Judges a new connection at one end. The addresses are the pods' own, after translation.
pub fn judge(
    state: &State,
    side: Side,
    from: &Party<'_>,
    to: &Party<'_>,
    port: &Port,
) -> Judgement {
    let (own, other) = match side {
        Side::Egress => (from, to),
        Side::Ingress => (to, from),
    };
    let judgement = |outcome, policies| Judgement {
        side,
        of: own.to_string(),
        outcome,
        policies,
    };
    let Some((name, pod)) = own.pod() else {
        return judgement(Outcome::NoPod(own.kind()), Vec::new());
    };
    let asked = Asked {
        state,
        other,
        to,
        port,
    };
    let policies: Vec<_> = selecting(state, side, name, pod)
        .map(|(name, rules)| asked.policy(name, rules))
        .collect();
    let outcome = if policies.is_empty() {
        Outcome::NotIsolated
    } else if other.pod().is_some_and(|(peer, _)| peer == name) {
        Outcome::Itself
    } else if side == Side::Ingress && pod.node.is_some() && other.node() == pod.node.as_deref() {
        Outcome::OwnNode
    } else {
        allowing(&policies).unwrap_or(Outcome::Denied)
    };
    judgement(outcome, policies)
}

fn allowing(policies: &[PolicyView]) -> Option<Outcome> {
    let rules = policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    let (policy, rule) = rules.into_iter().find(|(_, rule)| rule.allows)?;
    Some(Outcome::Allowed {
        policy: policy.name.clone(),
        rule: rule.number,
    })
}

/// Returns the policies that select a pod for a direction, with their rules (P3).
fn selecting<'a>(
    state: &'a State,
    side: Side,
    name: &'a ObjectName,
    pod: &'a Pod,
) -> impl Iterator<Item = (&'a ObjectName, &'a [Rule])> {
    let own = state
        .policies
        .iter()
        .filter(|(policy, _)| policy.namespace == name.namespace);
    own.filter(|(_, policy)| policy.pods.selects(&pod.labels))
        .filter_map(move |(name, policy)| Some((name, side.rules(policy)?)))
}

/// A connection to compare with rules.
struct Asked<'a> {
    state: &'a State,
    /// The end on the other side, which these policies do not select.
    other: &'a Party<'a>,
    to: &'a Party<'a>,
    port: &'a Port,
}

impl Asked<'_> {
    fn policy(&self, name: &ObjectName, rules: &[Rule]) -> PolicyView {
        let rules = rules
            .iter()
            .enumerate()
            .map(|(i, rule)| self.rule(i + 1, name, rule))
            .collect();
        PolicyView {
            name: name.to_string(),
            rules,
        }
    }

    /// Compares with a rule: it needs one of its peers and one of its ports (P6).
    fn rule(&self, number: usize, policy: &ObjectName, rule: &Rule) -> RuleView {
        let everybody = "everybody".to_owned();
        let peers = any(&rule.peers, everybody, |peer| {
            self.peer(&policy.namespace, peer)
        });
        let ports = any(&rule.ports, "every port".to_owned(), |port| {
            ports::matches(port, self.to, self.port)
        });
        let allows = peers.is_ok() && ports.is_ok();
        let because = match (peers, ports) {
            (Ok(peer), Ok(port)) => vec![format!("{peer}, {port}")],
            (peers, ports) => [peers.err(), ports.err()]
                .into_iter()
                .flatten()
                .flatten()
                .collect(),
        };
        RuleView {
            number,
            allows,
            because,
        }
    }

    /// Compares with a peer (P8). Returns the match or the mismatch, in words.
    fn peer(&self, own: &str, peer: &Peer) -> Result<String, String> {
        match peer {
            Peer::Block { cidr, except } => {
                let Some(addr) = self.other.addr else {
                    return Err(format!("allows {cidr}, but {} has no address", self.other));
                };
                self.block(addr, cidr, except)
            }
            Peer::Pods { namespaces, pods } => self.pods(own, namespaces, pods),
        }
    }

    /// Compares with an ipBlock (P11, P12).
    fn block(
        &self,
        addr: IpAddr,
        cidr: &ipnet::IpNet,
        except: &std::collections::BTreeSet<ipnet::IpNet>,
    ) -> Result<String, String> {
        if !cidr.contains(&addr) {
            return Err(format!("allows {cidr}, but {addr} is not within"));
        }
        match except.iter().find(|except| except.contains(&addr)) {
            Some(except) => Err(format!(
                "allows {cidr} except {except}, and {addr} is within that"
            )),
            None => Ok(format!("{addr} is within {cidr}")),
        }
    }

    /// Compares with selectors of namespaces and pods (P8-P10, P17).
    fn pods(&self, own: &str, namespaces: &Namespaces, pods: &Selector) -> Result<String, String> {
        let wanted = format!("wants {}", words::pods(own, namespaces, pods));
        let (name, pod) = match self.other.who {
            Who::Pod(name, pod) => (name, pod),
            Who::HostPod(..) | Who::Node(_) | Who::Ended(_) | Who::Outside => {
                return Err(format!("{wanted}, but {}", self.other.kind()));
            }
        };
        match namespaces {
            Namespaces::Own if *name.namespace != *own => {
                return Err(format!(
                    "{wanted}, but {name} is of namespace {}",
                    name.namespace
                ));
            }
            Namespaces::Own => {}
            Namespaces::Matching(selector) => {
                let namespace = ObjectName::cluster(&name.namespace);
                let Some(found) = self.state.namespaces.get(&namespace) else {
                    return Err(format!(
                        "{wanted}, but nothing is known of namespace {namespace}"
                    ));
                };
                if let Some(differs) = words::differs(selector, &found.labels) {
                    return Err(format!("{wanted}, but namespace {namespace} has {differs}"));
                }
            }
        }
        match words::differs(pods, &pod.labels) {
            Some(differs) => Err(format!("{wanted}, but {name} has {differs}")),
            None => Ok(format!("{name} is {}", words::pods(own, namespaces, pods))),
        }
    }
}

/// Returns the first match of a list, or all mismatches; `all` if the list is empty.
fn any<T>(
    list: &[T],
    all: String,
    matches: impl Fn(&T) -> Result<String, String>,
) -> Result<String, Vec<String>> {
    if list.is_empty() {
        return Ok(all);
    }
    let mut against = Vec::new();
    for entry in list {
        match matches(entry) {
            Ok(why) => return Ok(why),
            Err(why) => against.push(why),
        }
    }
    against.dedup();
    Err(against)
}
