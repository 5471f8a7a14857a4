//! The programs' attachments: tcx links and XDP links that are pinned, clsact filters before Linux
//! 6.6.
//!
//! A program that replaces an earlier agent's does so in one step; nothing is detached when the
//! agent ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};
use proxy_common::net::IfIndex;
use tracing::info;

use super::attachment::{Attachment, Mode};
use super::statedir::{StateDir, names_in, remove};

/// The place of our filters in a clsact qdisc; together with the device their whole identity.
const PRIORITY: u16 = 50;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The kernel's way to attach tc programs: tcx (6.6) or clsact; known after the first attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flavour {
    Unknown,
    Tcx,
    Clsact,
}

/// The hooks of one agent.
pub struct Hooks {
    dir: StateDir,
    flavour: Flavour,
    xdp_program: &'static str,
    attached: BTreeSet<Attachment>,
    /// The refused attachments, with the kernel's errors.
    refused: BTreeMap<Attachment, String>,
}

impl Hooks {
    /// The hooks in `dir`; `xdp_program` is the one that this kernel took.
    pub fn new(dir: StateDir, xdp_program: &'static str) -> Self {
        Self {
            dir,
            flavour: Flavour::Unknown,
            xdp_program,
            attached: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The hooks at which this agent's programs run.
    pub fn attached(&self) -> &BTreeSet<Attachment> {
        &self.attached
    }

    /// Returns true if the kernel refused an attachment that is wanted.
    pub fn was_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Attaches programs that are wanted, and detaches those that are not wanted any more. `wanted`
    /// gives each attachment its device's name, `present` lists the devices that exist: a pod's
    /// device keeps its programs until it is removed.
    ///
    /// A refused attachment is tried again each time, and logged again only if the error differs.
    pub fn update(
        &mut self,
        ebpf: &mut Ebpf,
        wanted: &BTreeMap<Attachment, String>,
        present: &BTreeSet<IfIndex>,
    ) -> Result<Vec<anyhow::Error>> {
        self.refused.retain(|hook, _| wanted.contains_key(hook));
        self.attached.retain(|hook| present.contains(&hook.device));
        let mut errors = Vec::new();
        for name in names_in(&self.dir.hooks())? {
            let hook: Attachment = name.parse()?;
            let kept = wanted.contains_key(&hook) || hook.point.is_pods();
            if !kept || !present.contains(&hook.device) {
                errors.extend(self.detach(hook).err());
            }
        }
        for (hook, device) in wanted {
            if self.attached.contains(hook) {
                continue;
            }
            match self.attach(ebpf, *hook, device) {
                Ok(()) => {
                    self.attached.insert(*hook);
                    self.refused.remove(hook);
                }
                Err(error) => {
                    let words = format!("{error:#}");
                    if self
                        .refused
                        .insert(*hook, words.clone())
                        .is_none_or(|before| before != words)
                    {
                        errors.push(
                            error.context(format!("attach {} to {device}", hook.point.name())),
                        );
                    }
                }
            }
        }
        Ok(errors)
    }

    /// Does as on a kernel without tcx.
    #[cfg(test)]
    pub fn use_clsact(&mut self) {
        self.flavour = Flavour::Clsact;
    }

    fn attach(&mut self, ebpf: &mut Ebpf, hook: Attachment, device: &str) -> Result<()> {
        let pin = self.dir.hooks().join(hook.to_string());
        match hook.point.mode() {
            Mode::Xdp(mode) => {
                attach_xdp(program(ebpf, self.xdp_program)?, mode, hook.device, &pin)
            }
            Mode::Tc(kind) => self.attach_tc(
                program(ebpf, hook.point.name())?,
                kind,
                hook.device,
                device,
                &pin,
            ),
        }?;
        info!(device, hook = hook.point.name(), "attached");
        Ok(())
    }

    fn attach_tc(
        &mut self,
        program: &mut SchedClassifier,
        kind: TcAttachType,
        index: IfIndex,
        device: &str,
        pin: &Path,
    ) -> Result<()> {
        if pin.is_dir() {
            self.flavour = Flavour::Clsact;
        } else if pin.exists() {
            self.flavour = Flavour::Tcx;
            if replace_tcx(program, pin)? == Replaced::Yes {
                return Ok(());
            }
        }
        if self.flavour != Flavour::Clsact {
            match attach_tcx(program, kind, device, pin) {
                Ok(()) => {
                    self.flavour = Flavour::Tcx;
                    return Ok(());
                }
                Err(error)
                    if self.flavour == Flavour::Unknown
                        && os_error(&error) == Some(libc::EINVAL) =>
                {
                    info!("this kernel has no tcx; clsact filters are used");
                    self.flavour = Flavour::Clsact;
                }
                // The device may be gone: tcx may work all the same.
                Err(error) => return Err(error).context("attach a tcx link"),
            }
        }
        self.attach_clsact(program, kind, index, device, pin)
    }

    fn attach_clsact(
        &self,
        program: &mut SchedClassifier,
        kind: TcAttachType,
        index: IfIndex,
        device: &str,
        pin: &Path,
    ) -> Result<()> {
        match qdisc_add_clsact(device) {
            Ok(()) => make_dir(&self.dir.qdiscs().join(index.0.to_string()))?,
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error).context("add a clsact qdisc"),
        }
        let place = NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            classid: None,
        };
        let attached = program.attach_with_options(device, kind, TcAttachOptions::Netlink(place));
        let id = match attached {
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let there = SchedClassifierLink::attached(device, kind, PRIORITY, HANDLE, None)
                    .context("find the device")?;
                program
                    .attach_to_link(there)
                    .context("replace the filter")?
            }
            other => other.context("add a filter")?,
        };
        // Dropping the link would remove the filter, which is to outlive us.
        std::mem::forget(program.take_link(id).context("keep the filter")?);
        make_dir(pin)
    }

    /// Detaches our program from a hook. A device that is gone took its hooks along.
    fn detach(&mut self, hook: Attachment) -> Result<()> {
        detach(&self.dir, hook)?;
        self.attached.remove(&hook);
        info!(device = hook.device.0, hook = hook.point.name(), "detached");
        Ok(())
    }
}

