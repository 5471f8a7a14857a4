//! Taking everything away that an agent has left in the kernel.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use proxy_common::net::IfIndex;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, new_connection};
use tracing::{info, warn};

use super::attachment::Attachment;
use super::hooks::detach;
use super::sockets;
use super::statedir::{StateDir, names_in, remove};

/// Removes hooks, programs and maps of a state directory and the directory itself, and the clsact
/// qdiscs that were made for them unless others use them. Runs in the network namespace of the
/// agent.
///
/// # Errors
/// If an agent still runs there, or something cannot be removed.
pub async fn unload(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let dir = StateDir::at(root);
    if dir.is_locked()? {
        bail!("an agent runs with {}; stop it first", root.display());
    }
    sockets::detach(&dir)?;
    for name in names_in(&dir.hooks())? {
        match name.parse::<Attachment>() {
            Ok(hook) => detach(&dir, hook)?,
            Err(error) => warn!("{error:#}"),
        }
    }
    remove_qdiscs(&dir).await?;
    for sub in [
        dir.maps(),
        dir.programs(),
        dir.hooks(),
        dir.sockets(),
        dir.qdiscs(),
    ] {
        for name in names_in(&sub)? {
            remove(&sub.join(name))?;
        }
        remove(&sub)?;
    }
    info!(dir = %root.display(), "unloaded");
    remove_root(root)
}

/// A state directory that is a mount of its own is unmounted first.
fn remove_root(root: &Path) -> Result<()> {
    match std::fs::remove_dir(root) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            nix::mount::umount(root).with_context(|| format!("unmount {}", root.display()))?;
            remove(root)
        }
        _ => remove(root),
    }
}

async fn remove_qdiscs(dir: &StateDir) -> Result<()> {
    let names = names_in(&dir.qdiscs())?;
    if names.is_empty() {
        return Ok(());
    }
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let task = tokio::spawn(connection);
    for name in names {
        let device = IfIndex(
            name.parse()
                .with_context(|| format!("{name} names no device"))?,
        );
        if nix::net::if_::if_indextoname(device.0).is_ok() {
            remove_qdisc(&handle, device)
                .await
                .with_context(|| format!("remove the clsact qdisc of device {}", device.0))?;
        }
    }
    task.abort();
    Ok(())
}

async fn remove_qdisc(handle: &Handle, device: IfIndex) -> Result<()> {
    let index = i32::try_from(device.0).context("a device index out of range")?;
    let ingress: Vec<_> = handle
        .traffic_filter(index)
        .get()
        .ingress()
        .execute()
        .try_collect()
        .await?;
    let egress: Vec<_> = handle
        .traffic_filter(index)
        .get()
        .egress()
        .execute()
        .try_collect()
        .await?;
    if !ingress.is_empty() || !egress.is_empty() {
        info!(device = device.0, "others use the clsact qdisc; it stays");
        return Ok(());
    }
    let mut request = handle.qdisc().del(index);
    let header = &mut request.message_mut().header;
    header.parent = TcHandle::CLSACT;
    header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    Ok(request.execute().await?)
}
