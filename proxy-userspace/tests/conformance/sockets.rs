//! Processes of the node: real sockets of this process, in a cgroup of its own with the loaded
//! programs as hooks.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect as connect_socket, socket,
};
use portway::dataplane::{Maps, PeerTable, SOCKET_PROGRAMS};
use proxy_common::net::{Address, Protocol};
use proxy_common::reason::Reason;
use proxy_common::socket::PeerKey;

use crate::cgroup::Own;
use crate::packet::Outcome;

/// Attaches the hooks to a cgroup that this process is in from here on.
pub fn attach(ebpf: &mut Ebpf) -> Result<Own> {
    let own = Own::enter()?;
    let cgroup = File::open(own.path()).context("open the cgroup")?;
    for name in SOCKET_PROGRAMS {
        let program: &mut CgroupSockAddr = ebpf
            .program_mut(name)
            .context("find a program")?
            .try_into()?;
        program
            .attach(&cgroup, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name}"))?;
    }
    Ok(own)
}

/// Connects a new socket to `to`. Its backend is read from the maps, since the hooks hide it from
/// the process.
pub fn connect(maps: &Maps, protocol: Protocol, to: SocketAddr) -> Result<Outcome> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let kind = match protocol {
        Protocol::TCP => SockType::Stream,
        Protocol::UDP => SockType::Datagram,
        other => bail!("no process of the node asks by {}", other.name()),
    };
    let socket = socket(
        family,
        kind,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open a socket")?;
    let before = maps.counters()?;
    let said = connect_socket(socket.as_raw_fd(), &SockaddrStorage::from(to));
    let cookie = cookie(&socket)?;
    let sent = if to.is_ipv4() {
        backend(&maps.v4, cookie)?
    } else {
        backend(&maps.v6, cookie)?
    };
    Ok(match (sent, said) {
        (Some(to), _) => Outcome::Forward {
            to,
            masqueraded: false,
        },
        (None, Err(Errno::ECONNREFUSED)) => Outcome::Reject,
        (None, Err(Errno::EPERM)) => {
            let after = maps.counters()?;
            let counted =
                |reason: &&Reason| after[reason.index() as usize] > before[reason.index() as usize];
            Outcome::Drop(
                *Reason::ALL
                    .iter()
                    .find(counted)
                    .context("find why it was dropped")?,
            )
        }
        // The connection itself may fail; no hook refused it.
        (None, _) => Outcome::Pass,
    })
}

fn backend<A: Address>(table: &impl PeerTable<A>, cookie: [u32; 2]) -> Result<Option<SocketAddr>> {
    let peers = table.peers()?;
    let found = peers
        .iter()
        .map(|(key, _)| key)
        .find(|key| key.cookie == cookie && key.side == PeerKey::<A>::BACKEND);
    Ok(found.map(|key| SocketAddr::new(key.addr.ip(), key.port.number())))
}

/// The kernel's cookie of a socket, low word first.
fn cookie(socket: &OwnedFd) -> Result<[u32; 2]> {
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option is a u64, and so is what it is written to.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    Errno::result(code).context("ask for a socket's cookie")?;
    Ok([cookie as u32, (cookie >> 32) as u32])
}
