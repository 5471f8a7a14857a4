//! Owns the name of an object: its kind, namespace and name.

use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

/// Names one object, of any kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Group and version, such as `v1` or `discovery.k8s.io/v1`.
    pub api_version: String,
    /// Such as `Service`.
    pub kind: String,
    /// None for what belongs to no namespace, and for the namespace `default`.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

impl ObjectRef {
    /// An object in a namespace.
    pub fn namespaced(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
        Self {
            api_version,
            kind,
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
        }
    }

    /// An object of the whole cluster.
    pub fn cluster(api_version: &str, kind: &str, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: name.to_owned(),
        }
    }

    /// The name of an object at hand.
    pub fn of(object: &Value) -> Result<Self> {
        let field = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let need = |pointer: &str| {
            field(pointer).with_context(|| format!("an object has no {pointer}: {object}"))
        };
        Ok(Self {
            api_version: need("/apiVersion")?,
            kind: need("/kind")?,
            namespace: field("/metadata/namespace"),
            name: need("/metadata/name")?,
        })
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
