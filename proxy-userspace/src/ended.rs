//! The reasons for which flows and sockets end.

/// The reason for which a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ended {
    /// No packet for too long.
    Idle,
    /// No answer for too long.
    Unanswered,
    /// Both ends have closed, or one has reset it.
    Closed,
    /// UDP, and its backend does not serve any more (V14).
    BackendGone,
    /// Half-open, and evicted in favour of newer ones.
    Evicted,
}

impl Ended {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::Idle,
        Self::Unanswered,
        Self::Closed,
        Self::BackendGone,
        Self::Evicted,
    ];

    /// Its stable name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Unanswered => "unanswered",
            Self::Closed => "closed",
            Self::BackendGone => "backend_gone",
            Self::Evicted => "evicted",
        }
    }
}
