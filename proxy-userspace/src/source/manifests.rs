//! Plays the API server from a directory of YAML files: reads and watches them, allocates cluster
//! IPs and nodePorts, resolves selectors to EndpointSlices.

mod allocate;
mod endpoints;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::args::Ranges;
use super::{Closed, Updates};
use crate::model::{
    Connection, Kind, Labels, Namespace, Object, ObjectName, ObjectRef, State, Update,
};

pub use read::{Directory, Manifest};

/// Pause between a change and reading: editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(60);
/// Interval after which changes are seen that inotify does not report (network file systems,
/// targets of links elsewhere).
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Starts to read and watch; fails if the directory cannot be read or watched at all.
pub(super) fn spawn(dir: PathBuf, ranges: Ranges, updates_tx: Updates) -> Result<()> {
    let (touch, touched) = mpsc::channel(1);
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |e| !e.kind.is_access()) {
            // A full queue means that a look is due anyway.
            _ = touch.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).context("set up watching of files")?;
    watcher
        .watch(&dir, RecursiveMode::Recursive)
        .with_context(|| format!("watch directory {}", dir.display()))?;
    let mut directory = Directory::new(dir);
    directory.read()?;
    tokio::spawn(follow(directory, ranges, updates_tx, touched, watcher));
    Ok(())
}

/// Sends the objects of the files, then their changes. Changes are seen while `_watcher` lives.
async fn follow(
    mut directory: Directory,
    ranges: Ranges,
    mut updates_tx: Updates,
    mut touched: mpsc::Receiver<()>,
    _watcher: impl Watcher,
) {
    let mut sent = BTreeMap::new();
    let mut connection = Connection::Up;
    let first = [Update::Connection(connection.clone())];
    let synced = [Update::Synced];
    let all = first
        .into_iter()
        .chain(changes(&mut sent, &directory, &ranges))
        .chain(synced);
    if send(&mut updates_tx, all.collect()).await.is_err() {
        return;
    }
    loop {
        _ = tokio::time::timeout(LOOK_AGAIN, touched.recv()).await;
        tokio::time::sleep(SETTLE).await;
        _ = touched.try_recv();
        let now = match directory.read() {
            Ok(()) => Connection::Up,
            Err(error) => Connection::Down(format!("{error:#}").into()),
        };
        let mut updates = changes(&mut sent, &directory, &ranges);
        if now != connection {
            connection = now;
            updates.push(Update::Connection(connection.clone()));
        }
        if send(&mut updates_tx, updates).await.is_err() {
            return;
        }
    }
}

async fn send(updates_tx: &mut Updates, updates: Vec<Update>) -> Result<(), Closed> {
    for update in updates {
        updates_tx.send(update).await?;
    }
    Ok(())
}

/// Returns the differences to what was sent before.
fn changes(
    sent: &mut BTreeMap<ObjectRef, Update>,
    directory: &Directory,
    ranges: &Ranges,
) -> Vec<Update> {
    let now: BTreeMap<_, _> = directory
        .updates(ranges)
        .into_iter()
        .filter_map(|update: Update| Some((update.object()?, update)))
        .collect();
    let gone = sent
        .keys()
        .filter(|object| !now.contains_key(object))
        .cloned()
        .map(Update::Delete);
    let new = now
        .iter()
        .filter(|(object, update)| sent.get(object) != Some(update))
        .map(|(_, update)| update.clone());
    let updates = new.chain(gone).collect();
    *sent = now;
    updates
}

impl Directory {
    /// Returns one update for each object of the files, completed as by the API server and its
    /// controllers.
    pub fn updates(&self, ranges: &Ranges) -> Vec<Update> {
        let mut updates: Vec<_> = self.problems().into_iter().map(Update::Invalid).collect();
        let mut services = Vec::new();
        for manifest in self.manifests() {
            match manifest {
                Manifest::Service(service) => services.push((**service).clone()),
                Manifest::Other(update) => updates.push((**update).clone()),
            }
        }
        updates.extend(allocate::allocate(services, ranges));
        let slices = endpoints::resolve(&state_of(&updates));
        updates.extend(
            slices
                .into_iter()
                .map(|(name, slice)| Update::Apply(Object::EndpointSlice(name, slice))),
        );
        let namespaces = referenced(&updates);
        updates.extend(namespaces);
        updates
    }
}

/// Returns the namespaces that objects are in but no file has. A cluster has these too, since an
/// object needs its namespace.
fn referenced(updates: &[Update]) -> Vec<Update> {
    let objects: BTreeSet<_> = updates.iter().filter_map(Update::object).collect();
    let names: BTreeSet<_> = objects
        .iter()
        .map(|object| &object.name.namespace)
        .filter(|name| !name.is_empty())
        .collect();
    let named = names.into_iter().map(|name| ObjectRef {
        kind: Kind::Namespace,
        name: ObjectName::cluster(name),
    });
    let missing = named.filter(|namespace| !objects.contains(namespace));
    let made = |ObjectRef { name, .. }| {
        Object::Namespace(
            ObjectName::clone(&name),
            Namespace::new(&name.name, Labels::new()),
        )
    };
    missing
        .map(|namespace| Update::Apply(made(namespace)))
        .collect()
}

/// Returns the state after these updates.
fn state_of(updates: &[Update]) -> State {
    let mut state = State::default();
    for update in updates {
        _ = state.apply(update.clone());
    }
    state
}
