//! Owns the control plane: it starts etcd, the API server and the controllers, and writes
//! kubeconfigs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::json;
use tempfile::TempDir;

use super::arguments::{Serving, apiserver_args, etcd_args, manager_args};
use super::binaries::Binaries;
use super::client::Client;
use super::etcd;
use super::kubeconfig;
use super::object_ref::ObjectRef;
use super::pki::Pki;
use super::process::Daemon;
use super::wait::wait_for;

const PORT: u16 = 6443;
const ADMIN_TOKEN: &str = "lab-admin";
const PROXY_TOKEN: &str = "lab-kube-proxy";
const PATIENCE: Duration = Duration::from_secs(60);

/// The place of a control plane and the address ranges that it allocates from.
#[derive(Debug, Clone)]
pub struct ControlPlaneSpec {
    /// The file of its network namespace, such as `/run/netns/lab-api`; its loopback device is up.
    pub netns: PathBuf,
    /// The namespace's address at which agents reach the API server.
    pub address: IpAddr,
    /// The ranges of ClusterIPs, the primary family first.
    pub service_ranges: Vec<IpNet>,
}

/// A running control plane. Dropping it ends its processes and removes its data.
#[derive(Debug)]
pub struct ControlPlane {
    // Fields are dropped in this order: the clients of a program end before it does.
    manager: Daemon,
    apiserver: Option<Daemon>,
    etcd: Daemon,
    client: Client,
    pki: Pki,
    binaries: Binaries,
    spec: ControlPlaneSpec,
    dir: TempDir,
}

/// A user for a kubeconfig.
#[derive(Debug, Clone)]
pub enum User {
    /// Every permission.
    Admin,
    /// kube-proxy's account: `system:kube-proxy`.
    KubeProxy,
    /// A service account, by a token that the API server issues for an hour.
    ServiceAccount {
        /// The account's namespace.
        namespace: String,
        /// The account's name.
        name: String,
    },
}

impl ControlPlane {
    /// Starts one, and returns when the API server is ready and the Service `kubernetes`
    /// exists.
    pub fn start(spec: &ControlPlaneSpec) -> Result<Self> {
        let binaries = Binaries::find()?;
        let dir = tempfile::Builder::new()
            .prefix("portway-controlplane-")
            .tempdir()
            .context("create the control plane's directory")?;
        let pki = Pki::create(dir.path(), &server_names(spec))?;
        fs::write(dir.path().join("tokens.csv"), tokens())
            .context("write the control plane's users")?;
        let url = url(spec);
        let client = Client::new(&url, &pki.ca, ADMIN_TOKEN, &spec.netns)?;
        let log = |name: &str| dir.path().join(name).with_extension("log");

        let etcd = Daemon::spawn(
            &binaries.etcd,
            &etcd_args(dir.path()),
            &spec.netns,
            &log("etcd"),
        )?;
        let apiserver = Daemon::spawn(
            &binaries.apiserver,
            &apiserver_args(&serving(spec), &pki, dir.path()),
            &spec.netns,
            &log("apiserver"),
        )?;
        let admin = kubeconfig::write(dir.path(), "admin", &url, &pki.ca, ADMIN_TOKEN)?;
        let manager = Daemon::spawn(
            &binaries.controller_manager,
            &manager_args(&admin),
            &spec.netns,
            &log("manager"),
        )?;
        let spec = spec.clone();
        let mut plane = Self {
            manager,
            apiserver: Some(apiserver),
            etcd,
            client,
            pki,
            binaries,
            spec,
            dir,
        };
        plane.wait_until_ready()?;
        Ok(plane)
    }

    /// The administrator's way to the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API server's address, such as `https://192.0.2.250:6443`.
    pub fn url(&self) -> String {
        url(&self.spec)
    }

    /// The file with the certificate of the authority that signed the API server's.
    pub fn ca(&self) -> &Path {
        &self.pki.ca
    }

