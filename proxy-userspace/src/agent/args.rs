//! Arguments of `portway agent`, and their meaning: checked, in the words of the model.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::args::{Output, StateDirArg, words};
use crate::dataplane::CgroupChoice;
use crate::model::{
    Algorithm, ForwardFirewall, Forwarding, HostFirewall, LocalRefusal, NodePortAddresses,
    PodStart, PortRange, Refusal, ServiceOptions, Settings, Timeouts, Word as _,
};
use crate::source::{SourceArgs, SourceSettings};

/// `portway agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// Network device of this node that carries packets to and from other hosts; may be given
    /// several times.
    #[arg(
        long,
        env = "PORTWAY_DEVICE",
        value_name = "DEV",
        value_delimiter = ','
    )]
    #[arg(
        help = "Network device of this node that carries packets to and from other hosts; several separated by commas [default: found by addresses and routes]"
    )]
    pub device: Vec<String>,
    /// Addresses that serve nodePorts: the node's `primary` addresses, or those within CIDRs (V8).
    #[arg(
        long,
        env = "PORTWAY_NODEPORT_ADDRESSES",
        value_name = "primary|CIDR,…",
        default_value = "primary"
    )]
    pub nodeport_addresses: NodePortAddresses,
    /// Prefixes of the pod network, in addition to the nodes' podCIDRs.
    #[arg(
        long,
        env = "PORTWAY_CLUSTER_CIDR",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// Ranges of cluster IPs, in addition to the cluster's ServiceCIDR objects. Packets to an
    /// unused address there are dropped.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_CIDR",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub service_cidr: Vec<IpNet>,
    /// Source ports for masquerade. They must not overlap nodePorts or the host's ephemeral ports.
    #[arg(
        long,
        env = "PORTWAY_MASQUERADE_PORTS",
        value_name = "FIRST-LAST",
        default_value = "1024-29999"
    )]
    pub masquerade_ports: PortRange,
    /// Algorithm that chooses backends. A Service's annotation portway.dev/algorithm overrides it;
    /// ClientIP affinity overrides both.
    #[arg(long, env = "PORTWAY_ALGORITHM", value_parser = words::<Algorithm>(), default_value = Algorithm::Random.word())]
    pub algorithm: Algorithm,
    /// Path of replies to a client outside when the backend is on another node. A Service's
    /// annotation portway.dev/forwarding overrides it.
    #[arg(
        long,
        env = "PORTWAY_FORWARDING",
        value_parser = words::<Forwarding>(),
        default_value = Forwarding::Masquerade.word()
    )]
    pub forwarding: Forwarding,
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub refusal: RefusalArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub timeouts: TimeoutArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub pins: StateDirArg,
    /// Directory of CNI results, which have a new pod's addresses before the API server does (P31).
    /// It may be absent.
    #[arg(
        long,
        env = "PORTWAY_CNI_RESULTS",
        value_name = "DIR",
        default_value = "/var/lib/cni/results"
    )]
    pub cni_results: PathBuf,
    /// The cgroup (v2) that gets the socket hooks: its processes, if of the agent's network
    /// namespace, reach Services by their sockets. `auto` is the host's root.
    #[arg(
        long,
        env = "PORTWAY_CGROUP",
        value_name = "auto|PATH|off",
        default_value = "auto"
    )]
    pub cgroup: CgroupChoice,
    /// Treatment of this host's firewall rules for forwarded packets.
    #[arg(
        long,
        env = "PORTWAY_HOST_FIREWALL",
        value_parser = words::<HostFirewall>(),
        default_value = HostFirewall::Bypass.word()
    )]
    pub host_firewall: HostFirewall,
    /// Treatment of a pod's packets before its policy is known, once there is any NetworkPolicy.
    #[arg(long, env = "PORTWAY_POD_START", value_parser = words::<PodStart>(), default_value = PodStart::Deny.word())]
    pub pod_start: PodStart,
    /// Answer to clients that a NetworkPolicy denies.
    #[arg(long, env = "PORTWAY_POLICY_DENY", value_parser = words::<Refusal>(), default_value = Refusal::Drop.word())]
    pub policy_deny: Refusal,
    /// Size of the policy tables. `small` falls back to a trie, which is many times slower.
    #[arg(
        long,
        env = "PORTWAY_POLICY_TABLES",
        value_enum,
        default_value = "small"
    )]
    pub policy_tables: TableSize,
    /// Mode in which XDP is attached.
    #[arg(long, env = "PORTWAY_XDP", value_enum, default_value = "auto")]
    pub xdp: Xdp,
    /// Exit as soon as the kernel is in step with the source, and print the status. Attached
    /// programs keep forwarding.
    #[arg(long, env = "PORTWAY_ONCE", value_enum, value_name = "text|json", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text", hide_possible_values = true)]
    pub once: Option<Output>,
    /// Address that serves /healthz and /livez; `off` for none.
    #[arg(
        long,
        env = "PORTWAY_HEALTH_BIND",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:10256"
    )]
    pub health_bind: Bind,
    /// Address that serves /metrics; `off` for none.
    #[arg(
        long,
        env = "PORTWAY_METRICS_BIND",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub metrics_bind: Bind,
}

