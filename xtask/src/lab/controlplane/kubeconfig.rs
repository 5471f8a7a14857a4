//! Owns the kubeconfigs that the lab writes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Writes `dir/name.kubeconfig` for the bearer of `token`, and returns its path.
pub fn write(dir: &Path, name: &str, url: &str, ca: &Path, token: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.kubeconfig"));
    // JSON is YAML.
    fs::write(&path, format!("{:#}\n", contents(url, ca, token)))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn contents(url: &str, ca: &Path, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": url, "certificate-authority": ca } }],
        "users": [{ "name": "lab", "user": { "token": token } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        "current-context": "lab",
    })
}
