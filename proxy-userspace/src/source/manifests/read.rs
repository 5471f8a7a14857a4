//! The files of a directory and the objects in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::k8s::{self, Convert};
use crate::model::{Invalid, Kind, ObjectName, ObjectRef, Update};

/// An object of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// A Service, which may still need cluster IPs and nodePorts.
    Service(Box<Service>),
    /// Any other object, converted to an update.
    Other(Box<Update>),
}

/// The files of a directory, each with its last readable content.
pub struct Directory {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

/// One file. While its text is not valid YAML, its last objects stay.
#[derive(Default)]
struct File {
    text: String,
    modified: Option<SystemTime>,
    objects: Vec<(ObjectRef, Result<Manifest, Invalid>)>,
    broken: Option<Invalid>,
}

impl Directory {
    /// Returns a directory that has not been read yet.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
        }
    }

    /// Reads the files that have changed.
    ///
    /// # Errors
    /// If the directory cannot be listed. The objects read before stay.
    pub fn read(&mut self) -> Result<()> {
        let mut paths = BTreeSet::new();
        list(&self.dir, &mut paths)
            .with_context(|| format!("list directory {}", self.dir.display()))?;
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let modified = fs::metadata(&path).and_then(|m| m.modified()).ok();
                    self.take(path, text, modified);
                }
                Err(error) => {
                    self.files.entry(path.clone()).or_default().broken =
                        Some(unreadable(&path, "", error.to_string()))
                }
            }
        }
        Ok(())
    }

    /// Sets the text of the file at `path`. Services without a creation time get the file's
    /// modification time.
    pub fn take(&mut self, path: PathBuf, text: String, modified: Option<SystemTime>) {
        let file = self.files.entry(path.clone()).or_default();
        if file.text == text && file.modified == modified && file.broken.is_none() {
            return;
        }
        match serde_saphyr::from_multiple::<Value>(&text) {
            Ok(documents) => {
                let objects = documents
                    .into_iter()
                    .flat_map(items)
                    .filter_map(|document| object(document, modified))
                    .collect();
                *file = File {
                    text,
                    modified,
                    objects,
                    broken: None,
                };
            }
            Err(error) => {
                let place = error
                    .location()
                    .map(|l| format!("line {} column {}", l.line(), l.column()));
                let why = error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                file.broken = Some(unreadable(&path, &place.unwrap_or_default(), why));
            }
        }
    }

    /// Returns the readable objects in the order of files; of two with one name, the first.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        let mut known = BTreeSet::new();
        let all = self.files.values().flat_map(|file| &file.objects);
        all.filter(move |(object, _)| known.insert(object))
            .filter_map(|(_, manifest)| manifest.as_ref().ok())
    }

    /// Returns the errors of unreadable files and objects, and of objects that are written twice.
    pub fn problems(&self) -> Vec<Invalid> {
        let mut problems: Vec<_> = self
            .files
            .values()
            .filter_map(|file| file.broken.clone())
            .collect();
        let mut first: BTreeMap<&ObjectRef, &Path> = BTreeMap::new();
        for (path, file) in &self.files {
            for (object, manifest) in &file.objects {
                match first.get(object) {
                    None => _ = first.insert(object, path),
                    Some(other) => {
                        let why = format!(
                            "{object} is in {} already; that one counts",
                            other.display()
                        );
                        problems.push(unreadable(path, &object.to_string(), why));
                        continue;
                    }
                }
                problems.extend(manifest.as_ref().err().cloned());
            }
        }
        problems
    }
}

/// Lists the YAML and JSON files, in subdirectories too, without hidden ones (of editors and
/// volumes).
fn list(dir: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read directory {}", dir.display()))? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
        {
            continue;
        }
        if path.is_dir() {
            list(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            found.insert(path);
        }
    }
    Ok(())
}

fn unreadable(path: &Path, place: &str, why: String) -> Invalid {
    let object = ObjectRef {
        kind: Kind::Manifest,
        name: ObjectName::cluster(&path.display().to_string()),
    };
    Invalid {
        object,
        field: if place.is_empty() {
            "the file".to_owned()
        } else {
            place.to_owned()
        },
        why,
    }
}

/// Returns the items of a List, or the document itself.
fn items(mut document: Value) -> Vec<Value> {
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items))
            if document["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("List")) =>
        {
            items
        }
        _ => vec![document],
    }
}

/// Returns an object of a known kind, or the reason why it is unreadable. Returns `None` for empty
/// documents and other kinds.
fn object(
    mut document: Value,
    modified: Option<SystemTime>,
) -> Option<(ObjectRef, Result<Manifest, Invalid>)> {
    let kind = document["kind"].as_str().and_then(Kind::named)?;
    if kind.is_namespaced()
        && document["metadata"]["namespace"]
            .as_str()
            .is_none_or(str::is_empty)
    {
        document
            .get_mut("metadata")?
            .as_object_mut()?
            .insert("namespace".to_owned(), "default".into());
    }
    let metadata = &document["metadata"];
    let [namespace, name] =
        ["namespace", "name"].map(|key| metadata[key].as_str().unwrap_or_default());
    let reference = ObjectRef {
        kind,
        name: ObjectName::new(namespace, name),
    };
    let manifest = if name.is_empty() {
        Err(Invalid {
            object: reference.clone(),
            field: "metadata.name".to_owned(),
            why: "an object needs a name".to_owned(),
        })
    } else {
        typed(kind, document, modified).map_err(|(field, why)| Invalid {
            object: reference.clone(),
            field,
            why,
        })
    };
    Some((reference, manifest))
}

