//! The socket hooks: pinned links to the cgroup of the processes that they serve.
//!
//! If they cannot be attached, the agent goes on without them and logs the error. A program that
//! replaces an earlier agent's does so in one step.

mod globals;
mod link;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use tracing::{info, warn};

use super::cgroups::{Cgroup, CgroupChoice, path_of};
use super::statedir::{StateDir, names_in, remove};
use link::{Replaced, cut, facts, open, replace};

pub use globals::Globals;

/// The programs; each carries the name of its place, and so does its pin. Who restores a name comes
/// before who makes it needed.
pub const PROGRAMS: [&str; 8] = [
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// The state of the socket hooks.
#[derive(Debug)]
pub enum SocketHooks {
    /// They are loaded; they are attached once the tables are filled.
    Ready(Cgroup),
    /// They are attached.
    Attached,
    /// They are not attached, for this reason.
    Absent(String),
}

impl SocketHooks {
    /// Finds the cgroup and has the verifier take the programs; what does not succeed is said in
    /// the log.
    pub fn prepare(ebpf: &mut Ebpf, choice: &CgroupChoice, globals: &Result<Globals>) -> Self {
        if *choice == CgroupChoice::Off {
            info!("socket hooks are off: processes of this node reach Services by packets");
            return Self::Absent("--cgroup off".into());
        }
        match find(choice, globals).and_then(|cgroup| load(ebpf).map(|()| cgroup)) {
            Ok(cgroup) => Self::Ready(cgroup),
            Err(error) => Self::absent(&error),
        }
    }

    fn absent(error: &anyhow::Error) -> Self {
        let why = format!("{error:#}");
        warn!(
            why,
            "no socket hooks: processes of this node reach Services by packets"
        );
        Self::Absent(why)
    }

    /// Attaches the programs, or takes those of an earlier agent away that are not wanted any more.
    /// Once is enough.
    pub fn attach(&mut self, ebpf: &mut Ebpf, dir: &StateDir) -> Result<()> {
        let cgroup = match self {
            Self::Attached => return Ok(()),
            Self::Absent(_) => return detach(dir),
            Self::Ready(cgroup) => cgroup,
        };
        *self = match attach_all(ebpf, dir, cgroup) {
            Ok(()) => {
                info!(cgroup = %cgroup, "socket hooks attached: processes of this node reach Services by their sockets");
                Self::Attached
            }
            // All or none: whoever is sent to a backend has to know it by the name that it asked
            // for.
            Err(error) => {
                detach(dir)?;
                Self::absent(&error)
            }
        };
        Ok(())
    }

    /// Returns the reason why they are not attached.
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Self::Absent(why) => Some(why),
            Self::Ready(_) | Self::Attached => None,
        }
    }
}

fn find(choice: &CgroupChoice, globals: &Result<Globals>) -> Result<Cgroup> {
    if let Err(error) = globals {
        bail!("{error:#}");
    }
    match choice {
        CgroupChoice::At(path) => Cgroup::at(path),
        CgroupChoice::Auto | CgroupChoice::Off => Cgroup::root(),
    }
}

fn load(ebpf: &mut Ebpf) -> Result<()> {
    for name in PROGRAMS {
        let program = program(ebpf, name)?;
        program
            .load()
            .with_context(|| format!("load the program {name}"))?;
        let facts = program.info().context("read the facts about a program")?;
        info!(
            program = name,
            id = facts.id(),
            instructions = facts.verified_instruction_count(),
            "program loaded"
        );
    }
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr> {
    match ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?
    {
        Program::CgroupSockAddr(program) => Ok(program),
        _ => bail!("the program {name} is of another type"),
    }
}

fn attach_all(ebpf: &mut Ebpf, dir: &StateDir, cgroup: &Cgroup) -> Result<()> {
    for name in PROGRAMS {
        attach(program(ebpf, name)?, cgroup, &dir.sockets().join(name))
            .with_context(|| format!("attach {name} to the cgroup {cgroup}"))?;
    }
    Ok(())
}

fn attach(program: &mut CgroupSockAddr, cgroup: &Cgroup, pin: &Path) -> Result<()> {
    if pin.exists() {
        let link = open(pin).context("open the pinned link")?;
        // aya does not replace programs of such links.
        if facts(&link)?.cgroup == cgroup.id
            && replace(&link, program.fd()?.as_fd())? == Replaced::Yes
        {
            return Ok(());
        }
        remove(pin)?;
    }
    let id = program.attach::<&File>(&cgroup.file, CgroupAttachMode::Single)?;
    let link = FdLink::try_from(program.take_link(id)?)
        .map_err(|_| anyhow!("this kernel has no links of cgroups (5.7)"))?;
    link.pin(pin).map(drop).context("pin the link")
}

/// Detaches the hooks of any agent. Connections go on: no hook sees packets of connected sockets.
pub fn detach(dir: &StateDir) -> Result<()> {
    let pins = names_in(&dir.sockets())?;
    // In the reverse order of attaching.
    let known = PROGRAMS
        .iter()
        .rev()
        .filter(|name| pins.iter().any(|pin| pin == *name))
        .map(|name| (*name).to_owned());
    let others = pins
        .iter()
        .filter(|pin| !PROGRAMS.contains(&pin.as_str()))
        .cloned();
    for name in known.chain(others).collect::<Vec<_>>() {
        let pin = dir.sockets().join(name);
        // Removing the pin alone ends a link some time later, in no certain order.
        if let Err(error) = open(&pin).and_then(|link| cut(&link)) {
            warn!(
                error = format!("{error:#}"),
                "cannot detach a socket hook; it ends shortly after its pin"
            );
        }
        remove(&pin)?;
    }
    if !pins.is_empty() {
        info!(hooks = pins.len(), "socket hooks detached");
    }
    Ok(())
}

/// Returns the names of the socket hooks of a state directory, with the ids of their programs.
pub fn attached(dir: &StateDir) -> Result<Vec<(String, Option<u32>)>> {
    Ok(names_in(&dir.sockets())?
        .into_iter()
        .map(|name| {
            let link = open(&dir.sockets().join(&name)).and_then(|link| facts(&link));
            (name, link.ok().map(|link| link.program))
        })
        .collect())
}

/// Returns the path of the cgroup that they are attached to; `None` if they are not.
pub fn attached_to(dir: &StateDir) -> Option<String> {
    let name = names_in(&dir.sockets()).ok()?.into_iter().next()?;
    match facts(&open(&dir.sockets().join(name)).ok()?).ok()?.cgroup {
        0 => Some("a cgroup that is gone".to_owned()),
        id => Some(path_of(id).map_or_else(
            || format!("the cgroup {id}"),
            |path| path.display().to_string(),
        )),
    }
}
