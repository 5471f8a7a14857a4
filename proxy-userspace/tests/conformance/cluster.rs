//! The objects of a case, as the API server would report them one by one.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use portway::model::k8s::seen_json;
use portway::model::{Changed, State, Update};
use serde_json::Value;

use crate::cases::Event;

/// Returns a cluster with these objects.
pub fn of(objects: &[Value]) -> Result<State> {
    let mut state = State::default();
    for object in objects {
        _ = state.apply(seen_json(object.clone())?);
    }
    _ = state.apply(Update::Synced);
    Ok(state)
}

/// Applies a change.
pub fn change(state: &mut State, event: &Event) -> Result<Changed> {
    Ok(state.apply(update(event)?))
}

/// Returns a source's update for a change.
pub fn update(event: &Event) -> Result<Update> {
    Ok(
        match (event.op.as_str(), seen_json(event.object.clone())?) {
            ("add" | "update", update) => update,
            ("delete", Update::Apply(object) | Update::Flawed(object, _)) => {
                Update::Delete(object.reference())
            }
            ("delete", Update::Invalid(invalid)) => Update::Delete(invalid.object),
            ("delete", update) => update,
            (other, _) => bail!("an unknown change `{other}`"),
        },
    )
}

/// Applies changes in order. Returns true if there was one, and the Services with changed slices.
pub fn changes(state: &mut State, events: &[Event]) -> Result<(bool, BTreeSet<String>)> {
    let (mut any, mut services) = (false, BTreeSet::new());
    for event in events {
        if change(state, event)? == Changed::Yes {
            any = true;
            services.extend(service_of(&event.object));
        }
    }
    Ok((any, services))
}

/// `namespace/name` of the Service that a slice belongs to.
fn service_of(slice: &Value) -> Option<String> {
    let metadata = &slice["metadata"];
    let name = metadata["labels"]["kubernetes.io/service-name"].as_str()?;
    Some(format!("{}/{name}", metadata["namespace"].as_str()?))
}
