//! The components that a host needs: each one's name, its purpose, how it is found and which means
//! installs it.

use super::found::Found;
use super::{go, rust};
use crate::sh::find_program;

/// Something that a host must have for some of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// A toolchain with `core` for the kernel.
    KernelCore,
    /// The linker of the eBPF object.
    BpfLinker,
    /// rustfmt and clippy.
    Lints,
    /// Network namespaces, links, routes.
    Iproute2,
    /// The control plane's store.
    Etcd,
    /// Compiles the control plane where it is not there as binaries.
    Go,
    /// Other kernels.
    Qemu,
    /// Packs an initramfs.
    Cpio,
    /// The programs of the initramfs.
    Busybox,
    /// Signatures of the archive that has the other kernels.
    DebianKeys,
    /// Shows what is on a wire.
    Tcpdump,
    /// Judges what was on a wire.
    Tshark,
    /// Offloads of links.
    Ethtool,
    /// kube-proxy's newer rules.
    Nftables,
    /// kube-proxy's and CNIs' rules.
    Iptables,
    /// kube-proxy's flow table.
    Conntrack,
    /// A load balancer that asks nodes for their health.
    Haproxy,
    /// Bulk traffic.
    Iperf3,
    /// A client to type by hand.
    Curl,
    /// Values of sysctl.
    Procps,
}

/// The means that install a component, beyond apt.
#[derive(Clone, Copy)]
pub(super) enum Bringer {
    /// Its packages are all of it.
    Apt,
    /// rustup's rust-src, or Debian's compiled core.
    Rust,
    /// rustup's components, or Debian's packages.
    Lints,
    /// Compiled by `cargo install`.
    Linker,
    /// The Go module proxy's toolchain, where apt's Go is too old.
    Go,
}

