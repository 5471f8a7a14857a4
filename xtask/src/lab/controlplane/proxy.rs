//! Runs the real kube-proxy in a node's network namespace, in nftables mode: the data plane that
//! Portway is compared with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::plane::{ControlPlane, User};
use super::process::Daemon;
use super::wait::wait_for;

/// The nftables tables that kube-proxy makes, by family; both are named `kube-proxy`.
const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// kube-proxy's node and its view of the cluster.
#[derive(Debug, Clone)]
pub struct ProxySpec {
    /// The file of the node's network namespace.
    pub netns: PathBuf,
    /// The node's name.
    pub node: String,
    /// The pods' ranges: traffic from elsewhere is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
}

/// A running kube-proxy. Dropping it ends it and removes its nftables rules.
#[derive(Debug)]
pub struct KubeProxy {
    daemon: Option<Daemon>,
    netns: PathBuf,
}

impl KubeProxy {
    /// Starts it, and returns when its first rules are in the kernel.
    pub fn start(plane: &ControlPlane, spec: &ProxySpec) -> Result<Self> {
        let args = args(spec, &plane.kubeconfig(&User::KubeProxy)?);
        let log = plane.dir().join(format!("kube-proxy-{}.log", spec.node));
        let daemon = Daemon::spawn(&plane.binaries().proxy, &args, &spec.netns, &log)?;
        let mut proxy = Self {
            daemon: Some(daemon),
            netns: spec.netns.clone(),
        };
        wait_for("kube-proxy's first rules", Duration::from_secs(30), || {
            proxy.is_programmed()
        })?;
        Ok(proxy)
    }

    /// Returns its rules in the kernel, as `nft` prints them.
    pub fn rules(&self) -> Result<String> {
        let tables: Result<Vec<String>> = FAMILIES
            .iter()
            .map(|family| nft(&self.netns, &["list", "table", family, "kube-proxy"]))
            .collect();
        Ok(tables?.concat())
    }

    fn is_programmed(&mut self) -> Result<Option<()>> {
        let daemon = self
            .daemon
            .as_mut()
            .context("find the running kube-proxy")?;
        if let Some(status) = daemon.ended()? {
            bail!("{status}; {}", daemon.last_words());
        }
        // The API server's own Service is always there.
        Ok(self
            .rules()
            .is_ok_and(|rules| rules.contains("default/kubernetes"))
            .then_some(()))
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        self.daemon = None;
        for family in FAMILIES {
            // It may have ended before it made this table.
            let _ = nft(&self.netns, &["delete", "table", family, "kube-proxy"]);
        }
    }
}

fn args(spec: &ProxySpec, kubeconfig: &Path) -> Vec<String> {
    let cidrs: Vec<String> = spec.cluster_cidrs.iter().map(IpNet::to_string).collect();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", spec.node),
        format!("--cluster-cidr={}", cidrs.join(",")),
        "--proxy-mode=nftables".to_owned(),
        "--healthz-bind-address=0.0.0.0:10256".to_owned(),
        "--metrics-bind-address=127.0.0.1:10249".to_owned(),
        // The host's connection tracking is not the lab's to tune.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-min=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ]
}

fn nft(netns: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .arg("nft")
        .args(args)
        .output()
        .context("run nft")?;
    if !output.status.success() {
        bail!(
            "nft {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("read nft's output")
}
