//! Owns the far ends of XDP: a program at a device that passes all frames, there for what its
//! presence switches on.
//!
//! A veth device rings for frames that the other end has sent by `XDP_TX` only if it has a program
//! of its own. GRO, which is enough for `XDP_REDIRECT`, leaves them waiting for the next frame that
//! comes by another way.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::net::if_::if_nametoindex;

use super::netns::Namespace;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const IN_DRIVER: u32 = 1 << 2;
/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: i32,
    device: u32,
    point: u32,
    flags: u32,
}

/// Passes all frames in the driver of `device`, until the value that is returned is dropped.
///
/// # Errors
/// If there is no such device, or the kernel refuses.
pub fn pass_all(ns: &Namespace, device: &str) -> Result<OwnedFd> {
    ns.run(|| {
        let license = c"GPL";
        let load = Load {
            kind: PROG_TYPE_XDP,
            instructions: PASS.len() as u32,
            code: PASS.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        let program = bpf(PROG_LOAD, &load).context("load a program that passes all")?;
        let index = if_nametoindex(device).with_context(|| format!("find {device}"))?;
        let link = Link {
            program: program.as_raw_fd(),
            device: index,
            point: ATTACH_XDP,
            flags: IN_DRIVER,
        };
        bpf(LINK_CREATE, &link).with_context(|| format!("attach a program to {device}"))
    })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, and what they point to lives until it
    // returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match libc::c_int::try_from(fd) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
