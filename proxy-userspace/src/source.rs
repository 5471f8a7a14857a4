//! The source of objects: an API server, or a directory of manifests that plays one. Both give one
//! stream of updates.

mod api_server;
mod args;
mod events;
pub mod manifests;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;

use crate::model::{Connection, Invalid, ObjectRef, State, Update};

pub use args::{Ranges, SourceArgs, SourceSettings};
pub use events::events;

/// Capacity of the queue of updates that wait to be applied.
const QUEUE: usize = 4096;
/// Time limit for the first complete list of all objects.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts to watch; the first [`Update::Synced`] comes when everything was listed once. The watch
/// ends when the receiver is dropped.
///
/// # Errors
/// On faults that waiting does not mend, for example a kubeconfig or directory that is absent.
pub async fn spawn(settings: SourceSettings) -> Result<mpsc::Receiver<Update>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let updates_tx = Updates {
        sender,
        warned: BTreeMap::new(),
    };
    match settings {
        SourceSettings::ApiServer { kubeconfig } => {
            api_server::spawn(kubeconfig, updates_tx).await?
        }
        SourceSettings::Manifests { dir, ranges } => manifests::spawn(dir, ranges, updates_tx)?,
    }
    Ok(receiver)
}

/// Returns all objects, listed once.
///
/// # Errors
/// If [`spawn`] fails, and where the source does not answer in time.
pub async fn list(settings: SourceSettings) -> Result<State> {
    let mut updates = spawn(settings).await?;
    let mut state = State::default();
    let listed = async {
        while !state.synced {
            let Some(update) = updates.recv().await else {
                bail!("the source of objects has ended")
            };
            _ = state.apply(update);
            if let Connection::Down(error) = &state.connection {
                bail!("reach the API server: {error}");
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, listed)
        .await
        .context("list all objects: no answer in time")??;
    Ok(state)
}

/// The sender of updates. Warns of an invalid object once, not each time that it is seen.
struct Updates {
    sender: mpsc::Sender<Update>,
    warned: BTreeMap<ObjectRef, Vec<Invalid>>,
}

/// The receiver of the updates was dropped.
struct Closed;

impl Updates {
    async fn send(&mut self, update: Update) -> Result<(), Closed> {
        if let Some(object) = update.object() {
            match &update {
                Update::Invalid(invalid) => self.warn(
                    object,
                    std::slice::from_ref(invalid),
                    "; it is left out until that is corrected",
                ),
                Update::Flawed(_, flaws) => self.warn(object, flaws, ""),
                Update::Apply(_) | Update::Delete(_) | Update::Synced | Update::Connection(_) => {
                    _ = self.warned.remove(&object)
                }
            }
        }
        self.sender.send(update).await.map_err(|_| Closed)
    }

    fn warn(&mut self, object: ObjectRef, wrong: &[Invalid], consequence: &str) {
        if self
            .warned
            .get(&object)
            .is_none_or(|before| before != wrong)
        {
            wrong
                .iter()
                .for_each(|invalid| tracing::warn!("{invalid}{consequence}"));
            self.warned.insert(object, wrong.to_vec());
        }
    }
}
