//! Owns `cargo xtask demo`: a NodePort Service and NetworkPolicies on three nodes in network
//! namespaces of this host, each result checked.

mod acts;
mod mistakes;
mod name;
mod policies;
mod say;
mod stage;

use anyhow::{Result, ensure};

use self::say::Say;
use self::stage::Stage;
use crate::build;
use crate::lab::host::Tools;
use crate::lab::topology::{Join, Wiring};
use crate::setup::{self, Component};

/// Run Portway on three nodes in network namespaces: Services, NetworkPolicies, doctor; needs no
/// cluster
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Leave the lab up at the end, and print commands to try by hand
    #[arg(long)]
    pub keep: bool,
    /// Wiring of pods to their node
    #[arg(long, value_enum, default_value = "bridge")]
    pub wiring: Wiring,
    /// Connection of the nodes to other nodes' pods
    #[arg(long, value_enum, default_value = "routes")]
    pub join: Join,
}

/// Runs the demo.
///
/// # Errors
/// If something cannot be started, or a check fails.
pub fn run(args: &Args) -> Result<()> {
    let tools = build_agent()?;
    let mut say = Say::new();
    say.title("Portway demo: a Service's nodePort reaches its pods on every node");
    let mut stage = Stage::set(args.wiring, args.join, tools, &mut say)?;
    acts::node_port(&mut stage, &mut say)?;
    acts::client_address(&mut stage, &mut say)?;
    name::cluster_ip_by_name(&mut stage, &mut say)?;
    acts::three_ports(&mut stage, &mut say)?;
    acts::local_policy(&mut stage, &mut say)?;
    policies::network_policy(&mut stage, &mut say)?;
    mistakes::mistakes(&mut stage, &mut say)?;
    let wrong = say.verdict();
    if args.keep {
        stage.leave_up(&mut say);
        loop {
            // Ctrl-C takes everything down.
            std::thread::park();
        }
    }
    ensure!(wrong == 0, "{wrong} of the demo's checks failed");
    Ok(())
}

/// Builds before the clock starts: the demo's times leave out the build.
fn build_agent() -> Result<Tools> {
    setup::ensure(&Component::LAB)?;
    println!("Building the agent …");
    Ok(Tools {
        portway: build::agent(build::Profile::Dev)?,
        ..Tools::of_this_program()?
    })
}
