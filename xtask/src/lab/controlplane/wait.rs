//! Owns the lab's waiting for something to happen.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Calls `probe` every 20 ms until it returns an answer.
///
/// # Errors
/// If `probe` fails, or returns no answer within `patience`.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().with_context(|| format!("wait for {what}"))? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {patience:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
