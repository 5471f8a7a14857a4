//! The result cache of CNI plugins: the addresses of a new pod, before the API server has them
//! (P31).
//!
//! libcni writes a file for each network of each container when it is added, and removes it when it
//! is deleted.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::model::ObjectName;

/// Interval after which a directory is read again that is absent, or that inotify does not report
/// on.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The device inside of a pod that its own addresses are on; other networks' (Multus) are not the
/// pod's in the API's sense.
const MAIN_DEVICE: &str = "eth0";

/// A file that was written is closed.
const WRITTEN: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

/// The addresses of pods by the results of their CNI plugins.
pub type CniPods = BTreeMap<ObjectName, Vec<IpAddr>>;

/// Sends the pods of the cache in `dir`, again after each change, until every receiver is dropped.
///
/// # Errors
/// Only where files cannot be watched at all.
pub async fn run(dir: PathBuf, pods_tx: watch::Sender<CniPods>) -> Result<()> {
    let (touch, mut touched) = mpsc::channel(1);
    let on_event = move |event: notify::Result<notify::Event>| {
        // Our own reading changes nothing. A full queue means that a look is due anyway.
        if event.map_or(true, |event| {
            !event.kind.is_access() || event.kind == WRITTEN
        }) {
            _ = touch.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).context("set up watching of files")?;
    let (mut cache, mut watched) = (Cache::new(dir), false);
    loop {
        if !watched {
            watched = watch_dir(&mut watcher, &cache.dir);
        }
        // A file that is read while it is written is read again afterwards; only then an error is
        // logged.
        if let Err(error) = cache.look() {
            watched = false;
            debug!(error = format!("{error:#}"), "no CNI results");
        }
        let now = cache.cni_pods();
        pods_tx.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
        tokio::select! {
            touched = touched.recv() => if touched.is_none() { return Ok(()) },
            () = tokio::time::sleep(LOOK_AGAIN) => cache.log_unreadable(),
            () = pods_tx.closed() => return Ok(()),
        }
    }
}

fn watch_dir(watcher: &mut RecommendedWatcher, dir: &Path) -> bool {
    let watched = watcher.watch(dir, RecursiveMode::NonRecursive);
    if let Err(error) = &watched {
        debug!(dir = %dir.display(), %error, "cannot watch the CNI results");
    }
    watched.is_ok()
}

/// The files, as they were when they were read last.
struct Cache {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

struct File {
    changed: Option<SystemTime>,
    len: u64,
    read: Result<Option<Pod>, String>,
    /// True after it was logged that the file cannot be read.
    logged: bool,
}

/// One result file: a pod and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    name: ObjectName,
    addresses: Vec<IpAddr>,
}

impl Cache {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
        }
    }

    /// Reads what is new, and forgets what is gone.
    fn look(&mut self) -> Result<()> {
        let before = std::mem::take(&mut self.files);
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("read {}", self.dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("read {}", self.dir.display()))?
                .path();
            // One that goes while it is looked at is gone.
            let Ok(facts) = fs::metadata(&path) else {
                continue;
            };
            if !facts.is_file() {
                continue;
            }
            let (changed, len) = (facts.modified().ok(), facts.len());
            let same = before
                .get(&path)
                .filter(|file| (file.changed, file.len) == (changed, len));
            let file = match same {
                Some(file) if file.read.is_ok() || file.logged => File {
                    changed,
                    len,
                    read: file.read.clone(),
                    logged: file.logged,
                },
                _ => match fs::read_to_string(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    text => {
                        let read = text
                            .map_err(anyhow::Error::from)
                            .and_then(|text| read(&text));
                        File {
                            changed,
                            len,
                            read: read.map_err(|error| format!("{error:#}")),
                            logged: false,
                        }
                    }
                },
            };
            self.files.insert(path, file);
        }
        Ok(())
    }

    /// Logs the files that cannot be read, each once.
    fn log_unreadable(&mut self) {
        for (path, file) in self.files.iter_mut().filter(|(_, file)| !file.logged) {
            if let Err(why) = &file.read {
                warn!(file = %path.display(), why, "cannot read a CNI result; its pod is served once the API server has its addresses");
                file.logged = true;
            }
        }
    }

    /// Returns the pods of all files. Of two files about a pod the newer one counts: an earlier
    /// container of the same name may not be deleted yet.
    fn cni_pods(&self) -> CniPods {
        let mut pods: Vec<_> = self
            .files
            .values()
            .filter_map(|file| Some((file.changed, file.read.as_ref().ok()?.as_ref()?)))
            .collect();
        pods.sort_by_key(|(changed, _)| *changed);
        pods.into_iter()
            .map(|(_, pod)| (pod.name.clone(), pod.addresses.clone()))
            .collect()
    }
}

/// A file of libcni's cache, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    result: CniResult,
}

/// The result of a plugin: CNI 0.3 to 1.1.
#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    ips: Vec<CniIp>,
}

#[derive(Deserialize)]
struct CniIp {
    address: IpNet,
}

