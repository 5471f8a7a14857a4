//! What the command line means: checked, and in the words of the model.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;

use super::{
    AgentArgs, Bind, Output, RefusalArgs, SourceArgs, StateDir, TableSize, TimeoutArgs, Xdp,
};
use crate::dataplane::CgroupChoice;
use crate::model::{ForwardFirewall, LocalRefusal, PortRange, ServiceOptions, Settings, Timeouts};

/// What `portway agent` is to do.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Where objects come from.
    pub source: SourceSettings,
    /// What reaches the maps; `secret` and `hz` are still 0, and nobody has looked for a firewall.
    pub service: Settings,
    /// Devices by name; empty means that they are to be found.
    pub devices: Vec<String>,
    /// The bpffs directory of this node.
    pub state_dir: PathBuf,
    /// Where CNI plugins' results are kept.
    pub cni_results: PathBuf,
    /// Whose sockets are sent to backends.
    pub cgroup: CgroupChoice,
    /// How large the tables of NetworkPolicy are.
    pub policy_tables: TableSize,
    /// How XDP is attached.
    pub xdp: Xdp,
    /// How the status is printed as soon as the kernel is in step, which is then the end; runs until told to end if not given.
    pub once: Option<Output>,
    /// Where health is told.
    pub health_bind: Option<SocketAddr>,
    /// Where metrics are told.
    pub metrics_bind: Option<SocketAddr>,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSettings {
    /// An API server.
    ApiServer {
        /// How to reach it; `None` is in-cluster, else the user's own kubeconfig.
        kubeconfig: Option<PathBuf>,
    },
    /// A directory of YAML files.
    Manifests {
        /// The directory.
        dir: PathBuf,
        /// What may be allocated.
        ranges: Ranges,
    },
}

/// What a source that plays the API server may allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// nodePorts.
    pub node_ports: PortRange,
    /// Cluster IPs, at most one prefix per family; the first is the default.
    pub cluster_ips: Vec<IpNet>,
}

impl AgentArgs {
    /// What was typed, checked. Errors name the flag.
    pub fn settings(self) -> Result<AgentSettings> {
        let Self {
            source,
            device,
            nodeport_addresses,
            cluster_cidr,
            service_cidr,
            masquerade_ports,
            algorithm,
            forwarding,
            refusal,
            timeouts,
            pins,
            cni_results,
            cgroup,
            host_firewall,
            pod_start,
            policy_deny,
            policy_tables,
            xdp,
            once,
            ..
        } = self;
        let StateDir { state_dir } = pins;
        // What the API server writes down as a ServiceCIDR object, a source that plays it has as a flag.
        let played = source
            .manifests
            .iter()
            .flat_map(|_| &source.service_cluster_ip_range);
        let service_cidrs = service_cidr
            .iter()
            .chain(played)
            .map(IpNet::trunc)
            .collect();
        let node_ports = source.service_node_port_range;
        ensure!(
            masquerade_ports.last < node_ports.first || node_ports.last < masquerade_ports.first,
            "--masquerade-ports {masquerade_ports} and --service-node-port-range {node_ports} have ports in common"
        );
        ensure!(
            state_dir.is_absolute(),
            "--state-dir {}: must be an absolute path",
            state_dir.display()
        );
        let service = Settings {
            node_name: source.node_name()?.into(),
            nodeport_addresses,
            cluster_cidrs: cluster_cidr.iter().map(IpNet::trunc).collect(),
            service_cidrs,
            masquerade_ports,
            local_refusal: refusal.meaning(),
            host_firewall,
            pod_start,
            policy_deny,
            forward_firewall: ForwardFirewall::Absent,
            timeouts: timeouts.meaning()?,
            secret: 0,
            service_options: ServiceOptions {
                algorithm,
                forwarding,
            },
            hz: 0,
        };
        let [health_bind, metrics_bind] =
            [self.health_bind, self.metrics_bind].map(|Bind(bind)| bind);
        Ok(AgentSettings {
            source: source.settings()?,
            service,
            devices: device,
            state_dir,
            cni_results,
            cgroup,
            policy_tables,
            xdp,
            once,
            health_bind,
            metrics_bind,
        })
    }
}

