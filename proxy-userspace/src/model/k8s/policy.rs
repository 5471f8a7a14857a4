//! NetworkPolicies of the API to ours. What cannot be read matches nothing and the rest stays in
//! force: a mistake never opens anything.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Convert, Field, port, prefix, protocol};
use crate::model::policy::{Namespaces, Peer, PolicyPort, PortMatch, Requirement, Rule, Selector};
use crate::model::{Kind, NetworkPolicy, Object, ObjectName, PortRange};

impl Convert for networking::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, name: ObjectName) -> Result<Option<Object>, Field> {
        Ok(Some(Object::NetworkPolicy(name, read(&written(self)).0)))
    }

    fn flaws(&self) -> Vec<Field> {
        read(&written(self)).1
    }
}

/// A spec as somebody may have written it.
fn written(policy: &networking::NetworkPolicy) -> Value {
    // What cannot even be shown is closed like what cannot be read.
    serde_json::to_value(&policy.spec).unwrap_or(Value::Bool(false))
}

/// Reads a spec that may be malformed, and returns its flaws too.
pub(super) fn read(spec: &Value) -> (NetworkPolicy, Vec<Field>) {
    let mut reader = Reader::default();
    let policy = reader.policy(spec);
    (policy, reader.flaws)
}

/// Reads a policy and takes down what is wrong with it.
#[derive(Default)]
struct Reader {
    flaws: Vec<Field>,
}

/// True if a policy names a direction (P2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Yes,
    No,
    /// Something could not be read that may have named it: it is closed.
    Perhaps,
}

impl Reader {
    fn policy(&mut self, spec: &Value) -> NetworkPolicy {
        let known = spec.is_null()
            || self
                .keep(fields(
                    spec,
                    "spec",
                    &["podSelector", "policyTypes", "ingress", "egress"],
                ))
                .is_some();
        let [ingress, egress] = self.directions(spec, known);
        let before = self.flaws.len();
        let pods = self.selector(&spec["podSelector"], "spec.podSelector");
        self.follows(
            before,
            "all pods that the rest of the selector matches are isolated, and no rule of this policy allows anything",
        );
        let told = self.flaws.len() == before && (known || !spec["podSelector"].is_null());
        let mut rules = |named, of: &str, peers| match named {
            Named::No => None,
            Named::Yes => Some(self.rules(&spec[of], &format!("spec.{of}"), peers))
                .map(|rules| if told { rules } else { Vec::new() }),
            Named::Perhaps => Some(Vec::new()),
        };
        NetworkPolicy {
            ingress: rules(ingress, "ingress", "from"),
            egress: rules(egress, "egress", "to"),
            pods,
        }
    }

