//! The eBPF object inside the agent, and the maps of an earlier agent that it takes over.
//!
//! aya adopts pinned maps unchecked, so the definitions are compared first; a map that differs is
//! made anew and filled from the old one.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, MapInfo};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use proxy_common::maps::{self, Lifetime};
use tracing::{debug, info, warn};

use super::raw;
use super::sockets::Globals;
use super::statedir::{StateDir, names_in, remove};
use crate::place::policies::Room;

/// The object, as built for this agent.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portway-ebpf"));

/// Returns the names of the maps that outlive an agent.
fn pinned() -> impl Iterator<Item = &'static str> {
    maps::ALL
        .iter()
        .filter(|(_, lifetime)| *lifetime != Lifetime::Unpinned)
        .map(|(name, _)| *name)
}

/// Returns true for a map that each agent makes anew.
fn is_renewed(map: &str) -> bool {
    maps::ALL.contains(&(map, Lifetime::Renewed))
}

/// Migrated maps that begin with the earlier agent's content: the device of each pod.
const KNOWN: [&str; 2] = [maps::PODS.v4, maps::PODS.v6];

/// Maps with values that have grown at their end since earlier versions: an earlier agent's values
/// are taken over, with zeros behind.
const GROWN: [&str; 2] = [maps::DEVICES, maps::CONFIG];

/// The properties of a map that must be equal for it to be adopted as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Definition {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// Maps that were made anew while the programs of an earlier agent still use the old ones.
#[derive(Debug, Default)]
pub struct Migration {
    names: Vec<&'static str>,
}

/// Loads the object with the maps that are pinned in `dir`, and pins those that are not. The
/// programs log up to `log_level`, and get `globals`; the policy tables have the size `room`.
pub fn load(
    dir: &StateDir,
    object: &[u8],
    log_level: u8,
    globals: Option<&Globals>,
    room: Room,
) -> Result<(Ebpf, Migration)> {
    for name in names_in(&dir.maps())?
        .iter()
        .filter(|name| name.ends_with("-new"))
    {
        remove(&dir.map(name))?;
    }
    let definitions = definitions(object)?;
    let (mut loader, mut migration) = (EbpfLoader::new(), Migration::default());
    for name in pinned() {
        let wanted = *definitions
            .get(name)
            .with_context(|| format!("the eBPF object has no map {name}"))?;
        if is_renewed(name) && dir.map(name).exists() || !adoptable(dir, name, wanted)? {
            loader.map_pin_path(name, dir.incoming(name));
            migration.names.push(name);
        } else {
            loader.map_pin_path(name, dir.map(name));
        }
    }
    loader
        .map_max_entries(maps::CLASSES4, room.nodes)
        .map_max_entries(maps::MATRIX, room.chunks);
    loader.override_global(super::packet_log::LEVEL, &log_level, true);
    if let Some(globals) = globals {
        globals.set(&mut loader);
    }
    let ebpf = loader.load(object).context("load the eBPF object")?;
    migration.copy(dir, raw::Put::Always)?;
    Ok((ebpf, migration))
}

impl Migration {
    /// Copies the elements that the old maps got meanwhile, and puts the new maps in their place.
    /// To be called once no program uses the old ones.
    pub fn finish(self, dir: &StateDir) -> Result<()> {
        self.copy(dir, raw::Put::IfAbsent)?;
        for name in self.names {
            std::fs::rename(dir.incoming(name), dir.map(name))
                .with_context(|| format!("put the new map {name} in its place"))?;
            if is_renewed(name) {
                debug!(map = name, "the map was made anew");
            } else {
                info!(map = name, "the map was made anew");
            }
        }
        Ok(())
    }

    fn copy(&self, dir: &StateDir, how: raw::Put) -> Result<()> {
        for name in &self.names {
            // What the successor has taken out of its own is not to come back.
            let wanted = !is_renewed(name) || KNOWN.contains(name) && how == raw::Put::Always;
            if !wanted {
                continue;
            }
            let old = MapData::from_pin(dir.map(name))
                .with_context(|| format!("open the old map {name}"))?;
            let new = MapData::from_pin(dir.incoming(name))
                .with_context(|| format!("open the new map {name}"))?;
            let (from, to) = (old.info()?, new.info()?);
            // An index may have another meaning in another version.
            if *name == maps::COUNTERS && from.max_entries() != to.max_entries() {
                info!(
                    map = name,
                    "the counters of this version differ; they start at zero"
                );
                continue;
            }
            let grown = GROWN.contains(name) && from.value_size() < to.value_size();
            if from.key_size() != to.key_size() || from.value_size() != to.value_size() && !grown {
                warn!(
                    map = name,
                    "the layout of the map has changed; it starts empty"
                );
                continue;
            }
            let lost =
                raw::copy(&old, &new, how).with_context(|| format!("copy the map {name}"))?;
            if lost > 0 {
                warn!(
                    map = name,
                    lost, "the new map has no room for all elements of the old"
                );
            }
        }
        Ok(())
    }
}

/// Returns true if a map may be pinned at its own place: nothing is there, or a map with the wanted
/// definition.
fn adoptable(dir: &StateDir, name: &'static str, wanted: Definition) -> Result<bool> {
    let path = dir.map(name);
    if !path.exists() {
        return Ok(true);
    }
    let found = Definition::of(
        &MapInfo::from_pin(&path).with_context(|| format!("look at {}", path.display()))?,
    )?;
    if found != wanted {
        info!(
            map = name,
            ?found,
            ?wanted,
            "the definition of the pinned map differs"
        );
    }
    Ok(found == wanted)
}

impl Definition {
    fn of(info: &MapInfo) -> Result<Self> {
        Ok(Self {
            kind: info.map_type().context("name the type of a map")? as u32,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

fn definitions(object: &[u8]) -> Result<BTreeMap<String, Definition>> {
    let object = Object::parse(object).context("parse the eBPF object")?;
    let definition = |map: &aya_obj::Map| Definition {
        kind: map.map_type(),
        key: map.key_size(),
        value: map.value_size(),
        entries: map.max_entries(),
        flags: map.map_flags(),
    };
    Ok(object
        .maps
        .iter()
        .map(|(name, map)| (name.clone(), definition(map)))
        .collect())
}

/// Takes a map out of the loaded object.
pub fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the eBPF object has no map {name}"))
}