impl SourceArgs {
    /// The name given, else the host's in small letters, as kubelets have it.
    pub fn node_name(&self) -> Result<String> {
        if let Some(name) = &self.node_name {
            ensure!(!name.is_empty(), "--node-name: is empty");
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("read the host's name")?;
        Ok(host.to_string_lossy().to_lowercase())
    }

    /// Where objects come from.
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

impl RefusalArgs {
    fn meaning(self) -> LocalRefusal {
        let Self {
            local_refusal_node_port: node_port,
            local_refusal_load_balancer: load_balancer,
            local_refusal_external_ip,
        } = self;
        LocalRefusal {
            node_port,
            load_balancer,
            external_ip: local_refusal_external_ip,
        }
    }
}

impl TimeoutArgs {
    fn meaning(self) -> Result<Timeouts> {
        let Self {
            opening_timeout,
            tcp_timeout,
            tcp_close_wait_timeout,
            tcp_closed_timeout,
            udp_timeout,
        } = self;
        let all = [
            opening_timeout,
            tcp_timeout,
            tcp_close_wait_timeout,
            tcp_closed_timeout,
            udp_timeout,
        ];
        // Flows note the time in 32 bits of jiffies, which at 1000 a second come round after 49 days.
        ensure!(
            all.iter().all(|seconds| (1..=2_000_000).contains(seconds)),
            "timeouts must be 1 to 2000000 seconds"
        );
        Ok(Timeouts {
            opening: opening_timeout,
            tcp: tcp_timeout,
            tcp_close_wait: tcp_close_wait_timeout,
            tcp_closed: tcp_closed_timeout,
            udp: udp_timeout,
        })
    }
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse()
            .map(|addr| Self(Some(addr)))
            .map_err(|_| format!("`{text}` is neither ADDRESS:PORT nor off"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use crate::model::{NodePortAddresses, TranslatedWay};
    use clap::Parser;

    fn agent(args: &str) -> Result<AgentSettings> {
        let typed = Cli::try_parse_from(
            ["portway", "agent"]
                .into_iter()
                .chain(args.split_whitespace()),
        )?;
        match typed.command {
            Command::Agent(args) => args.settings(),
            other => panic!("no agent: {other:?}"),
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        use clap::CommandFactory;
        let cli = Cli::command();
        let agent = cli.find_subcommand("agent").expect("an agent");
        let with_values = agent
            .get_arguments()
            .filter(|a| a.get_long().is_some_and(|l| l != "help" && l != "version"));
        for arg in with_values {
            let long = arg
                .get_long()
                .expect("filtered")
                .replace('-', "_")
                .to_uppercase();
            assert_eq!(
                arg.get_env().and_then(|e| e.to_str()),
                Some(format!("PORTWAY_{long}").as_str())
            );
        }
    }

    #[test]
    fn defaults() {
        let settings = agent("--node-name node-a").expect("settings");
        assert_eq!(
            settings.source,
            SourceSettings::ApiServer { kubeconfig: None }
        );
        assert_eq!(
            settings.service,
            Settings {
                node_name: "node-a".into(),
                ..Settings::default()
            }
        );
        assert_eq!(settings.metrics_bind, "127.0.0.1:10249".parse().ok());
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (typed, said) in [
            ("--masquerade-ports 1024-30000", "--service-node-port-range"),
            ("--masquerade-ports 9-1", "--masquerade-ports"),
            (
                "--nodeport-addresses 192.0.2.0/24,primary",
                "--nodeport-addresses",
            ),
            ("--kubeconfig a --manifests b", "--manifests"),
            ("--health-bind 10256", "--health-bind"),
            ("--tcp-timeout 0", "timeouts"),
            (
                "--manifests d --service-cluster-ip-range 10.0.0.0/16,10.1.0.0/16",
                "--service-cluster-ip-range",
            ),
        ] {
            let error = format!("{:#}", agent(typed).expect_err(typed));
            assert!(error.contains(said), "{typed}: {error}");
        }
    }

    #[test]
    fn once_may_say_how_it_prints() {
        let once = |args: &str| agent(args).expect("settings").once;
        assert_eq!(
            (once(""), once("--once"), once("--once=json")),
            (None, Some(Output::Text), Some(Output::Json))
        );
    }

    #[test]
    fn translated_packets_take_the_stacks_way_only_where_that_is_wanted_and_needed() {
        for (typed, found, way) in [
            ("", ForwardFirewall::Present, TranslatedWay::Redirect),
            (
                "--host-firewall respect",
                ForwardFirewall::Absent,
                TranslatedWay::Redirect,
            ),
            (
                "--host-firewall respect",
                ForwardFirewall::Present,
                TranslatedWay::Stack,
            ),
        ] {
            let settings = agent(&format!("--node-name node-a {typed}"))
                .expect("settings")
                .service;
            assert_eq!(
                Settings {
                    forward_firewall: found,
                    ..settings
                }
                .translated_way(),
                way,
                "{typed} {found:?}"
            );
        }
    }

    #[test]
    fn lists_and_off() {
        let settings = agent("--device eth0,eth1 --device vxlan0 --health-bind off --nodeport-addresses 192.0.2.7/24,::/0")
            .expect("settings");
        assert_eq!((settings.devices.len(), settings.health_bind), (3, None));
        let prefixes = ["192.0.2.0/24", "::/0"].map(|p| p.parse().expect("a prefix"));
        assert_eq!(
            settings.service.nodeport_addresses,
            NodePortAddresses::Within(prefixes.to_vec())
        );
    }
}
