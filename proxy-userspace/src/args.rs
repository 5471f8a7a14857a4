//! The command line as it is typed; what it means is in [`settings`].

pub mod settings;
mod words;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::dataplane::CgroupChoice;
use crate::explain::{End, Target};
use crate::model::{
    Algorithm, Forwarding, HostFirewall, NodePortAddresses, PodStart, PortRange, Refusal, Timeouts,
    Word as _,
};
use words::words;

/// Kubernetes Services in eBPF: one agent per node in place of kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "portway", version)]
pub struct Cli {
    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,portway::source=debug`.
    #[arg(long, env = "PORTWAY_LOG", global = true, default_value = "info")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `portway` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Services on this node: attach the programs and keep the kernel's tables right, until stopped.
    Agent(Box<AgentArgs>),
    /// Say what is attached and whether all is well, from the kernel alone.
    Status(PinArgs),
    /// List the Services that the kernel holds, with their backends.
    Services(PinArgs),
    /// List the connections that the kernel holds.
    Flows(PinArgs),
    /// Take everything out of the kernel that an agent with this state directory has put there. The agent must have ended.
    Unload(StateDir),
    /// Look for the usual mistakes in Services and on this host, and say what to do about them.
    Doctor(DoctorArgs),
    /// Say which NetworkPolicies judge a connection, which rule allows it or why none does.
    Explain(ExplainArgs),
}

/// Where the objects come from.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// The name of this node's Node object.
    #[arg(long, env = "PORTWAY_NODE_NAME", value_name = "NAME")]
    #[arg(
        help = "The name of this node's Node object [default: the host's name, in small letters]"
    )]
    pub node_name: Option<String>,
    /// A kubeconfig file; without it and in a pod, the pod's service account.
    #[arg(long, env = "PORTWAY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Read objects from the YAML files of this directory instead of an API server, and watch them.
    #[arg(
        long,
        env = "PORTWAY_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig"
    )]
    pub manifests: Option<PathBuf>,
    /// With --manifests: the nodePorts that may be given and are allocated.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_NODE_PORT_RANGE",
        value_name = "FIRST-LAST",
        default_value = "30000-32767"
    )]
    pub service_node_port_range: PortRange,
    /// With --manifests: cluster IPs are allocated from these; the first one's family is the default family.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_CLUSTER_IP_RANGE",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[arg(default_value = "10.96.0.0/12,fd00:10:96::/112")]
    pub service_cluster_ip_range: Vec<IpNet>,
}

/// `portway agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// A device that packets come in and go out by; may be given several times.
    #[arg(
        long,
        env = "PORTWAY_DEVICE",
        value_name = "DEV",
        value_delimiter = ','
    )]
    #[arg(
        help = "A device that packets come in and go out by, several by commas [default: found by addresses and routes]"
    )]
    pub device: Vec<String>,
    /// Where nodePorts are served: the node's `primary` addresses, or those within CIDRs.
    #[arg(
        long,
        env = "PORTWAY_NODEPORT_ADDRESSES",
        value_name = "primary|CIDR,…",
        default_value = "primary"
    )]
    pub nodeport_addresses: NodePortAddresses,
    /// Prefixes of the pod network, beside the nodes' podCIDRs.
    #[arg(
        long,
        env = "PORTWAY_CLUSTER_CIDR",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// Ranges of cluster IPs, beside the cluster's ServiceCIDR objects: packets to an address there that no Service has are dropped.
    #[arg(
        long,
        env = "PORTWAY_SERVICE_CIDR",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub service_cidr: Vec<IpNet>,
    /// Source ports for masquerade; neither nodePorts nor the host's ephemeral ports may be among them.
    #[arg(
        long,
        env = "PORTWAY_MASQUERADE_PORTS",
        value_name = "FIRST-LAST",
        default_value = "1024-29999"
    )]
    pub masquerade_ports: PortRange,
    /// How backends are chosen; a Service's annotation portway.dev/algorithm has the last word, and ClientIP affinity another one.
    #[arg(long, env = "PORTWAY_ALGORITHM", value_parser = words::<Algorithm>(), default_value = Algorithm::Random.word())]
    pub algorithm: Algorithm,
    /// How a client outside is answered by a pod of another node than it asked; a Service's annotation portway.dev/forwarding has the last word.
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
    pub pins: StateDir,
    /// Where CNI plugins' results are kept, which name a new pod's addresses before the API server does; it need not be there.
    #[arg(
        long,
        env = "PORTWAY_CNI_RESULTS",
        value_name = "DIR",
        default_value = "/var/lib/cni/results"
    )]
    pub cni_results: PathBuf,
    /// The cgroup (v2) whose processes, if of the agent's network namespace, reach Services by their sockets: `auto` is the host's root.
    #[arg(
        long,
        env = "PORTWAY_CGROUP",
        value_name = "auto|PATH|off",
        default_value = "auto"
    )]
    pub cgroup: CgroupChoice,
    /// What is done about rules of this host's firewall for forwarded packets.
    #[arg(
        long,
        env = "PORTWAY_HOST_FIREWALL",
        value_parser = words::<HostFirewall>(),
        default_value = HostFirewall::Bypass.word()
    )]
    pub host_firewall: HostFirewall,
    /// What a pod's packets get whose policy is not known yet, once there is any NetworkPolicy.
    #[arg(long, env = "PORTWAY_POD_START", value_parser = words::<PodStart>(), default_value = PodStart::Deny.word())]
    pub pod_start: PodStart,
    /// What clients get whom a NetworkPolicy denies.
    #[arg(long, env = "PORTWAY_POLICY_DENY", value_parser = words::<Refusal>(), default_value = Refusal::Drop.word())]
    pub policy_deny: Refusal,
    /// How large NetworkPolicy's tables are: small ones find what they have no room for by tries, which takes many times as long.
    #[arg(
        long,
        env = "PORTWAY_POLICY_TABLES",
        value_enum,
        default_value = "small"
    )]
    pub policy_tables: TableSize,
    /// How XDP is attached.
    #[arg(long, env = "PORTWAY_XDP", value_enum, default_value = "auto")]
    pub xdp: Xdp,
    /// End as soon as the kernel is in step with the source, and print the status; what is attached goes on forwarding.
    #[arg(long, env = "PORTWAY_ONCE", value_enum, value_name = "text|json", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text", hide_possible_values = true)]
    pub once: Option<Output>,
    /// Where /healthz and /livez are served; `off` for nowhere.
    #[arg(
        long,
        env = "PORTWAY_HEALTH_BIND",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:10256"
    )]
    pub health_bind: Bind,
    /// Where /metrics is served; `off` for nowhere.
    #[arg(
        long,
        env = "PORTWAY_METRICS_BIND",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub metrics_bind: Bind,
}

