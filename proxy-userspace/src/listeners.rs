//! Sockets of this host that listen, and their owners.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use procfs::net::{TcpState, UdpState};
use procfs::process::{FDTarget, all_processes};
use proxy_common::net::Protocol;

/// A socket that listens on this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The address, which may be unspecified, and the port.
    pub addr: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The process, if its descriptors may be seen: name and id.
    pub process: Option<(String, i32)>,
}

/// Returns every socket that listens in this process's network namespace.
pub fn listeners() -> Result<Vec<Listener>> {
    listeners_on(|_| true)
}

/// Returns the listeners on some ports. Processes are searched only if there are any, since that
/// takes a while.
pub fn listeners_on(wanted: impl Fn(u16) -> bool) -> Result<Vec<Listener>> {
    let tcp = [
        procfs::net::tcp().context("read /proc/net/tcp")?,
        procfs::net::tcp6().unwrap_or_default(),
    ];
    let tcp = tcp
        .into_iter()
        .flatten()
        .filter(|s| s.state == TcpState::Listen)
        .map(|s| (s.local_address, s.inode, Protocol::TCP));
    let udp = [
        procfs::net::udp().context("read /proc/net/udp")?,
        procfs::net::udp6().unwrap_or_default(),
    ];
    let udp = udp
        .into_iter()
        .flatten()
        .filter(|s: &procfs::net::UdpNetEntry| s.state != UdpState::Established)
        .map(|s| (s.local_address, s.inode, Protocol::UDP));
    let sockets: Vec<_> = tcp
        .chain(udp)
        .filter(|(addr, ..)| wanted(addr.port()))
        .collect();
    let owners = if sockets.is_empty() {
        BTreeMap::new()
    } else {
        owners()
    };
    Ok(sockets
        .into_iter()
        .map(|(addr, inode, protocol)| Listener {
            addr,
            protocol,
            process: owners.get(&inode).cloned(),
        })
        .collect())
}

/// Returns the processes by their open sockets, as far as this one may see them.
fn owners() -> BTreeMap<u64, (String, i32)> {
    let mut owners = BTreeMap::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let Ok(stat) = process.stat() else { continue };
        for fd in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = fd.target {
                owners.insert(inode, (stat.comm.clone(), stat.pid));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_this_very_process_is_found_with_its_name() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let udp = std::net::UdpSocket::bind("[::1]:0").expect("a socket");
        let found = listeners().expect("sockets");
        for (addr, protocol) in [
            (tcp.local_addr(), Protocol::TCP),
            (udp.local_addr(), Protocol::UDP),
        ] {
            let addr = addr.expect("bound");
            let listener = found
                .iter()
                .find(|l| l.addr == addr && l.protocol == protocol)
                .expect("found");
            assert_eq!(
                listener.process.as_ref().map(|p| p.1),
                Some(std::process::id() as i32)
            );
        }
    }
}