fn typed(
    kind: Kind,
    document: Value,
    modified: Option<SystemTime>,
) -> Result<Manifest, (String, String)> {
    Ok(match kind {
        Kind::Service => Manifest::Service(Box::new(stamped(parse(document)?, modified))),
        Kind::EndpointSlice => other(parse::<EndpointSlice>(with_port_names(document))?),
        Kind::Pod => other(parse::<Pod>(document)?),
        Kind::Node => other(parse::<Node>(document)?),
        Kind::Namespace => other(parse::<Namespace>(document)?),
        Kind::ServiceCIDR => other(parse::<ServiceCIDR>(document)?),
        Kind::Deployment => other(parse::<Deployment>(document)?),
        Kind::ReplicaSet => other(parse::<ReplicaSet>(document)?),
        Kind::StatefulSet => other(parse::<StatefulSet>(document)?),
        Kind::DaemonSet => other(parse::<DaemonSet>(document)?),
        Kind::NetworkPolicy | Kind::Manifest => {
            Manifest::Other(Box::new(k8s::seen_policy(&document)))
        }
    })
}

/// Stamps a Service with its file's time, as the API server does on creation: of two Services the
/// later one has the later file.
fn stamped(mut service: Service, modified: Option<SystemTime>) -> Service {
    let stamp = modified.and_then(|time| Timestamp::try_from(time).ok());
    service.metadata.creation_timestamp = service.metadata.creation_timestamp.or(stamp.map(Time));
    service
}

fn other<K: Convert>(object: K) -> Manifest {
    Manifest::Other(Box::new(k8s::seen(&object)))
}

fn parse<T: DeserializeOwned>(document: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(document)
        .map_err(|e| (e.path().to_string(), e.inner().to_string()))
}

/// Gives slice ports without a name the empty name, as the API server does.
fn with_port_names(mut slice: Value) -> Value {
    for port in slice
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        let name = port.entry("name").or_insert_with(|| "".into());
        if name.is_null() {
            *name = "".into();
        }
    }
    slice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> Directory {
        let mut directory = Directory::new("unused".into());
        files
            .iter()
            .for_each(|(path, text)| directory.take(path.into(), (*text).to_owned(), None));
        directory
    }

    fn said(directory: &Directory) -> Vec<String> {
        directory
            .problems()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn documents_lists_and_json_are_read_and_strangers_ignored() {
        let yaml = "---\nkind: Pod\nmetadata: {name: a}\n---\n# nothing\n---\nkind: ConfigMap\nmetadata: {name: c}\n---\n\
            kind: List\nitems:\n- kind: Pod\n  metadata: {name: b, namespace: shop}\n";
        let json = r#"{"kind": "Node", "metadata": {"name": "n"}}"#;
        let directory = directory(&[("a.yaml", yaml), ("b.json", json)]);
        assert_eq!(
            (directory.manifests().count(), said(&directory).len()),
            (3, 0)
        );
        let objects = directory
            .files
            .values()
            .flat_map(|f| f.objects.iter().map(|(o, _)| o.to_string()));
        assert_eq!(
            objects.collect::<Vec<_>>(),
            ["Pod default/a", "Pod shop/b", "Node n"]
        );
    }

    #[test]
    fn a_file_that_is_no_yaml_keeps_its_last_good_objects() {
        let mut directory = directory(&[("a.yaml", "kind: Pod\nmetadata: {name: a}\n")]);
        directory.take(
            "a.yaml".into(),
            "kind: Pod\nmetadata: {name: [\n".to_owned(),
            None,
        );
        assert_eq!(directory.manifests().count(), 1);
        assert!(
            said(&directory)[0].starts_with("Manifest a.yaml: line "),
            "{:?}",
            said(&directory)
        );
        directory.take(
            "a.yaml".into(),
            "kind: Pod\nmetadata: {name: a}\n".to_owned(),
            None,
        );
        assert!(said(&directory).is_empty());
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named_and_costs_its_object_only() {
        let yaml = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: http}]}\n---\nkind: Pod\nmetadata: {name: a}\n";
        let directory = directory(&[("a.yaml", yaml)]);
        assert_eq!(directory.manifests().count(), 1);
        assert!(
            said(&directory)[0]
                .starts_with("Service default/web: spec.ports[0].port: invalid type"),
            "{:?}",
            said(&directory)
        );
    }

    #[test]
    fn an_object_written_twice_names_both_files() {
        let directory = directory(&[
            ("a.yaml", "kind: Pod\nmetadata: {name: a}\n"),
            ("b.yaml", "kind: Pod\nmetadata: {name: a}\n"),
        ]);
        assert_eq!(directory.manifests().count(), 1);
        assert_eq!(
            said(&directory),
            ["Manifest b.yaml: Pod default/a: Pod default/a is in a.yaml already; that one counts"]
        );
    }
}