/// What clients from outside get where the policy is Local, no backend is on this node and others are elsewhere.
#[derive(Args, Clone, Debug)]
pub struct RefusalArgs {
    /// At nodePorts, with a Local policy and no backend here: refuse at once, or drop in silence.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_NODE_PORT",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Reject.word()
    )]
    pub local_refusal_node_port: Refusal,
    /// The same at load balancer IPs.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_LOAD_BALANCER",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Drop.word()
    )]
    pub local_refusal_load_balancer: Refusal,
    /// The same at external IPs.
    #[arg(
        long,
        env = "PORTWAY_LOCAL_REFUSAL_EXTERNAL_IP",
        value_parser = words::<Refusal>(),
        default_value = Refusal::Drop.word()
    )]
    pub local_refusal_external_ip: Refusal,
}

/// How long flows live, in seconds after their last packet (V18).
#[derive(Args, Clone, Debug)]
pub struct TimeoutArgs {
    /// Seconds that a connection without an answer is remembered.
    #[arg(long, env = "PORTWAY_OPENING_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().opening)]
    pub opening_timeout: u32,
    /// Seconds of silence after which an established TCP connection is forgotten.
    #[arg(long, env = "PORTWAY_TCP_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp)]
    pub tcp_timeout: u32,
    /// The same once one end has closed.
    #[arg(long, env = "PORTWAY_TCP_CLOSE_WAIT_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp_close_wait)]
    pub tcp_close_wait_timeout: u32,
    /// The same once both have closed, or one has reset it; less where the table is more than half full.
    #[arg(long, env = "PORTWAY_TCP_CLOSED_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().tcp_closed)]
    pub tcp_closed_timeout: u32,
    /// Seconds of silence after which an answered UDP flow is forgotten.
    #[arg(long, env = "PORTWAY_UDP_TIMEOUT", value_name = "SECONDS", default_value_t = Timeouts::default().udp)]
    pub udp_timeout: u32,
}

/// Where this node's maps and programs are pinned.
#[derive(Args, Clone, Debug)]
pub struct StateDir {
    /// The bpffs directory of this node; each agent on a host has its own.
    #[arg(long, env = "PORTWAY_STATE_DIR", value_name = "DIR", default_value = crate::dataplane::StateDir::USUAL)]
    pub state_dir: PathBuf,
}

/// Commands that read the pins.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub pins: StateDir,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// `portway doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// Where eBPF objects of other data planes would be pinned.
    #[arg(
        long,
        env = "PORTWAY_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    pub bpffs: PathBuf,
    /// What the agents were told of it, where a Service does not say.
    #[arg(
        long,
        env = "PORTWAY_FORWARDING",
        value_parser = words::<Forwarding>(),
        default_value = Forwarding::Masquerade.word()
    )]
    pub forwarding: Forwarding,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// `portway explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// Who connects: NAMESPACE/POD, or an address.
    #[arg(value_name = "FROM")]
    pub from: End,
    /// To whom: NAMESPACE/POD, an address or svc/NAMESPACE/SERVICE, then `:PORT` (number or name) and, if not TCP, `/udp` or `/sctp`.
    #[arg(value_name = "TO:PORT[/PROTOCOL]")]
    pub to: Target,
    /// Where an agent of this host keeps its tables, which are asked, too.
    #[arg(long, env = "PORTWAY_STATE_DIR", value_name = "DIR")]
    #[arg(
        help = "Where an agent of this host keeps its tables, to be asked, too [default: where agents do, but with --manifests]"
    )]
    pub state_dir: Option<PathBuf>,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How much memory of the kernel NetworkPolicy's tables take from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableSize {
    /// Less than 2 MB: for some hundred ipBlocks.
    Small,
    /// About 110 MB: for 100,000.
    Large,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// Where the driver can.
    Auto,
    /// In the driver, or fail. Over a veth it breaks packets whose checksum the sender leaves to the device, as most do; and the far end must
    /// have an XDP program, too.
    Native,
    /// In the stack: slower than tc on most devices, works on all with whole checksums (not over a veth, see `native`).
    Generic,
    /// Not at all: tc does everything.
    Off,
}

/// An address to listen on, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind(pub Option<SocketAddr>);
