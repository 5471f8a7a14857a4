//! The kernel's side: loads and attaches the programs, holds the maps, applies what `place`
//! planned.
//!
//! Everything is pinned below one state directory: killing the agent stops nothing, and its
//! successor takes over what it finds.

mod adopt;
mod attached;
mod batch;
mod cgroups;
mod clock;
mod denials;
mod flowtable;
mod hooks;
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

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, Xdp};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use proxy_common::net::{AddressFlags, Device, IfIndex};
use tracing::{debug, info, warn};

pub use attached::tcx_programs;
pub use batch::Walk;
pub use cgroups::{Cgroup, CgroupChoice};
pub use clock::{Clock, hz};
pub use denials::{Denials, Denied};
pub use flowtable::FlowTable;
pub use hooks::{AttachPoint, Attachment, program_id};
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

use crate::conntrack;
use crate::contents::Contents;
use crate::links::{Driver, Found};
use crate::place::policies::{PolicyWrite, Room};
use crate::place::{Actual, Entry, Side, Write};
use hooks::Hooks;
use object::{Migration, OBJECT};
use statedir::Lock;

/// The tc programs; each carries the name of its [`AttachPoint`].
const CLASSIFIERS: [AttachPoint; 4] = [
    AttachPoint::ToPod,
    AttachPoint::ToDevice,
    AttachPoint::FromPod,
    AttachPoint::FromDevice,
];
/// The XDP program for kernels and devices with frames of several buffers, and the one for others.
const XDP_PROGRAMS: [&str; 2] = ["portway_xdp_frags", "portway_xdp"];

/// Mode in which XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// In the driver of cards, nowhere else.
    Auto,
    /// In the driver of every device but tunnels.
    Native,
    /// In the stack.
    Generic,
    /// Not at all.
    Off,
}

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
        for point in CLASSIFIERS {
            load(&mut ebpf, point.name())?;
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

    /// The connections that NetworkPolicy denies, once; for a task of its own.
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
    pub fn adopt(&mut self, contents: &Contents) -> Result<usize> {
        let now = Clock::from_pins(&self.dir)?.now()?;
        let is_host = |addr| {
            contents
                .addresses
                .get(&addr)
                .is_some_and(|flags| flags.has(AddressFlags::HOST))
        };
        let mut adopted = 0;
        for tracked in conntrack::tracked()? {
            if tracked.concerns(|addr| contents.pods.contains_key(&addr)) {
                adopted += usize::from(adopt::adopt(
                    &mut self.maps,
                    &tracked,
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
    pub fn attach(&mut self, found: &Found) -> Result<Vec<anyhow::Error>> {
        let wanted = wanted_hooks(found, self.xdp);
        let before = self.hooks.attached().clone();
        let refused = self.hooks.update(&mut self.ebpf, &wanted, &found.present)?;
        self.hooks
            .attached()
            .difference(&before)
            .for_each(|hook| warn_of_partial_checksums(*hook, found));
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

    /// The flags of a device as they follow from what is attached there.
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

/// Which programs belong where.
fn wanted_hooks(found: &Found, xdp: XdpChoice) -> BTreeMap<Attachment, String> {
    let mut points: Vec<(AttachPoint, IfIndex)> = Vec::new();
    for device in found.links.pods.values().chain(&found.unclaimed) {
        points.extend([
            (AttachPoint::FromPod, *device),
            (AttachPoint::ToPod, *device),
        ]);
    }
    for (device, driver) in &found.drivers {
        points.push((AttachPoint::ToDevice, *device));
        if *driver != Driver::Loopback {
            points.push((AttachPoint::FromDevice, *device));
        }
        points.extend(xdp_point(xdp, *driver).map(|point| (point, *device)));
    }
    points
        .into_iter()
        .filter_map(|(point, device)| {
            Some((
                Attachment { point, device },
                found.names.get(&device)?.clone(),
            ))
        })
        .collect()
}

/// Native XDP belongs on cards: over a veth it breaks partial checksums and segmentation offload.
fn xdp_point(xdp: XdpChoice, driver: Driver) -> Option<AttachPoint> {
    match (xdp, driver) {
        (XdpChoice::Off, _)
        | (_, Driver::Tunnel | Driver::Loopback)
        | (XdpChoice::Auto, Driver::Software) => None,
        (XdpChoice::Auto, Driver::Card) | (XdpChoice::Native, _) => Some(AttachPoint::XdpNative),
        (XdpChoice::Generic, _) => Some(AttachPoint::XdpGeneric),
    }
}

/// Warns that XDP over a veth breaks packets of processes on this host: they carry half a checksum,
/// which XDP cannot tell from a whole one.
fn warn_of_partial_checksums(hook: Attachment, found: &Found) {
    let xdp = matches!(hook.point, AttachPoint::XdpNative | AttachPoint::XdpGeneric);
    if xdp && found.drivers.get(&hook.device) == Some(&Driver::Software) {
        let device = found
            .names
            .get(&hook.device)
            .map(String::as_str)
            .unwrap_or_default();
        warn!(
            device,
            "XDP on a device without hardware spoils packets whose checksum their sender left to it; use --xdp auto or off"
        );
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?;
    match program {
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        Program::Xdp(program) => Xdp::load(program),
        _ => anyhow::bail!("the program {name} is of an unknown type"),
    }
    .with_context(|| format!("load the program {name}"))?;
    if let Some(Ok(info)) = ebpf.program(name).map(info) {
        info!(
            program = name,
            id = info.id(),
            instructions = info.verified_instruction_count(),
            "the verifier took it"
        );
    }
    Ok(())
}

/// Loads the XDP program that this kernel takes; `xdp.frags` is EINVAL before 5.18.
fn load_xdp(ebpf: &mut Ebpf, xdp: XdpChoice) -> Result<&'static str> {
    let [frags, plain] = XDP_PROGRAMS;
    if xdp == XdpChoice::Off {
        return Ok(plain);
    }
    match load(ebpf, frags) {
        Ok(()) => Ok(frags),
        Err(error) => {
            debug!(
                error = format!("{error:#}"),
                "this kernel does not take the XDP program for frames of several buffers"
            );
            load(ebpf, plain).map(|()| plain)
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
fn info(program: &Program) -> Result<aya::programs::ProgramInfo> {
    match program {
        Program::SchedClassifier(program) => program.info(),
        Program::Xdp(program) => program.info(),
        _ => anyhow::bail!("of an unknown type"),
    }
    .context("ask for a program's facts")
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK. Later kernels do not look at it, so a refusal
/// does not matter there.
fn lift_memory_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "the limit of locked memory stays as it is");
    }
}
