//! The kernel's side: loads and attaches the programs, holds the maps, applies what `place`
//! planned.
//!
//! Everything is pinned below one state directory: killing the agent stops nothing, and its
//! successor takes over what it finds.

mod adopt;
mod attached;
mod attachment;
mod batch;
mod cgroups;
mod clock;
mod denials;
mod flowtable;
mod hooks;
mod load;
mod maps;
mod object;
mod packet_log;
mod peers;
mod policies;
mod programs;
mod raw;
mod readers;
mod sockets;
mod statedir;
mod unload;
mod verdicts;
mod wanted;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use proxy_common::net::{AddressFlags, Device, IfIndex};

pub use attached::tcx_programs;
pub use attachment::{AttachPoint, Attachment};
pub use batch::Walk;
pub use cgroups::{Cgroup, CgroupChoice};
pub use clock::{Clock, hz};
pub use denials::{Denials, Denied};
pub use flowtable::FlowTable;
pub use hooks::program_id;
pub use maps::{FamilyMaps, Maps};
pub use packet_log::PacketLog;
pub use peers::PeerTable;
pub use policies::PolicyMaps;
pub use programs::{Verified, programs_in};
pub use readers::wait as wait_for_programs;
pub use sockets::{
    Globals, PROGRAMS as SOCKET_PROGRAMS, SocketHooks, attached as socket_hooks,
    attached_to as sockets_of,
};
pub use statedir::{StateDir, names_in};
pub use unload::unload;
pub use verdicts::{NodeVerdicts, TableVerdicts};
pub use wanted::XdpChoice;

use crate::contents::Contents;
use crate::devices::Devices;
use crate::place::policies::{PolicyWrite, Room};
use crate::place::{Actual, Entry, Side, Write};
use crate::tracked::Tracked;
use hooks::Hooks;
use load::{lift_memory_limit, load, load_xdp};
use object::{Migration, OBJECT};
use statedir::Lock;
use wanted::{wanted, warn_of_partial_checksums};

/// The object to load, and the directory to pin it in.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory on bpffs.
    pub state_dir: PathBuf,
    /// Mode in which XDP is attached.
    pub xdp: XdpChoice,
    /// The cgroup that gets the socket hooks.
    pub cgroup: CgroupChoice,
}

/// The loaded programs and their maps.
pub struct Dataplane {
    dir: StateDir,
    xdp: XdpChoice,
    ebpf: Ebpf,
    maps: Maps,
    policies: PolicyMaps,
    hooks: Hooks,
    sockets: SocketHooks,
    migration: Option<Migration>,
    log: Option<PacketLog>,
    denials: Option<Denials>,
    first: bool,
    _lock: Lock,
}

impl Dataplane {
    /// Loads the programs over new maps or those of an earlier agent. Nothing is attached yet.
    ///
    /// # Errors
    /// If another agent has the directory, or the kernel refuses a program.
    pub fn open(options: &Options) -> Result<Self> {
        Self::open_sized(options, Room::default())
    }

    /// Opens it with policy tables of this size.
    ///
    /// # Errors
    /// As above.
    pub fn open_sized(options: &Options, room: Room) -> Result<Self> {
        lift_memory_limit();
        let dir = StateDir::create(&options.state_dir)?;
        let lock = dir.lock()?;
        let first = names_in(&dir.hooks())?.is_empty();
        let level = packet_log::level();
        let globals = Globals::here();
        let (mut ebpf, migration) = object::load(&dir, OBJECT, level, globals.as_ref().ok(), room)?;
        let maps = Maps::open(|name| object::take(&mut ebpf, name))?;
        let policies = PolicyMaps::open(|name| object::take(&mut ebpf, name))?;
        for name in AttachPoint::tc_programs() {
            load(&mut ebpf, name)?;
        }
        load(&mut ebpf, clock::PROGRAM)?;
        clock::pin(&mut ebpf, &dir)?;
        let xdp_program = load_xdp(&mut ebpf, options.xdp)?;
        let denials = Denials::new(&mut ebpf)?;
        let hooks = Hooks::new(dir.clone(), xdp_program);
        let sockets = SocketHooks::prepare(&mut ebpf, &options.cgroup, &globals);
        let log = if level > 0 {
            Some(PacketLog::new(&mut ebpf)?)
        } else {
            None
        };
        Ok(Self {
            dir,
            xdp: options.xdp,
            ebpf,
            maps,
            policies,
            hooks,
            sockets,
            migration: Some(migration),
            log,
            denials: Some(denials),
            first,
            _lock: lock,
        })
    }

    /// Opens the same maps again, for a task of their own.
    pub fn open_maps(&self) -> Result<Maps> {
        Maps::from_paths(|name| {
            let incoming = self.dir.incoming(name);
            if incoming.exists() {
                incoming
            } else {
                self.dir.map(name)
            }
        })
    }

    /// Returns the log of the programs, if the filter asks for it, for a task of its own. `None`
    /// the second time.
    pub fn take_log(&mut self) -> Option<PacketLog> {
        self.log.take()
    }

