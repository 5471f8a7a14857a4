//! Owns `cargo xtask demo`: the lesson that a nodePort reaches pods on any node, played on this
//! host and judged.

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

/// Shows a NodePort Service at work on three nodes in network namespaces: no cluster is needed.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Leave it all up at the end, and say what to try by hand.
    #[arg(long)]
    pub keep: bool,
    /// Wiring of pods to their node.
    #[arg(long, value_enum, default_value = "bridge")]
    pub wiring: Wiring,
    /// Connection of the nodes to other nodes' pods.
    #[arg(long, value_enum, default_value = "routes")]
    pub join: Join,
}

/// Plays the lesson.
///
/// # Errors
/// If something cannot be started, or anything came out otherwise than it should.
pub fn run(args: &Args) -> Result<()> {
    let tools = build_agent()?;
    let mut say = Say::new();
    say.title("Portway's lesson: a nodePort reaches pods on any node");
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
    ensure!(
        wrong == 0,
        "{wrong} of the demo's expectations did not come true"
    );
    Ok(())
}

/// Builds before the clock starts: how long that takes is not the demo's.
fn build_agent() -> Result<Tools> {
    setup::ensure(&Component::LAB)?;
    println!("Building the agent …");
    Ok(Tools {
        portway: build::agent(build::Profile::Dev)?,
        ..Tools::of_this_program()?
    })
}
