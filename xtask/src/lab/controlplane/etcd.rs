//! Owns what the lab does to etcd itself, by its JSON gateway.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::Agent;

use super::client::enter;

/// The URL at which etcd serves, inside its network namespace.
pub const ETCD: &str = "http://127.0.0.1:2379";

/// Removes the key, which must be there, and gives etcd's revision after that.
pub fn remove(netns: &Path, key: &str) -> Result<String> {
    let answer = call(
        netns,
        "kv/deleterange",
        &json!({ "key": STANDARD.encode(key) }),
    )
    .with_context(|| format!("remove {key}"))?;
    ensure!(answer["deleted"] == "1", "etcd has no {key}: {answer}");
    answer
        .pointer("/header/revision")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .context("read etcd's revision")
}

/// Makes etcd forget what was before `revision`.
pub fn compact(netns: &Path, revision: &str) -> Result<()> {
    call(
        netns,
        "kv/compaction",
        &json!({ "revision": revision, "physical": true }),
    )
    .context("compact etcd")
    .map(drop)
}

/// One call from inside the namespace, on a thread of its own.
fn call(netns: &Path, method: &str, request: &Value) -> Result<Value> {
    let talk = || {
        enter(netns)?;
        let agent: Agent = Agent::config_builder()
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .into();
        let mut answer = agent
            .post(format!("{ETCD}/v3/{method}"))
            .send(request.to_string())
            .context("talk to etcd")?;
        let text = answer
            .body_mut()
            .read_to_string()
            .context("read etcd's answer")?;
        serde_json::from_str(&text).context("parse etcd's answer")
    };
    std::thread::scope(|scope| scope.spawn(talk).join())
        .map_err(|_| anyhow!("a call to etcd panicked"))?
}