    /// P2: ingress and egress, as `policyTypes` or the rules name them.
    fn directions(&mut self, spec: &Value, known: bool) -> [Named; 2] {
        let unsure = if known { Named::No } else { Named::Perhaps };
        let Some(types) = self.list(&spec["policyTypes"], "spec.policyTypes") else {
            return [Named::Perhaps; 2];
        };
        if types.is_empty() {
            let egress = match &spec["egress"] {
                Value::Array(rules) if rules.is_empty() => unsure,
                Value::Null => unsure,
                Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_) => Named::Yes,
            };
            return [Named::Yes, egress];
        }
        let mut unsure = Named::No;
        for (i, unknown) in types
            .iter()
            .enumerate()
            .filter(|(_, t)| !matches!(t.as_str(), Some("Ingress" | "Egress")))
        {
            unsure = Named::Perhaps;
            let why = format!(
                "{unknown} is neither Ingress nor Egress; a direction that is not named otherwise is closed"
            );
            self.flaws
                .push(Field::new(format!("spec.policyTypes[{i}]"), why));
        }
        ["Ingress", "Egress"].map(|direction| {
            if types.iter().any(|t| t == direction) {
                Named::Yes
            } else {
                unsure
            }
        })
    }

    fn rules(&mut self, value: &Value, path: &str, peers: &str) -> Vec<Rule> {
        let Some(rules) = self.list(value, path) else {
            return Vec::new();
        };
        let rules = rules.iter().enumerate();
        rules
            .filter_map(|(i, value)| self.rule(value, &format!("{path}[{i}]"), peers))
            .collect()
    }

    /// P6. `None` if it allows nothing because it, all its peers or all its ports cannot be read.
    fn rule(&mut self, value: &Value, path: &str, of_peers: &str) -> Option<Rule> {
        let before = self.flaws.len();
        if self
            .keep(fields(value, path, &[of_peers, "ports"]))
            .is_none()
        {
            self.follows(before, "this rule allows nothing");
            return None;
        }
        let peers = self.entries(&value[of_peers], &format!("{path}.{of_peers}"), Self::peer);
        let ports = self.entries(
            &value["ports"],
            &format!("{path}.ports"),
            |reader, value, path| reader.keep(policy_port(value, path)),
        );
        Some(Rule {
            peers: peers?,
            ports: ports?,
        })
    }

    /// The entries of a list that can be read; `None` if there are some, but none that can.
    fn entries<T>(
        &mut self,
        value: &Value,
        path: &str,
        read: impl Fn(&mut Self, &Value, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let before = self.flaws.len();
        let Some(entries) = self.list(value, path) else {
            self.follows(before, "this rule allows nothing");
            return None;
        };
        let mut good = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let before = self.flaws.len();
            match read(self, entry, &format!("{path}[{i}]")) {
                Some(entry) => good.push(entry),
                None => self.follows(before, "this entry matches nothing"),
            }
        }
        (entries.is_empty() || !good.is_empty()).then_some(good)
    }

    /// P8.
    fn peer(&mut self, value: &Value, path: &str) -> Option<Peer> {
        self.keep(fields(
            value,
            path,
            &["podSelector", "namespaceSelector", "ipBlock"],
        ))?;
        let [pods, namespaces, block] =
            ["podSelector", "namespaceSelector", "ipBlock"].map(|key| &value[key]);
        match (pods.is_null() && namespaces.is_null(), block.is_null()) {
            (true, true) => self.bad(
                path,
                "a peer needs a podSelector, a namespaceSelector or an ipBlock",
            ),
            (false, false) => self.bad(path, "an ipBlock cannot be combined with selectors"),
            (true, false) => self.block(block, &format!("{path}.ipBlock")),
            (false, true) => self.pods(pods, namespaces, path),
        }
    }

    fn pods(&mut self, pods: &Value, namespaces: &Value, path: &str) -> Option<Peer> {
        let before = self.flaws.len();
        let pods = self.selector(pods, &format!("{path}.podSelector"));
        let namespaces = match namespaces {
            Value::Null => Namespaces::Own,
            given @ (Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_)) => {
                Namespaces::Matching(self.selector(given, &format!("{path}.namespaceSelector")))
            }
        };
        (self.flaws.len() == before).then_some(Peer::Pods { namespaces, pods })
    }

    /// P11, P12: an except that cannot be read costs its block, for without it the block would be
    /// wider.
    fn block(&mut self, value: &Value, path: &str) -> Option<Peer> {
        self.keep(fields(value, path, &["cidr", "except"]))?;
        let block = self.keep(typed::<networking::IPBlock>(value, path))?;
        let cidr = self.keep(prefix(&block.cidr, &format!("{path}.cidr")))?;
        let mut except = BTreeSet::new();
        for (i, text) in block.except.iter().flatten().enumerate() {
            let path = format!("{path}.except[{i}]");
            let taken = self.keep(prefix(text, &path))?;
            if overlap(&cidr, &taken) {
                except.insert(taken);
            } else {
                self.flaws.push(Field::new(
                    path,
                    format!("`{text}` is not within {cidr}; it takes nothing out"),
                ));
            }
        }
        Some(Peer::Block { cidr, except })
    }

    /// P9. Requirements that cannot be read are left out, and taken down.
    fn selector(&mut self, value: &Value, path: &str) -> Selector {
        let mut requirements = BTreeSet::new();
        if value.is_null()
            || self
                .keep(fields(value, path, &["matchLabels", "matchExpressions"]))
                .is_none()
        {
            return Selector { requirements };
        }
        let labels = self.keep(typed::<Option<BTreeMap<String, String>>>(
            &value["matchLabels"],
            &format!("{path}.matchLabels"),
        ));
        let pairs = labels.flatten().into_iter().flatten();
        requirements.extend(pairs.map(|(key, value)| Requirement::In(key, [value].into())));
        let path = format!("{path}.matchExpressions");
        for (i, expression) in self
            .list(&value["matchExpressions"], &path)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            requirements.extend(self.keep(requirement(expression, &format!("{path}[{i}]"))));
        }
        Selector { requirements }
    }

    /// A list; missing is empty, `None` if it is something else.
    fn list<'a>(&mut self, value: &'a Value, path: &str) -> Option<&'a [Value]> {
        match value {
            Value::Null => Some(&[]),
            Value::Array(items) => Some(items),
            other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                self.bad(path, format!("{} where a list is needed", form(other)))
            }
        }
    }

    fn bad<T>(&mut self, path: &str, why: impl Into<String>) -> Option<T> {
        self.keep(Err(Field::new(path, why)))
    }

    fn keep<T>(&mut self, result: Result<T, Field>) -> Option<T> {
        result.map_err(|flaw| self.flaws.push(flaw)).ok()
    }

    /// Says what follows from the flaws found since.
    fn follows(&mut self, since: usize, what: &str) {
        for flaw in &mut self.flaws[since..] {
            flaw.why = format!("{}; {what}", flaw.why);
        }
    }
}