impl Component {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 20] = [
        Self::KernelCore,
        Self::BpfLinker,
        Self::Lints,
        Self::Iproute2,
        Self::Etcd,
        Self::Go,
        Self::Qemu,
        Self::Cpio,
        Self::Busybox,
        Self::DebianKeys,
        Self::Tcpdump,
        Self::Tshark,
        Self::Ethtool,
        Self::Nftables,
        Self::Iptables,
        Self::Conntrack,
        Self::Haproxy,
        Self::Iperf3,
        Self::Curl,
        Self::Procps,
    ];
    /// Components for compiling the agent with its eBPF object.
    pub const BUILD: [Self; 2] = [Self::KernelCore, Self::BpfLinker];
    /// Components for the lab's namespaces and its control plane. Go is added where it has to be
    /// compiled.
    pub const LAB: [Self; 8] = [
        Self::Iproute2,
        Self::Etcd,
        Self::Ethtool,
        Self::Nftables,
        Self::Iptables,
        Self::Conntrack,
        Self::Curl,
        Self::Procps,
    ];
    /// Components for booting other kernels.
    pub const VM: [Self; 4] = [Self::Qemu, Self::Cpio, Self::Busybox, Self::DebianKeys];

    /// Returns its name for people.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Which commands need it.
    pub fn needed_for(self) -> &'static str {
        self.row().1
    }

    /// Finds it; an error if it is missing, with the reason.
    pub(super) fn find(self) -> Result<Found, String> {
        match self {
            Self::KernelCore => rust::find_core(),
            Self::BpfLinker => rust::find_linker(),
            Self::Lints => rust::find_lints(),
            Self::Go => go::find(),
            Self::DebianKeys => file(super::apt::DEBIAN_KEYS),
            Self::Iproute2
            | Self::Etcd
            | Self::Qemu
            | Self::Cpio
            | Self::Busybox
            | Self::Tcpdump
            | Self::Tshark
            | Self::Ethtool
            | Self::Nftables
            | Self::Iptables
            | Self::Conntrack
            | Self::Haproxy
            | Self::Iperf3
            | Self::Curl
            | Self::Procps => program(self.row().2),
        }
    }

    /// Returns its apt packages.
    pub(super) fn packages(self) -> Vec<&'static str> {
        match self {
            Self::KernelCore => rust::core_packages(),
            Self::Lints => rust::lint_packages(),
            Self::Go => go::packages(),
            Self::BpfLinker
            | Self::Iproute2
            | Self::Etcd
            | Self::Qemu
            | Self::Cpio
            | Self::Busybox
            | Self::DebianKeys
            | Self::Tcpdump
            | Self::Tshark
            | Self::Ethtool
            | Self::Nftables
            | Self::Iptables
            | Self::Conntrack
            | Self::Haproxy
            | Self::Iperf3
            | Self::Curl
            | Self::Procps => self.row().3.to_vec(),
        }
    }

    pub(super) fn bringer(self) -> Bringer {
        match self {
            Self::KernelCore => Bringer::Rust,
            Self::Lints => Bringer::Lints,
            Self::BpfLinker => Bringer::Linker,
            Self::Go => Bringer::Go,
            Self::Iproute2
            | Self::Etcd
            | Self::Qemu
            | Self::Cpio
            | Self::Busybox
            | Self::DebianKeys
            | Self::Tcpdump
            | Self::Tshark
            | Self::Ethtool
            | Self::Nftables
            | Self::Iptables
            | Self::Conntrack
            | Self::Haproxy
            | Self::Iperf3
            | Self::Curl
            | Self::Procps => Bringer::Apt,
        }
    }

    /// Name, purpose, program that shows that it is here, packages.
    fn row(
        self,
    ) -> (
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
    ) {
        match self {
            Self::KernelCore => ("rust-for-bpf", "building the eBPF object", "", &[]),
            // The packages are for compiling the linker and for its libLLVM.
            Self::BpfLinker => (
                "bpf-linker",
                "building the eBPF object",
                "bpf-linker",
                rust::LINKER_PACKAGES,
            ),
            Self::Lints => ("rustfmt+clippy", "tidy", "", &[]),
            Self::Iproute2 => ("iproute2", "the lab and the demo", "ip", &["iproute2"]),
            Self::Etcd => ("etcd", "the lab and the demo", "etcd", &["etcd-server"]),
            Self::Go => ("go", "building the lab's kube-apiserver", "go", &[]),
            Self::Qemu => (
                "qemu",
                "tests on other kernels",
                "qemu-system-x86_64",
                &["qemu-system-x86"],
            ),
            Self::Cpio => ("cpio", "tests on other kernels", "cpio", &["cpio"]),
            Self::Busybox => (
                "busybox",
                "tests on other kernels",
                "busybox",
                &["busybox-static"],
            ),
            Self::DebianKeys => (
                "debian-keys",
                "tests on other kernels",
                "",
                &["debian-archive-keyring"],
            ),
            Self::Tcpdump => ("tcpdump", "looking into the lab", "tcpdump", &["tcpdump"]),
            Self::Tshark => ("tshark", "looking into the lab", "tshark", &["tshark"]),
            Self::Ethtool => ("ethtool", "the lab", "ethtool", &["ethtool"]),
            Self::Nftables => ("nftables", "the lab's kube-proxy", "nft", &["nftables"]),
            Self::Iptables => (
                "iptables",
                "the lab's kube-proxy",
                "iptables",
                &["iptables"],
            ),
            Self::Conntrack => (
                "conntrack",
                "the lab's kube-proxy",
                "conntrack",
                &["conntrack"],
            ),
            Self::Haproxy => (
                "haproxy",
                "load balancing in the lab",
                "haproxy",
                &["haproxy"],
            ),
            Self::Iperf3 => ("iperf3", "measuring in the lab", "iperf3", &["iperf3"]),
            Self::Curl => ("curl", "the demo", "curl", &["curl"]),
            Self::Procps => ("procps", "the lab", "sysctl", &["procps"]),
        }
    }
}

fn program(name: &str) -> Result<Found, String> {
    find_program(name)
        .map(|file| Found(file.display().to_string()))
        .ok_or_else(|| format!("no `{name}` on the PATH"))
}

fn file(path: &str) -> Result<Found, String> {
    let found = std::path::Path::new(path).exists();
    found
        .then(|| Found(path.to_owned()))
        .ok_or_else(|| format!("no {path}"))
}
