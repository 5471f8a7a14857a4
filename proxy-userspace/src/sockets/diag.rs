//! Sockets by the kernel's `sock_diag`: which UDP sockets are connected, and the end of some. The
//! crate of its messages does not know how to end one.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvmsg, sendto, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Connected sockets are in the state that TCP calls established.
const CONNECTED: u32 = 1 << 1;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`, and where it begins in `struct inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;
/// Parts of the id.
const DPORT_AT: usize = 2;
const DST_AT: usize = 20;
const COOKIE_AT: usize = 40;

/// A connected socket.
struct Connected {
    family: u8,
    id: [u8; ID],
}

/// Ends the connected UDP sockets of this network namespace that have these cookies and peers;
/// gives how many.
///
/// # Errors
/// If the kernel does not list sockets, or refuses to end one.
pub fn destroy_udp(wanted: &BTreeMap<u64, SocketAddr>) -> Result<usize> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkSockDiag,
    )
    .context("open sock_diag")?;
    let mut found = connected(&netlink, libc::AF_INET as u8).context("list UDP sockets")?;
    found.extend(connected(&netlink, libc::AF_INET6 as u8).context("list UDP sockets of IPv6")?);
    found.retain(|socket| wanted.get(&socket.cookie()) == Some(&socket.peer()));
    let mut ended = 0;
    for socket in found {
        send(
            &netlink,
            SOCK_DESTROY,
            REQUEST | ACK,
            socket.family,
            &socket.id,
        )?;
        match acknowledgement(&netlink)? {
            Ok(()) => ended += 1,
            // It was closed meanwhile.
            Err(Errno::ENOENT | Errno::ESTALE) => {}
            Err(errno) => return Err(errno).context("end a UDP socket"),
        }
    }
    Ok(ended)
}

impl Connected {
    /// Reads the payload of an answer.
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            family: *bytes.first()?,
            id: bytes.get(ID_AT..ID_AT + ID)?.try_into().ok()?,
        })
    }

    fn cookie(&self) -> u64 {
        let [low, high] = [0, 4].map(|at| u64::from(word(&self.id, COOKIE_AT + at)));
        high << 32 | low
    }

    /// Its peer, in the family of its packets.
    fn peer(&self) -> SocketAddr {
        let mut dst = [0; 16];
        dst.copy_from_slice(&self.id[DST_AT..DST_AT + 16]);
        let ip: IpAddr = match i32::from(self.family) {
            libc::AF_INET => Ipv4Addr::new(dst[0], dst[1], dst[2], dst[3]).into(),
            _ => Ipv6Addr::from(dst).to_canonical(),
        };
        SocketAddr::new(
            ip,
            u16::from_be_bytes([self.id[DPORT_AT], self.id[DPORT_AT + 1]]),
        )
    }
}

fn connected(netlink: &OwnedFd, family: u8) -> Result<Vec<Connected>> {
    send(
        netlink,
        SOCK_DIAG_BY_FAMILY,
        REQUEST | DUMP,
        family,
        &[0; ID],
    )?;
    let mut found = Vec::new();
    loop {
        for (kind, body) in receive(netlink)? {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return error(&body).map(|()| found).context("ask sock_diag"),
                _ => found.extend(Connected::read(&body)),
            }
        }
    }
}

fn send(netlink: &OwnedFd, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Result<()> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    message.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
    message.extend(CONNECTED.to_ne_bytes());
    message.extend(id);
    sendto(
        netlink.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .context("ask sock_diag")?;
    Ok(())
}

/// Returns the messages of one datagram: types and payloads.
fn receive(netlink: &OwnedFd) -> Result<Vec<(u16, Vec<u8>)>> {
    let mut buffer = vec![0; 64 * 1024];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg::<NetlinkAddr>(netlink.as_raw_fd(), &mut slices, None, MsgFlags::empty())
        .context("receive from sock_diag")?;
    let len = got.bytes;
    let (mut rest, mut messages) = (&buffer[..len], Vec::new());
    while rest.len() >= HEADER {
        let size = (word(rest, 0) as usize).clamp(HEADER, rest.len());
        messages.push((
            u16::from_ne_bytes([rest[4], rest[5]]),
            rest[HEADER..size].to_vec(),
        ));
        rest = &rest[size.next_multiple_of(4).min(rest.len())..];
    }
    Ok(messages)
}

fn acknowledgement(netlink: &OwnedFd) -> Result<Result<(), Errno>> {
    match receive(netlink)?.first() {
        Some((NLMSG_ERROR, body)) => Ok(error(body)),
        _ => bail!("unexpected answer of sock_diag"),
    }
}

fn error(body: &[u8]) -> Result<(), Errno> {
    let number = if body.len() < 4 {
        0
    } else {
        (word(body, 0) as i32).wrapping_neg()
    };
    if number == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(number))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an answer as the kernel makes it, with a cookie and a peer.
    fn answer(family: libc::c_int, dst: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 72];
        bytes[0] = family as u8;
        bytes[ID_AT + DPORT_AT..][..2].copy_from_slice(&53_u16.to_be_bytes());
        bytes[ID_AT + DST_AT..][..dst.len()].copy_from_slice(dst);
        bytes[ID_AT + COOKIE_AT..][..4].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[ID_AT + COOKIE_AT + 4..][..4].copy_from_slice(&1_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_peer_is_told_in_the_family_of_its_packets() {
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        for (bytes, peer) in [
            (answer(libc::AF_INET, &[192, 0, 2, 1]), "192.0.2.1:53"),
            (answer(libc::AF_INET6, &mapped), "192.0.2.1:53"),
            (
                answer(libc::AF_INET6, &[0x20, 1, 0xd, 0xb8]),
                "[2001:db8::]:53",
            ),
        ] {
            let socket = Connected::read(&bytes).expect("a socket");
            assert_eq!(
                (socket.peer(), socket.cookie()),
                (peer.parse().expect("an address"), 1 << 32 | 5)
            );
        }
        assert!(Connected::read(&[2; 20]).is_none());
    }

    #[test]
    fn an_error_is_an_errno_and_0_is_well() {
        assert_eq!(error(&0_i32.to_ne_bytes()), Ok(()));
        assert_eq!(
            error(&(-libc::EOPNOTSUPP).to_ne_bytes()),
            Err(Errno::EOPNOTSUPP)
        );
    }
}
