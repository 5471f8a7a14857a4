//! Loads the tc and XDP programs of the object into the kernel.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, Xdp};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::{debug, info};

use super::wanted::XdpChoice;

/// The XDP program for kernels and devices with frames of several buffers, and the one for others.
pub const XDP_PROGRAMS: [&str; 2] = ["portway_xdp_frags", "portway_xdp"];

/// Loads a program.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
pub fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?;
    match program {
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        Program::Xdp(program) => Xdp::load(program),
        _ => anyhow::bail!("the program {name} is of an unknown type"),
    }
    .with_context(|| format!("load the program {name}"))?;
    if let Some(Ok(info)) = ebpf.program(name).map(info) {
        info!(
            program = name,
            id = info.id(),
            instructions = info.verified_instruction_count(),
            "program loaded"
        );
    }
    Ok(())
}

/// Loads the XDP program that this kernel takes; `xdp.frags` is EINVAL before 5.18.
pub fn load_xdp(ebpf: &mut Ebpf, xdp: XdpChoice) -> Result<&'static str> {
    let [frags, single] = XDP_PROGRAMS;
    if xdp == XdpChoice::Off {
        return Ok(single);
    }
    match load(ebpf, frags) {
        Ok(()) => Ok(frags),
        Err(error) => {
            debug!(
                error = format!("{error:#}"),
                "this kernel refuses the XDP program for frames of several buffers"
            );
            load(ebpf, single).map(|()| single)
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
fn info(program: &Program) -> Result<aya::programs::ProgramInfo> {
    match program {
        Program::SchedClassifier(program) => program.info(),
        Program::Xdp(program) => program.info(),
        _ => anyhow::bail!("of an unknown type"),
    }
    .context("read the facts about a program")
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK. Later kernels do not look at it, so a refusal
/// does not matter there.
pub fn lift_memory_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "the limit of locked memory stays as it is");
    }
}
