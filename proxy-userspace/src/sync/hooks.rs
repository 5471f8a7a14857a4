//! The time at which refused hooks are tried again, with or without updates.

use std::time::Duration;

use tokio::time::Instant;

use super::RETRY;

/// The retry of refused hooks: after a pause that doubles up to a minute.
pub struct HookRetry {
    /// Time of the next attempt; `None` while no hook is refused.
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

    /// Starts an attempt and doubles the pause.
    pub fn begin(&mut self) {
        *self = Self {
            at: None,
            pause: (self.pause * 2).min(Self::MOST),
        };
    }

    /// Plans the next attempt if hooks were refused, else resets the pause.
    pub fn wait(&mut self, refused: bool) {
        if refused {
            self.at.get_or_insert_with(|| Instant::now() + self.pause);
        } else {
            *self = Self::default();
        }
    }
}
