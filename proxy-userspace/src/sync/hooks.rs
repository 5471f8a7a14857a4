//! When hooks that the kernel has refused are tried again, whether there is news or not.

use std::time::Duration;

use tokio::time::Instant;

use super::RETRY;

/// They are tried again after a pause, and after twice that, up to a minute.
pub struct HookRetry {
    /// When they are to be; never while there are none.
    pub at: Option<Instant>,
    pause: Duration,
}

impl Default for HookRetry {
    fn default() -> Self {
        Self {
            at: None,
            pause: RETRY,
        }
    }
}

impl HookRetry {
    /// The longest pause.
    const MOST: Duration = Duration::from_secs(60);

    /// They are tried now.
    pub fn begin(&mut self) {
        *self = Self {
            at: None,
            pause: (self.pause * 2).min(Self::MOST),
        };
    }

    /// Some are left, or none.
    pub fn wait(&mut self, refused: bool) {
        if refused {
            self.at.get_or_insert_with(|| Instant::now() + self.pause);
        } else {
            *self = Self::default();
        }
    }
}
