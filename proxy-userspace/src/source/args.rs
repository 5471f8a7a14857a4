//! Arguments of commands that read the cluster's objects, and their meaning.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use ipnet::IpNet;

use crate::model::PortRange;

/// Flags for the source of objects.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// Name of this node's Node object.
    #[arg(long, env = "PORTWAY_NODE_NAME", value_name = "NAME")]
    #[arg(help = "Name of this node's Node object [default: the host's name in lower case]")]
    pub node_name: Option<String>,
    /// Kubeconfig file of the API server. Default: the pod's service account, else ~/.kube/config.
    #[arg(long, env = "PORTWAY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory of YAML and JSON files to read and watch instead of an API server.
    #[arg(
        long,
        env = "PORTWAY_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig"
    )]
    pub manifests: Option<PathBuf>,
    /// With --manifests: range of nodePorts, for Services that name one and for allocation.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_NODE_PORT_RANGE",
        value_name = "FIRST-LAST",
        default_value = "30000-32767"
    )]
    pub service_node_port_range: PortRange,
    /// With --manifests: prefixes to allocate cluster IPs from, at most one of each family. The
    /// first one's family is the default family.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_CLUSTER_IP_RANGE",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[arg(default_value = "10.96.0.0/12,fd00:10:96::/112")]
    pub service_cluster_ip_range: Vec<IpNet>,
}

/// The source of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSettings {
    /// An API server.
    ApiServer {
        /// Its kubeconfig; `None` is the pod's service account, else the user's own.
        kubeconfig: Option<PathBuf>,
    },
    /// A directory of YAML files.
    Manifests {
        /// The directory.
        dir: PathBuf,
        /// The ranges to allocate from.
        ranges: Ranges,
    },
}

/// The ranges from which manifests without an API server get ports and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// The nodePorts.
    pub node_ports: PortRange,
    /// Cluster IPs, at most one prefix per family; the first is the default.
    pub cluster_ips: Vec<IpNet>,
}

impl SourceArgs {
    /// Returns the given name, else the host's in lower case, as the kubelet registers it.
    ///
    /// # Errors
    /// If the name is empty or the host's cannot be read.
    pub fn node_name(&self) -> Result<String> {
        if let Some(name) = &self.node_name {
            ensure!(!name.is_empty(), "--node-name is empty");
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("read the host's name")?;
        Ok(host.to_string_lossy().to_lowercase())
    }

    /// Returns the source of objects.
    ///
    /// # Errors
    /// If two cluster IP ranges are of one family, or one is too small.
    pub fn settings(self) -> Result<SourceSettings> {
        let Self {
            node_name: _,
            kubeconfig,
            manifests,
            service_node_port_range,
            service_cluster_ip_range,
        } = self;
        let Some(dir) = manifests else {
            return Ok(SourceSettings::ApiServer { kubeconfig });
        };
        let cluster_ips: Vec<_> = service_cluster_ip_range.iter().map(IpNet::trunc).collect();
        for v4 in [true, false] {
            let of_family = cluster_ips
                .iter()
                .filter(|range| range.addr().is_ipv4() == v4)
                .count();
            ensure!(
                of_family <= 1,
                "--service-cluster-ip-range: at most one range of each family"
            );
        }
        for range in &cluster_ips {
            ensure!(
                range.max_prefix_len() - range.prefix_len() >= 2,
                "--service-cluster-ip-range: {range} is too small"
            );
        }
        Ok(SourceSettings::Manifests {
            dir,
            ranges: Ranges {
                node_ports: service_node_port_range,
                cluster_ips,
            },
        })
    }
}