/// P9.
fn requirement(value: &Value, path: &str) -> Result<Requirement, Field> {
    fields(value, path, &["key", "operator", "values"])?;
    let LabelSelectorRequirement {
        key,
        operator,
        values,
    } = typed(value, path)?;
    let values: BTreeSet<_> = values.unwrap_or_default().into_iter().collect();
    if key.is_empty() {
        return Err(Field::new(
            format!("{path}.key"),
            "a requirement needs the key of a label",
        ));
    }
    match (&*operator, values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
        ("In" | "NotIn", true) => Err(Field::new(
            format!("{path}.values"),
            format!("{operator} needs at least one value"),
        )),
        ("Exists" | "DoesNotExist", false) => Err(Field::new(
            format!("{path}.values"),
            format!("{operator} takes no values"),
        )),
        _ => {
            let why = format!("`{operator}` is no operator: In, NotIn, Exists or DoesNotExist");
            Err(Field::new(format!("{path}.operator"), why))
        }
    }
}

/// P13-P16.
fn policy_port(value: &Value, path: &str) -> Result<PolicyPort, Field> {
    fields(value, path, &["protocol", "port", "endPort"])?;
    let written: networking::NetworkPolicyPort = typed(value, path)?;
    let protocol = protocol(written.protocol.as_deref(), format!("{path}.protocol"))?;
    let at = format!("{path}.port");
    let port = match (written.port, written.end_port) {
        (None, None) => PortMatch::All,
        (Some(IntOrString::Int(first)), end) => PortMatch::Range(range(first, end, path)?),
        (Some(IntOrString::String(name)), None)
            if name.contains(|c: char| c.is_ascii_lowercase()) =>
        {
            PortMatch::Named(name.into())
        }
        (Some(IntOrString::String(name)), None) => {
            return Err(Field::new(
                at,
                format!("`{name}` is no name of a port; numbers are written without quotes"),
            ));
        }
        (_, Some(_)) => {
            return Err(Field::new(
                format!("{path}.endPort"),
                "an endPort needs a port that is a number",
            ));
        }
    };
    Ok(PolicyPort { protocol, port })
}

/// P14.
fn range(first: i32, end: Option<i32>, path: &str) -> Result<PortRange, Field> {
    let first = port(first, format!("{path}.port"))?;
    let at = format!("{path}.endPort");
    match end.map(|end| port(end, at.clone())).transpose()? {
        Some(last) if last < first => {
            Err(Field::new(at, format!("{last} is below the port, {first}")))
        }
        last => Ok(PortRange {
            first,
            last: last.unwrap_or(first),
        }),
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// An object with no other fields than these: one that is misspelt would count as missing, and
/// missing fields often mean "all".
fn fields<'a>(
    value: &'a Value,
    path: &str,
    known: &[&str],
) -> Result<&'a Map<String, Value>, Field> {
    let Value::Object(object) = value else {
        return Err(Field::new(
            path,
            format!("{} where fields are needed", form(value)),
        ));
    };
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(Field::new(
            format!("{path}.{unknown}"),
            format!("no such field: {} may stand here", known.join(", ")),
        )),
        None => Ok(object),
    }
}

fn typed<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, Field> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let below = match error.path().to_string() {
            root if root == "." => String::new(),
            list if list.starts_with('[') => list,
            field => format!(".{field}"),
        };
        Field::new(format!("{path}{below}"), error.inner().to_string())
    })
}

fn form(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Object(_) => "fields",
        Value::Array(_) => "a list",
        Value::Bool(_) | Value::Number(_) | Value::String(_) => "a single value",
    }
}

#[cfg(test)]
mod tests;