    /// The programs that it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The directory of its data, logs and kubeconfigs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a kubeconfig for `user`, which is valid as long as this control plane is, and returns
    /// its path.
    pub fn kubeconfig(&self, user: &User) -> Result<PathBuf> {
        let (file, token) = match user {
            User::Admin => ("admin".to_owned(), ADMIN_TOKEN.to_owned()),
            User::KubeProxy => ("kube-proxy".to_owned(), PROXY_TOKEN.to_owned()),
            User::ServiceAccount { namespace, name } => (
                format!("{namespace}-{name}"),
                self.service_account_token(namespace, name)?,
            ),
        };
        kubeconfig::write(self.dir.path(), &file, &self.url(), &self.pki.ca, &token)
    }

    /// A token of a service account, valid for an hour.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let account = ObjectRef::namespaced("v1", "ServiceAccount", namespace, name);
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600 } });
        let answer = self.client.post(&account, "token", &request)?;
        answer["status"]["token"]
            .as_str()
            .map(str::to_owned)
            .context("read the token of a service account")
    }

    /// Kills the API server; etcd and the controllers stay.
    pub fn stop_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Removes an object from etcd behind the API server's back, by its key below `/registry`, and
    /// compacts etcd's history: earlier watches cannot be resumed and are answered 410 (Gone).
    pub fn lose_history_and(&self, key: &str) -> Result<()> {
        let revision = etcd::remove(&self.spec.netns, &format!("/registry/{key}"))?;
        etcd::compact(&self.spec.netns, &revision)
    }

    /// Starts the API server again, and returns when it is ready.
    pub fn start_apiserver(&mut self) -> Result<()> {
        let args = apiserver_args(&serving(&self.spec), &self.pki, self.dir.path());
        self.apiserver = Some(Daemon::spawn(
            &self.binaries.apiserver,
            &args,
            &self.spec.netns,
            &self.dir.path().join("apiserver.log"),
        )?);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let own = ObjectRef::namespaced("v1", "Service", "default", "kubernetes");
        wait_for("the API server", PATIENCE, || {
            // On a busy machine it gives up on an API server that is not healthy within ten
            // seconds.
            if self.manager.ended()?.is_some() {
                let (args, log) = (
                    manager_args(&self.dir.path().join("admin.kubeconfig")),
                    self.dir.path().join("manager.log"),
                );
                self.manager = Daemon::spawn(
                    &self.binaries.controller_manager,
                    &args,
                    &self.spec.netns,
                    &log,
                )?;
            }
            for daemon in self.apiserver.iter_mut().chain([&mut self.etcd]) {
                if let Some(status) = daemon.ended()? {
                    bail!("{status}; {}", daemon.last_words());
                }
            }
            let ready = self.client.raw("/readyz").is_ok()
                && self.client.get(&own).is_ok_and(|found| found.is_some());
            Ok(ready.then_some(()))
        })
    }
}

fn url(spec: &ControlPlaneSpec) -> String {
    format!("https://{}", std::net::SocketAddr::new(spec.address, PORT))
}

/// Names and addresses in the API server's certificate, with those of the Service `kubernetes`: the
/// first address of each range.
fn server_names(spec: &ControlPlaneSpec) -> Vec<String> {
    let addresses = spec
        .service_ranges
        .iter()
        .filter_map(|range| range.hosts().next())
        .chain([spec.address])
        .map(|address| address.to_string());
    let names = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    names
        .into_iter()
        .map(str::to_owned)
        .chain(addresses)
        .collect()
}

/// The static users: token, name, id, groups.
fn tokens() -> String {
    format!("{ADMIN_TOKEN},lab-admin,1,system:masters\n{PROXY_TOKEN},system:kube-proxy,2,\n")
}

fn serving(spec: &ControlPlaneSpec) -> Serving<'_> {
    Serving {
        address: spec.address,
        port: PORT,
        service_ranges: &spec.service_ranges,
    }
}