/// Detaches the program of any agent from a hook.
pub fn detach(dir: &StateDir, hook: Attachment) -> Result<()> {
    let pin = dir.hooks().join(hook.to_string());
    if let (true, Mode::Tc(kind)) = (pin.is_dir(), hook.point.mode())
        && let Ok(device) = nix::net::if_::if_indextoname(hook.device.0)
    {
        let device = device.to_string_lossy();
        let filter = SchedClassifierLink::attached(&device, kind, PRIORITY, HANDLE, None)
            .context("find the device")?;
        // Dropping it removes the filter, if it is there.
        drop(filter);
    }
    remove(&pin)
}

/// Returns the id of the program at a hook, if it is pinned.
pub fn program_id(dir: &StateDir, hook: Attachment) -> Option<u32> {
    let link = PinnedLink::from_pin(dir.hooks().join(hook.to_string())).ok()?;
    Some(FdLink::from(link).info().ok()?.program_id())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?;
    program
        .try_into()
        .with_context(|| format!("the program {name} is of another type"))
}

#[derive(PartialEq, Eq)]
enum Replaced {
    Yes,
    /// The device is gone, and the pin with it.
    Gone,
}

fn replace_tcx(program: &mut SchedClassifier, pin: &Path) -> Result<Replaced> {
    let link = FdLink::from(PinnedLink::from_pin(pin).context("open the pinned link")?);
    let link = SchedClassifierLink::try_from(link).context("the pinned link is none of tcx")?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // Dropping it closes our descriptor only: the pin holds the link.
            drop(program.take_link(id).context("keep the link")?);
            Ok(Replaced::Yes)
        }
        Err(error) if is_dead(&error) => remove(pin).map(|()| Replaced::Gone),
        Err(error) => Err(error).context("replace the program of the link"),
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    kind: TcAttachType,
    device: &str,
    pin: &Path,
) -> Result<()> {
    let id =
        program.attach_with_options(device, kind, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(pin).map(drop).context("pin the link")
}

fn attach_xdp(program: &mut Xdp, mode: XdpMode, index: IfIndex, pin: &Path) -> Result<()> {
    if pin.exists() {
        let link = XdpLink::try_from(FdLink::from(
            PinnedLink::from_pin(pin).context("open the pinned link")?,
        ))?;
        match program.attach_to_link(link) {
            Ok(id) => return program.take_link(id).map(drop).context("keep the link"),
            Err(error) if is_dead(&error) => remove(pin)?,
            Err(error) => return Err(error).context("replace the program of the link"),
        }
    }
    let id = program.attach_to_if_index(index.0, mode)?;
    let link =
        FdLink::try_from(program.take_link(id)?).context("this kernel has no XDP links (5.9)")?;
    link.pin(pin).map(drop).context("pin the link")
}

/// Returns true if the error means that the link's device is gone.
fn is_dead(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(e) if matches!(e.io_error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::ENOENT)))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of errors is long, and one of them has a meaning here"
)]
fn os_error(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref()? {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| anyhow!("create {}: {error}", path.display()))
}
