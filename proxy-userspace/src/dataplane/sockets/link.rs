//! Links to cgroups by the system call bpf(2): aya does not replace their programs.

use std::ffi::CString;
use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The beginning of `struct bpf_link_info` of a cgroup's link.
#[repr(C)]
pub struct LinkInfo {
    kind: u32,
    id: u32,
    /// The id of its program.
    pub program: u32,
    pad: u32,
    /// The id of its cgroup; 0 if the cgroup is gone.
    pub cgroup: u64,
    attach_type: u32,
    end: u32,
}

/// The part of `union bpf_attr` for [`BPF_OBJ_GET_INFO_BY_FD`].
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The part of `union bpf_attr` that replaces a link's program.
#[repr(C)]
struct UpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` that detaches a link.
#[repr(C)]
struct DetachAttr {
    link: u32,
}

/// The part of `union bpf_attr` that opens a pinned object.
#[repr(C)]
struct OpenAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned link.
pub fn open(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("name a pin")?;
    let attr = OpenAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the attribute has the kernel's layout, and leads to a path that ends with a zero.
    let fd = unsafe { command(BPF_OBJ_GET, &attr) }
        .with_context(|| format!("open {}", pin.display()))?;
    // SAFETY: the kernel has just opened it for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the program and the cgroup of a link.
pub fn facts(link: &OwnedFd) -> Result<LinkInfo> {
    // SAFETY: plain integers.
    let mut info: LinkInfo = unsafe { zeroed() };
    let attr = InfoAttr {
        fd: link.as_raw_fd() as u32,
        len: offset_of!(LinkInfo, end) as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute has the kernel's layout, and leads to `len` bytes.
    unsafe { command(BPF_OBJ_GET_INFO_BY_FD, &attr) }.context("read a link's cgroup")?;
    Ok(info)
}

/// The outcome of [`replace`].
#[derive(PartialEq, Eq)]
pub enum Replaced {
    /// The link has the new program.
    Yes,
    /// The cgroup is gone.
    Gone,
}

/// Replaces the program of a link.
pub fn replace(link: &OwnedFd, program: BorrowedFd<'_>) -> Result<Replaced> {
    let attr = UpdateAttr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attribute has the kernel's layout, and no pointer.
    match unsafe { command(BPF_LINK_UPDATE, &attr) } {
        Ok(_) => Ok(Replaced::Yes),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(Replaced::Gone),
        Err(error) => Err(error).context("replace the program of the link"),
    }
}

/// Detaches the program of a link, before this returns.
pub fn cut(link: &OwnedFd) -> Result<()> {
    let attr = DetachAttr {
        link: link.as_raw_fd() as u32,
    };
    // SAFETY: the attribute has the kernel's layout, and no pointer.
    unsafe { command(BPF_LINK_DETACH, &attr) }
        .map(drop)
        .context("detach a link")
}

/// # Safety
/// The attribute must be the one of the command.
unsafe fn command<A>(number: libc::c_long, attr: &A) -> io::Result<i32> {
    // SAFETY: the caller guarantees the attribute.
    let code = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            number,
            std::ptr::from_ref(attr),
            size_of::<A>(),
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(code as i32)
    }
}
