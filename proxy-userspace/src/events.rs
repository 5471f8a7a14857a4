//! Warnings about objects: to the log, and as Events to the API server if there is one; each cause
//! once.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tracing::warn;

use crate::model::ObjectRef;

/// A problem of an object, for its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// The object.
    pub object: ObjectRef,
    /// The Event's reason: one CamelCase word.
    pub reason: &'static str,
    /// The Event's action, likewise.
    pub action: &'static str,
    /// One sentence; at most 1 kB is kept.
    pub note: String,
}

/// The destination of warnings: Events, or without an API server lines of the log only.
#[derive(Clone, Debug, Default)]
pub struct Events {
    sender: Option<mpsc::Sender<Warning>>,
}

impl Events {
    /// Returns a destination that also sends the warnings to a channel.
    pub fn to(sender: mpsc::Sender<Warning>) -> Self {
        Self {
            sender: Some(sender),
        }
    }

    fn report(&self, warning: Warning) {
        warn!(
            reason = warning.reason,
            "{}: {}", warning.object, warning.note
        );
        if let Some(sender) = &self.sender
            && sender.try_send(warning).is_err()
        {
            warn!("the queue of Events to the API server is full; this warning is in the log only");
        }
    }
}

/// The warnings of one origin that hold now.
#[derive(Debug)]
pub struct Warnings {
    events: Events,
    reported: BTreeSet<Warning>,
}

impl Warnings {
    /// Returns an origin without warnings.
    pub fn new(events: Events) -> Self {
        Self {
            events,
            reported: BTreeSet::new(),
        }
    }

    /// Sets the warnings that hold now and reports those that are new. One that was gone and comes
    /// back is reported again.
    pub fn are(&mut self, now: BTreeSet<Warning>) {
        now.difference(&self.reported)
            .for_each(|warning| self.events.report(warning.clone()));
        self.reported = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectName};

    #[test]
    fn each_cause_is_told_once_and_again_only_after_it_was_gone() {
        let warning = |note: &str| Warning {
            object: ObjectRef {
                kind: Kind::Service,
                name: ObjectName::new("shop", "web"),
            },
            reason: "Reason",
            action: "Act",
            note: note.to_owned(),
        };
        let (sender, mut told) = mpsc::channel(8);
        let mut warnings = Warnings::new(Events::to(sender));
        let mut told_after = |now: &[&str]| {
            warnings.are(now.iter().map(|note| warning(note)).collect());
            std::iter::from_fn(|| told.try_recv().ok())
                .map(|w| w.note)
                .collect::<Vec<_>>()
        };
        assert_eq!(told_after(&["a"]), ["a"]);
        assert_eq!(told_after(&["a", "b"]), ["b"]);
        assert_eq!(told_after(&["b"]), [""; 0]);
        assert_eq!(told_after(&["a", "b"]), ["a"]);
    }
}
