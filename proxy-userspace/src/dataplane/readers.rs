//! The programs that are running now: what nothing leads to any more may be used again when they
//! have ended.

use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};
use tracing::debug;

/// A time that no program exceeds, for kernels without the barrier.
const LONG: Duration = Duration::from_millis(100);

/// Returns when every program that runs at the call has ended: programs are RCU readers, and the
/// kernel's barrier for all processes waits for a grace period of RCU (some milliseconds).
pub fn wait() {
    if let Err(error) = membarrier(MembarrierCommand::Global) {
        // So it is where CPUs run without ticks (nohz_full).
        debug!(%error, "the kernel offers no barrier");
        std::thread::sleep(LONG);
    }
}