/// Answers to clients from outside where the policy is Local, no backend is on this node and others
/// are elsewhere.
#[derive(Args, Clone, Debug)]
pub struct RefusalArgs {
    /// Answer at nodePorts if the policy is Local and this node has no backend.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_NODE_PORT",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Reject.word()
    )]
    pub local_refusal_node_port: Refusal,
    /// Answer at load balancer IPs if the policy is Local and this node has no backend.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_LOAD_BALANCER",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Drop.word()
    )]
    pub local_refusal_load_balancer: Refusal,
    /// Answer at external IPs if the policy is Local and this node has no backend.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_EXTERNAL_IP",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Drop.word()
    )]
    pub local_refusal_external_ip: Refusal,
}

/// Lifetimes of flows, in seconds after their last packet (V18).
#[derive(Args, Clone, Debug)]
pub struct TimeoutArgs {
    /// Seconds until a connection without a reply ends.
    #[arg(long, env = "PORTWAY_OPENING_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().opening)]
    pub opening_timeout: u32,
    /// Seconds without packets until an established TCP connection ends.
    #[arg(long, env = "PORTWAY_TCP_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp)]
    pub tcp_timeout: u32,
    /// Seconds without packets until a TCP connection ends that one side has closed.
    #[arg(long, env = "PORTWAY_TCP_CLOSE_WAIT_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp_close_wait)]
    pub tcp_close_wait_timeout: u32,
    /// Seconds without packets until a TCP connection ends that both sides have closed or one has
    /// reset; less if the table is more than half full.
    #[arg(long, env = "PORTWAY_TCP_CLOSED_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp_closed)]
    pub tcp_closed_timeout: u32,
    /// Seconds without packets until a UDP flow with replies ends.
    #[arg(long, env = "PORTWAY_UDP_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().udp)]
    pub udp_timeout: u32,
}

/// Kernel memory that the policy tables take from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableSize {
    /// Less than 2 MB: room for some hundred ipBlocks.
    Small,
    /// About 110 MB: room for 100,000 ipBlocks.
    Large,
}

/// Mode in which XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// In the driver, where it can.
    Auto,
    /// In the driver, or fail. Over a veth it breaks packets with a checksum that the sender leaves
    /// to the device, as most do; and the far end must have an XDP program, too.
    Native,
    /// In the stack: slower than tc on most devices, works on all with whole checksums (not over a
    /// veth, see `native`).
    Generic,
    /// No XDP: tc does everything.
    Off,
}

/// An address to listen on, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind(pub Option<SocketAddr>);

/// The settings of `portway agent`, checked.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// The source of objects.
    pub source: SourceSettings,
    /// Settings that reach the maps. `secret`, `hz` and `forward_firewall` are not filled in yet.
    pub service: Settings,
    /// Devices by name; if empty, they are found by addresses and routes.
    pub devices: Vec<String>,
    /// The bpffs directory of this node.
    pub state_dir: PathBuf,
    /// Directory of CNI results.
    pub cni_results: PathBuf,
    /// The cgroup that gets the socket hooks.
    pub cgroup: CgroupChoice,
    /// Size of the policy tables.
    pub policy_tables: TableSize,
    /// Mode in which XDP is attached.
    pub xdp: Xdp,
    /// With a format: print the status in it as soon as the kernel is in step, and exit. Without:
    /// run until a signal.
    pub once: Option<Output>,
    /// Address that serves health; `None` for none.
    pub health_bind: Option<SocketAddr>,
    /// Address that serves metrics; `None` for none.
    pub metrics_bind: Option<SocketAddr>,
}

impl AgentArgs {
    /// Checks the arguments.
    ///
    /// # Errors
    /// If a flag is invalid, or two contradict; the error names them.
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
            health_bind: Bind(health_bind),
            metrics_bind: Bind(metrics_bind),
        } = self;
        let StateDirArg { state_dir } = pins;
        // Without an API server, the flag stands for ServiceCIDR objects.
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
        // Flows record the time in 32 bits of jiffies, which wrap after 49 days at 1000 a second.
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
            .map_err(|_| format!("invalid address `{text}`: expected ADDRESS:PORT or off"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::model::{NodePortAddresses, TranslatedWay};
    use clap::Parser;

    fn agent(args: &str) -> Result<AgentSettings> {
        let typed = Cli::try_parse_from(
            ["portway", "agent"]
                .into_iter()
                .chain(args.split_whitespace()),
        )?;
        let Command::Agent(args) = typed.command else {
            panic!("no agent: {typed:?}")
        };
        args.settings()
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
