//! The loaded programs of a state directory, and the verifier's figures about them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};

use super::attachment::AttachPoint;
use super::load::XDP_PROGRAMS;
use super::statedir::{StateDir, names_in};
use super::{clock, sockets};

/// The kernel keeps so many bytes of a program's name.
const NAME: usize = 15;

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// Its id in the kernel.
    pub id: u32,
    /// Instructions that the verifier walked through (5.16).
    pub instructions: Option<u32>,
}

/// Returns the programs that are pinned in `dir` or use a map that is, by their ids: those at
/// hooks, and those that a running agent keeps ready. Without CAP_SYS_ADMIN, as in the DaemonSet's
/// container, the kernel lists no programs, and only the pinned ones are found.
pub fn programs_in(dir: &StateDir) -> Result<Vec<Verified>> {
    let maps = map_ids(dir)?;
    // One that went while it was looked at is none.
    let using = loaded_programs().flatten().filter(|program: &ProgramInfo| {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        used.iter().any(|id| maps.contains(id))
    });
    let all = program_pins(dir)?
        .into_iter()
        .chain(using)
        .map(|program| (program.id(), Verified::from(&program)));
    Ok(all.collect::<BTreeMap<_, _>>().into_values().collect())
}

fn map_ids(dir: &StateDir) -> Result<BTreeSet<u32>> {
    names_in(&dir.maps())?
        .iter()
        .map(|name: &String| {
            Ok(MapInfo::from_pin(dir.map(name))
                .with_context(|| format!("look at the map {name}"))?
                .id())
        })
        .collect()
}

fn program_pins(dir: &StateDir) -> Result<Vec<ProgramInfo>> {
    names_in(&dir.programs())?
        .iter()
        .map(|name: &String| {
            ProgramInfo::from_pin(dir.programs().join(name))
                .with_context(|| format!("look at the program {name}"))
        })
        .collect()
}

impl From<&ProgramInfo> for Verified {
    fn from(program: &ProgramInfo) -> Self {
        let name = full_name(&String::from_utf8_lossy(program.name()));
        Self {
            name,
            id: program.id(),
            instructions: program.verified_instruction_count(),
        }
    }
}

/// The name that the kernel has cut off.
fn full_name(kernel: &str) -> String {
    let ours = AttachPoint::tc_programs()
        .chain(XDP_PROGRAMS)
        .chain(sockets::PROGRAMS)
        .chain([clock::PROGRAM]);
    let mut same = ours.filter(|name| name.get(..NAME).unwrap_or(name) == kernel);
    same.next().unwrap_or(kernel).to_owned()
}

#[cfg(test)]
mod tests {
    use super::full_name;

    #[test]
    fn a_long_name_is_whole_again_and_a_strange_one_stays() {
        assert_eq!(full_name("portway_xdp_fra"), "portway_xdp_frags");
        assert_eq!(full_name("portway_xdp"), "portway_xdp");
        assert_eq!(full_name("of_next_version"), "of_next_version");
    }
}