    /// Returns the stream of connections that NetworkPolicy denies, for a task of its own. `None`
    /// the second time.
    pub fn take_denials(&mut self) -> Option<Denials> {
        self.denials.take()
    }

    /// Returns true if no earlier agent has left anything attached: then no program has followed
    /// the connections that exist.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// P25: lets the programs follow the connections of pods that the host's own connection
    /// tracking knows; how many they did not yet.
    ///
    /// # Errors
    /// If those cannot be read, or the flow tables have no room.
    pub fn adopt(&mut self, contents: &Contents, connections: &[Tracked]) -> Result<usize> {
        let now = Clock::from_pins(&self.dir)?.now()?;
        let is_host = |addr| {
            contents
                .addresses
                .get(&addr)
                .is_some_and(|flags| flags.has(AddressFlags::HOST))
        };
        let mut adopted = 0;
        for tracked in connections {
            if tracked.concerns(|addr| contents.pods.contains_key(&addr)) {
                adopted += usize::from(adopt::adopt(
                    &mut self.maps,
                    tracked,
                    tracked.is_own(is_host),
                    now,
                )?);
            }
        }
        Ok(adopted)
    }

    /// Reads the contents of the kernel's maps.
    pub fn read(&self) -> Result<Actual> {
        self.maps.read().context("read the maps back")
    }

    /// Applies writes in their order and notes in `actual` those that the kernel took. A refused
    /// one costs what refers to it, nothing else.
    pub fn apply(&mut self, writes: Vec<Write>, actual: &mut Actual) -> Vec<anyhow::Error> {
        let (mut errors, mut incomplete) = (Vec::new(), BTreeSet::new());
        for write in writes {
            if depends_on(&write).is_some_and(|generation| incomplete.contains(&generation)) {
                continue;
            }
            match self.maps.write(&write) {
                Ok(()) => actual.apply(write),
                Err(error) => {
                    errors.push(error);
                    incomplete.extend(part_of(&write));
                }
            }
        }
        errors
    }

    /// Returns the size of the policy tables.
    pub fn policy_room(&self) -> Room {
        self.policies.room()
    }

    /// Applies writes to the policy tables in their order, up to the first that the kernel refuses;
    /// what is left is given back with the error, for the order is what keeps verdicts right (P32).
    pub fn apply_policies(
        &mut self,
        mut writes: VecDeque<PolicyWrite>,
    ) -> (VecDeque<PolicyWrite>, Option<anyhow::Error>) {
        while let Some(write) = writes.front() {
            if let Err(error) = self.policies.write(write) {
                return (writes, Some(error));
            }
            writes.pop_front();
        }
        (writes, None)
    }

    /// Returns true if a device lacks a program that it should have: [`Self::attach`] tries again.
    pub fn was_refused(&self) -> bool {
        self.hooks.was_refused()
    }

    /// Brings the programs to the devices that were found, and lets go of those that are not ours
    /// any more. Gives what was refused now, or in other words than the last time.
    pub fn attach(&mut self, devices: &Devices) -> Result<Vec<anyhow::Error>> {
        let wanted = wanted(devices, self.xdp);
        let before = self.hooks.attached().clone();
        let refused = self
            .hooks
            .update(&mut self.ebpf, &wanted, &devices.present)?;
        self.hooks
            .attached()
            .difference(&before)
            .for_each(|hook| warn_of_partial_checksums(*hook, devices));
        self.sockets
            .attach(&mut self.ebpf, &self.dir)
            .context("attach the socket hooks")?;
        if let Some(migration) = self.migration.take() {
            migration
                .finish(&self.dir)
                .context("put new maps in the place of old ones")?;
        }
        Ok(refused)
    }

    /// Returns the flags of a device that follow from the programs attached there.
    pub fn device_flags(&self, device: IfIndex) -> u32 {
        let native = Attachment {
            point: AttachPoint::XdpNative,
            device,
        };
        if self.hooks.attached().contains(&native) {
            Device::XDP_TARGET
        } else {
            0
        }
    }

    /// Returns the state of the socket hooks.
    pub fn sockets(&self) -> &SocketHooks {
        &self.sockets
    }

    /// The hooks at which programs run.
    pub fn hooks(&self) -> &BTreeSet<Attachment> {
        self.hooks.attached()
    }
}

/// The generation that a write makes visible to packets.
fn depends_on(write: &Write) -> Option<(Side, u32)> {
    match write {
        Write::Put(Entry::Service(frontend, service)) => {
            Some((frontend.addr.into(), service.generation))
        }
        Write::Put(_) | Write::Delete(_) => None,
    }
}

/// The generation that is incomplete without a write.
fn part_of(write: &Write) -> Option<(Side, u32)> {
    match write {
        Write::Put(Entry::Backend(key, _)) => Some((key.side, key.generation)),
        Write::Put(Entry::Maglev(key, _)) => Some((key.into(), key.generation)),
        Write::Put(Entry::Endpoint(endpoint, _)) => {
            Some((endpoint.addr.ip().into(), endpoint.generation))
        }
        Write::Put(_) | Write::Delete(_) => None,
    }
}
