//! Owns `cargo xtask lab`: a lab of three nodes to look at by hand, until Ctrl-C.

use anyhow::Result;

use super::Lab;
use super::host::Tools;
use super::topology::{Family, Join, PodSpec, Serves, Topology, Wiring};

/// Start clients, three nodes and pods in network namespaces, until Ctrl-C
#[derive(clap::Args, Clone, Debug)]
pub struct LabArgs {
    /// Wiring of pods to their node
    #[arg(long, value_enum, default_value = "bridge")]
    pub wiring: Wiring,
    /// Connection of the nodes to other nodes' pods
    #[arg(long, value_enum, default_value = "routes")]
    pub join: Join,
}

/// Three nodes; `web` on the first two, each with HTTP, TCP and UDP, nothing on the third.
pub fn three_nodes(wiring: Wiring, join: Join) -> Topology {
    let web = |name: &str| {
        let pod = PodSpec::new(name)
            .label("app", "demo")
            .label("tier", "web")
            .serving_as("http", 80, Serves::Http);
        pod.serving_as("tcp", 7, Serves::TcpEcho)
            .serving_as("udp", 7, Serves::UdpEcho)
    };
    let topology = Topology::new(wiring, join).node("node1", vec![web("web-1"), web("web-2")]);
    topology
        .node("node2", vec![web("web-3"), web("web-4")])
        .node("node3", Vec::new())
}

/// Runs a lab until a signal ends this program.
///
/// # Errors
/// If the lab does not start.
pub fn hold(args: &LabArgs) -> Result<()> {
    let lab = Lab::start(
        three_nodes(args.wiring, args.join),
        Tools::of_this_program()?,
    )?;
    println!("{} is up", lab.id());
    for node in lab.nodes() {
        println!(
            "  {}: {}, enter with: nsenter --net={}",
            node.name(),
            node.addresses().v4,
            node.ns().path().display()
        );
        for pod in node.pods() {
            println!(
                "    {}: {} {}",
                pod.name(),
                pod.addresses().of(Family::V4),
                pod.addresses().of(Family::V6)
            );
        }
    }
    println!(
        "  clients: {} and {}",
        lab.near_client().path().display(),
        lab.far_client().path().display()
    );
    println!("Ctrl-C takes it down.");
    loop {
        std::thread::park();
    }
}
