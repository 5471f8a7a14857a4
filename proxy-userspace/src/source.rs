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

/// Updates that may wait for the one who applies them.
const QUEUE: usize = 4096;
/// The longest that a source may take to list everything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts to watch; the first [`Update::Synced`] comes when everything was listed once.
///
/// Fails on what cannot get better by waiting: no such kubeconfig or directory. Ends when the receiver is dropped.
pub async fn spawn(settings: SourceSettings) -> Result<mpsc::Receiver<Update>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let news = News {
        sender,
        warned: BTreeMap::new(),
    };
    match settings {
        SourceSettings::ApiServer { kubeconfig } => api_server::spawn(kubeconfig, news).await?,
        SourceSettings::Manifests { dir, ranges } => manifests::spawn(dir, ranges, news)?,
    }
    Ok(receiver)
}

/// The objects, once all are listed.
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

/// The sending end: warns once of what is wrong with an object, not each time that it is seen.
struct News {
    sender: mpsc::Sender<Update>,
    warned: BTreeMap<ObjectRef, Vec<Invalid>>,
}

/// Nobody listens any more.
struct Closed;

impl News {
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
