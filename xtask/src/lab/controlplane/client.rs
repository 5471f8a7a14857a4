//! A client of the API server: objects as JSON, blocking, from inside a network namespace. It has
//! no list of kinds; it asks the server for their paths.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{Method, Request};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::object_ref::ObjectRef;

/// A user of the API server.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    url: String,
    token: String,
    netns: PathBuf,
    /// The server's resources by API version, as far as they were asked for.
    resources: Mutex<BTreeMap<String, Vec<Resource>>>,
}

/// The API server's refusal.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status, such as 404 or 409.
    pub status: u16,
    /// The server's message.
    pub message: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
}

enum Body<'a> {
    None,
    Json(&'a Value),
    Apply(&'a Value),
    Merge(&'a Value),
}

impl Client {
    /// Returns a client that presents `token` to the server at `url`, with a certificate signed by
    /// the authority in `ca`, from the network namespace of the file `netns`.
    pub fn new(url: &str, ca: &Path, token: &str, netns: &Path) -> Result<Self> {
        let pem = std::fs::read(ca).with_context(|| format!("read {}", ca.display()))?;
        let authority =
            Certificate::from_pem(&pem).with_context(|| format!("parse {}", ca.display()))?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[authority]))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None);
        let agent = config
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        let (url, token, netns) = (url.to_owned(), token.to_owned(), netns.to_owned());
        Ok(Self {
            agent,
            url,
            token,
            netns,
            resources: Mutex::default(),
        })
    }

    /// Creates the object, or changes it to `object` (server-side apply); an unknown field is an
    /// error. Returns the stored object.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let target = ObjectRef::of(object)?;
        let path = format!(
            "{}?fieldManager=lab&force=true&fieldValidation=Strict",
            self.path(&target)?
        );
        self.send(Method::PATCH, &path, Body::Apply(object))
            .with_context(|| format!("apply {target}"))
    }

    /// Applies every document of a YAML text, in order.
    pub fn apply_yaml(&self, yaml: &str) -> Result<Vec<Value>> {
        let documents = serde_norway::Deserializer::from_str(yaml)
            .map(|document| Value::deserialize(document).context("parse YAML"));
        documents
            .filter(|document| !matches!(document, Ok(Value::Null)))
            .map(|document| self.apply(&document?))
            .collect()
    }

    /// The object, or None if there is none.
    pub fn get(&self, target: &ObjectRef) -> Result<Option<Value>> {
        match self.send(Method::GET, &self.path(target)?, Body::None) {
            Err(error) if is_not_found(&error) => Ok(None),
            other => other.map(Some).with_context(|| format!("get {target}")),
        }
    }

    /// The objects of a kind, in one namespace or all, that have the labels of `selector`
    /// (`a=b,c=d`, or empty for all).
    pub fn list(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
        selector: &str,
    ) -> Result<Vec<Value>> {
        let resource = self.resource(api_version, kind)?;
        let place = namespace
            .map(|namespace| format!("/namespaces/{namespace}"))
            .unwrap_or_default();
        let selector = selector.replace('=', "%3D").replace(',', "%2C");
        let path = format!(
            "{}{place}/{}?labelSelector={selector}",
            root(api_version),
            resource.name
        );
        let mut list = self
            .send(Method::GET, &path, Body::None)
            .with_context(|| format!("list {kind}"))?;
        let mut items = list["items"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        // The items of a list have no version and kind.
        for item in &mut items {
            item["apiVersion"] = json!(api_version);
            item["kind"] = json!(kind);
        }
        Ok(items)
    }

    /// Merges `change` into the object (RFC 7386: null removes a field, a list is replaced).
    pub fn patch(&self, target: &ObjectRef, change: &Value) -> Result<Value> {
        self.send(Method::PATCH, &self.path(target)?, Body::Merge(change))
            .with_context(|| format!("patch {target}"))
    }

    /// Merges `status` into the object's status.
    pub fn patch_status(&self, target: &ObjectRef, status: &Value) -> Result<Value> {
        let path = format!("{}/status", self.path(target)?);
        let change = json!({ "status": status });
        self.send(Method::PATCH, &path, Body::Merge(&change))
            .with_context(|| format!("patch the status of {target}"))
    }

    /// Watches one object from now on: `heed` gets each event, an object with `type` and `object`,
    /// as soon as it can be read, until it breaks.
    ///
    /// # Errors
    /// If the server ends the watch first.
    pub fn watch(
        &self,
        target: &ObjectRef,
        mut heed: impl FnMut(&Value) -> ControlFlow<()> + Send,
    ) -> Result<()> {
        let path = self.path(target)?;
        let (list, name) = path.rsplit_once('/').context("split a path")?;
        let url = format!(
            "{}{list}?watch=true&fieldSelector=metadata.name%3D{name}",
            self.url
        );
        let talk = || {
            enter(&self.netns)?;
            let request =
                Request::get(url).header("Authorization", format!("Bearer {}", self.token));
            let request = self
                .agent
                .configure_request(request.body(()).context("write a request")?);
            let mut answer = self
                .agent
                .run(request.timeout_global(None).build())
                .context("start a watch")?;
            for line in BufReader::new(answer.body_mut().as_reader()).lines() {
                let event = serde_json::from_str(&line.context("read a watch")?)
                    .context("parse an event")?;
                if heed(&event).is_break() {
                    return Ok(());
                }
            }
            bail!("the watch of {target} has ended")
        };
        thread::scope(|scope| scope.spawn(talk).join()).map_err(|_| anyhow!("a watch panicked"))?
    }

    /// Posts to a subresource, such as `token` or `binding`.
    pub fn post(&self, target: &ObjectRef, subresource: &str, object: &Value) -> Result<Value> {
        let path = format!("{}/{subresource}", self.path(target)?);
        self.send(Method::POST, &path, Body::Json(object))
            .with_context(|| format!("post {subresource} of {target}"))
    }

    /// Removes the object at once; one that is not there is fine.
    pub fn delete(&self, target: &ObjectRef) -> Result<()> {
        self.delete_after(target, Duration::ZERO)
    }

    /// Asks for the object's end; a Pod that runs is then terminating, until the kubelet finishes
    /// it.
    pub fn delete_after(&self, target: &ObjectRef, grace: Duration) -> Result<()> {
        let path = format!(
            "{}?gracePeriodSeconds={}&propagationPolicy=Background",
            self.path(target)?,
            grace.as_secs()
        );
        match self.send(Method::DELETE, &path, Body::None) {
            Err(error) if !is_not_found(&error) => {
                Err(error).with_context(|| format!("delete {target}"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the server's answer to GET of any path, as text.
    pub fn raw(&self, path: &str) -> Result<String> {
        let (status, text) = self.exchange(Method::GET, path, &Body::None)?;
        if status == 200 {
            Ok(text)
        } else {
            Err(Refused {
                status,
                message: text,
            }
            .into())
        }
    }

    fn path(&self, target: &ObjectRef) -> Result<String> {
        let resource = self.resource(&target.api_version, &target.kind)?;
        let namespace = target.namespace.as_deref().unwrap_or("default");
        let place = if resource.namespaced {
            format!("/namespaces/{namespace}")
        } else {
            String::new()
        };
        Ok(format!(
            "{}{place}/{}/{}",
            root(&target.api_version),
            resource.name,
            target.name
        ))
    }

    fn resource(&self, api_version: &str, kind: &str) -> Result<Resource> {
        let mut known = self
            .resources
            .lock()
            .expect("no holder of this lock panics");
        if !known.contains_key(api_version) {
            let served = self
                .send(Method::GET, &root(api_version), Body::None)
                .with_context(|| format!("ask for the kinds of {api_version}"))?;
            known.insert(
                api_version.to_owned(),
                Vec::deserialize(&served["resources"]).context("read the kinds that are served")?,
            );
        }
        // A subresource such as pods/status has the kind of its object.
        let mut of_kind = known[api_version]
            .iter()
            .filter(|resource| resource.kind == kind && !resource.name.contains('/'));
        of_kind
            .next()
            .cloned()
            .with_context(|| format!("the API server has no kind {kind} in {api_version}"))
    }

    fn send(&self, method: Method, path: &str, body: Body) -> Result<Value> {
        let (status, text) = self.exchange(method, path, &body)?;
        let answer: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let message = answer["message"]
            .as_str()
            .map_or_else(|| answer.to_string(), str::to_owned);
        Err(Refused { status, message }.into())
    }

    /// One request and its answer, on a thread of its own that is inside the namespace.
    fn exchange(&self, method: Method, path: &str, body: &Body) -> Result<(u16, String)> {
        let talk = || {
            enter(&self.netns)?;
            let request = Request::builder()
                .method(method)
                .uri(format!("{}{path}", self.url));
            let request = request
                .header("Authorization", format!("Bearer {}", self.token))
                .header("Accept", "application/json, */*");
            let answer = match body.encoded() {
                None => self.agent.run(request.body(()).context("write a request")?),
                Some((kind, text)) => self.agent.run(
                    request
                        .header("Content-Type", kind)
                        .body(text)
                        .context("write a request")?,
                ),
            };
            let mut answer = answer.with_context(|| format!("talk to {}", self.url))?;
            let text = answer
                .body_mut()
                .with_config()
                .limit(1 << 30)
                .read_to_string()
                .context("read an answer of the API server")?;
            Ok((answer.status().as_u16(), text))
        };
        thread::scope(|scope| scope.spawn(talk).join())
            .map_err(|_| anyhow!("a request to the API server panicked"))?
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "the API server answered {}: {}",
            self.status, self.message
        )
    }
}

impl std::error::Error for Refused {}

impl Body<'_> {
    fn encoded(&self) -> Option<(&'static str, String)> {
        match self {
            Body::None => None,
            Body::Json(object) => Some(("application/json", object.to_string())),
            Body::Apply(object) => Some(("application/apply-patch+yaml", object.to_string())),
            Body::Merge(change) => Some(("application/merge-patch+json", change.to_string())),
        }
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.status == 404)
}

fn root(api_version: &str) -> String {
    if api_version.contains('/') {
        format!("/apis/{api_version}")
    } else {
        format!("/api/{api_version}")
    }
}

/// Moves this thread, and no other, into a network namespace.
pub fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", netns.display()))
}
