//! The packet path's clock: jiffies, which only a program can read.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions};
use nix::time::{ClockId, clock_getres};

use super::statedir::{StateDir, remove};

/// The program that returns the time.
pub const PROGRAM: &str = "now";
/// Size of `struct __sk_buff`, and the offset of its `cb[0]`.
const CONTEXT: usize = 192;
const CB0: usize = 48;

/// Reads the kernel's time in jiffies.
pub struct Clock {
    program: SchedClassifier,
}

/// Pins the program that returns the time, so that commands can run it without the agent.
pub fn pin(ebpf: &mut Ebpf, dir: &StateDir) -> Result<()> {
    let path = pin_path(dir);
    remove(&path)?;
    match ebpf.program_mut(PROGRAM) {
        Some(Program::SchedClassifier(program)) => program
            .pin(&path)
            .with_context(|| format!("pin {}", path.display())),
        _ => anyhow::bail!("the eBPF object has no tc program {PROGRAM}"),
    }
}

fn pin_path(dir: &StateDir) -> PathBuf {
    dir.programs().join(PROGRAM)
}

impl Clock {
    /// Opens the clock that an agent has pinned.
    pub fn from_pins(dir: &StateDir) -> Result<Self> {
        let path = pin_path(dir);
        let program =
            SchedClassifier::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { program })
    }

    /// Returns the low 32 bits of jiffies.
    pub fn now(&self) -> Result<u32> {
        let (frame, mut context) = ([0_u8; 64], [0_u8; CONTEXT]);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_out: Some(&mut context),
            ..TestRunOptions::new()
        };
        self.program
            .test_run(options)
            .context("run the clock's program")?;
        let mut low = [0_u8; 4];
        low.copy_from_slice(&context[CB0..CB0 + 4]);
        Ok(u32::from_ne_bytes(low))
    }
}

/// Returns the jiffies in a second: the resolution of the coarse clock is one jiffy.
pub fn hz() -> Result<u32> {
    let tick =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("read the length of a jiffy")?;
    let nanos = u64::try_from(tick.tv_nsec()).unwrap_or_default().max(1);
    Ok(u32::try_from((1_000_000_000 + nanos / 2) / nanos).unwrap_or(u32::MAX))
}