/// Reads a result file. `None` if it is about something else than a pod's main network.
fn read(text: &str) -> Result<Option<Pod>> {
    let cached: Cached = serde_json::from_str(text).context("read it as JSON of libcni's cache")?;
    let argument = |name: &str| {
        cached
            .cni_args
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"))
    else {
        return Ok(None);
    };
    if cached.if_name != MAIN_DEVICE {
        return Ok(None);
    }
    let addresses = cached
        .result
        .ips
        .iter()
        .map(|ip| ip.address.addr())
        .collect();
    Ok(Some(Pod {
        name: ObjectName::new(namespace, name),
        addresses,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A file as libcni writes it for the plugins bridge and portmap, with host-local addresses of
    /// both families.
    fn file(pod: &str, device: &str, addresses: &[&str]) -> String {
        let ips: Vec<_> = addresses
            .iter()
            .map(|a| json!({ "interface": 2, "address": a, "gateway": "10.244.1.1" }))
            .collect();
        let cached = json!({
            "kind": "cniCacheV1",
            "containerId": "8d2fc1b8ee24a7f0a3b1d8b2e6d5d6a36d8d0f2f5d0f8b9a7c6b5a4938271605",
            "config": "eyJjbmlWZXJzaW9uIjoiMC4zLjEiLCJuYW1lIjoiY2JyMCJ9",
            "ifName": device,
            "networkName": "cbr0",
            "cniArgs": [
                ["IgnoreUnknown", "1"],
                ["K8S_POD_NAMESPACE", "shop"],
                ["K8S_POD_NAME", pod],
                ["K8S_POD_INFRA_CONTAINER_ID", "8d2fc1b8ee24"],
                ["K8S_POD_UID", "0b6f2d3c-6a58-4a3e-9a3a-2f1d7f6d5e4c"],
            ],
            "capabilityArgs": { "dns": {}, "portMappings": [] },
            "result": {
                "cniVersion": "0.3.1",
                "dns": {},
                "interfaces": [
                    { "mac": "5e:61:33:8c:9d:1b", "name": "cni0" },
                    { "mac": "7a:0c:a5:0d:6e:3d", "name": "veth7d1f2c3b" },
                    { "mac": "ce:5b:8f:1c:2d:3e", "name": "eth0", "sandbox": "/var/run/netns/cni-1f0b" },
                ],
                "ips": ips,
                "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "0.0.0.0/0", "gw": "10.244.1.1" }],
            },
        });
        cached.to_string()
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    #[test]
    fn p31_a_file_names_a_pod_and_its_addresses() {
        let pod = read(&file(
            "db-0",
            "eth0",
            &["10.244.1.7/24", "fd00:244:1::7/64"],
        ))
        .expect("it can be read")
        .expect("a pod's");
        assert_eq!(
            pod,
            Pod {
                name: ObjectName::new("shop", "db-0"),
                addresses: addresses(&["10.244.1.7", "fd00:244:1::7"])
            }
        );
        // ptp and Calico give host prefixes, and the newest version says less of an address.
        let calico = file("db-0", "eth0", &["10.244.1.7/32"]).replace("0.3.1", "1.1.0");
        assert_eq!(
            read(&calico)
                .expect("it can be read")
                .map(|pod| pod.addresses),
            Some(addresses(&["10.244.1.7"]))
        );
    }

    #[test]
    fn what_is_no_pods_main_network_is_nobodys_and_what_is_broken_is_said() {
        let loopback = json!({ "kind": "cniCacheV1", "ifName": "lo", "cniArgs": [["K8S_POD_NAMESPACE", "a"], ["K8S_POD_NAME", "b"]],
            "result": { "cniVersion": "0.3.1", "ips": [{ "address": "127.0.0.1/8" }] } });
        assert_eq!(read(&loopback.to_string()).expect("it can be read"), None);
        assert_eq!(
            read(&file("db-0", "net1", &["192.168.1.7/24"])).expect("it can be read"),
            None
        );
        let podman =
            json!({ "ifName": "eth0", "result": { "ips": [{ "address": "10.88.0.2/16" }] } });
        assert_eq!(read(&podman.to_string()).expect("it can be read"), None);
        for broken in [
            "",
            "{",
            "[]",
            r#"{"ifName":"eth0","result":{"ips":[{"address":"no"}]}}"#,
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn p31_the_directory_is_read_as_it_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut cache = Cache::new(dir.path().to_owned());
        let write = |name: &str, text: &str, age: u64| {
            fs::write(dir.path().join(name), text).expect("written");
            let file = fs::File::options()
                .append(true)
                .open(dir.path().join(name))
                .expect("opened");
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .expect("dated");
        };
        let db = ObjectName::new("shop", "db-0");
        write("cbr0-1-eth0", &file("db-0", "eth0", &["10.244.1.7/24"]), 60);
        write("cbr0-2-eth0", "{", 50);
        cache.look().expect("it can be read");
        assert_eq!(
            cache.cni_pods(),
            CniPods::from([(db.clone(), addresses(&["10.244.1.7"]))])
        );
        // A container takes the other's place; the file that was broken is whole.
        write("cbr0-3-eth0", &file("db-0", "eth0", &["10.244.1.9/24"]), 10);
        write("cbr0-2-eth0", &file("web", "eth0", &["10.244.1.8/24"]), 5);
        cache.look().expect("it can be read");
        assert_eq!(cache.cni_pods()[&db], addresses(&["10.244.1.9"]));
        assert_eq!(cache.cni_pods().len(), 2);
        fs::remove_file(dir.path().join("cbr0-3-eth0")).expect("removed");
        fs::remove_file(dir.path().join("cbr0-1-eth0")).expect("removed");
        cache.look().expect("it can be read");
        assert!(!cache.cni_pods().contains_key(&db));
        drop(dir);
        assert!(cache.look().is_err() && cache.cni_pods().is_empty());
    }
}
