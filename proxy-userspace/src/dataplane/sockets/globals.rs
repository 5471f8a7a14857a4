//! The globals of the socket programs: the network namespace that they serve, and the error of a
//! refused process.

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::EbpfLoader;
use aya::util::KernelVersion;
use proxy_common::socket::INITIAL_NETNS;

/// The global that holds the cookie of our network namespace.
const NETNS: &str = "NETNS";
/// The global that holds the error for refused processes.
const REFUSED: &str = "REFUSED";
/// First kernel with bpf_set_retval: a program chooses the error of a system call. Before, the
/// error is EPERM.
const SET_RETVAL: KernelVersion = KernelVersion::new(5, 18, 0);
/// `SO_NETNS_COOKIE` (5.14), which libc does not have yet.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// A setting that only the initial network namespace has.
const INITIAL_ONLY: &str = "/proc/sys/net/core/dev_weight";

/// The globals of the loaded programs.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    netns: u64,
    refused: i32,
}

impl Globals {
    /// Returns the globals for the network namespace of this process.
    ///
    /// # Errors
    /// If the kernel has no cookies of network namespaces, and this is not the initial one.
    pub fn here() -> Result<Self> {
        let kernel = KernelVersion::current().context("read the kernel's version")?;
        Ok(Self {
            netns: netns()?,
            refused: if kernel < SET_RETVAL {
                0
            } else {
                -libc::ECONNREFUSED
            },
        })
    }

    /// Sets the globals of the programs that `loader` will load.
    pub fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global(NETNS, &self.netns, true);
        loader.override_global(REFUSED, &self.refused, true);
    }
}

/// Returns the cookie of this thread's network namespace, as the programs see it.
fn netns() -> Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"));
    let socket = socket.context("open a socket to read the cookie of its network namespace")?;
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option is a u64, and so is what it is written to.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match code {
        0 => Ok(cookie),
        _ if Path::new(INITIAL_ONLY).exists() => Ok(INITIAL_NETNS),
        _ => bail!(
            "this kernel has no cookies of network namespaces (5.14), and this is not the host's namespace"
        ),
    }
}
