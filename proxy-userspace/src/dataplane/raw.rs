//! Elements of maps as plain bytes, whatever their types: for moving them from an old map to a new
//! one.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapType};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// The treatment of an element that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// In any case.
    Always = 0,
    /// Only where there is none.
    IfAbsent = 1,
}

/// The part of `union bpf_attr` that commands on one element use.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Copies all elements between maps of equal key sizes; shorter values get zeros behind them.
/// Returns the number of elements that found no room.
pub fn copy(from: &MapData, to: &MapData, how: Put) -> Result<usize> {
    let info = from.info()?;
    let size = value_bytes(&info)?.max(value_bytes(&to.info()?)?);
    let (mut key, mut value, mut lost) = (None, vec![0_u8; size], 0);
    while let Some(next) = next_key(from, key.as_deref(), info.key_size() as usize)? {
        // The element may have been deleted since: then there is nothing to copy.
        if element(BPF_MAP_LOOKUP_ELEM, from, &next, &mut value, 0).is_ok() {
            match element(BPF_MAP_UPDATE_ELEM, to, &next, &mut value, how as u64) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => lost += 1,
                other => other.context("write an element")?,
            }
        }
        key = Some(next);
    }
    Ok(lost)
}

/// Returns the bytes that the kernel copies for one value. Per-CPU maps hold one value for each
/// processor, each rounded up to eight bytes.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's list of map types is open"
)]
fn value_bytes(info: &aya::maps::MapInfo) -> Result<usize> {
    let size = info.value_size() as usize;
    match info.map_type()? {
        MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => {
            let cpus = aya::util::nr_cpus()
                .map_err(|(_, error)| error)
                .context("count processors")?;
            Ok(size.next_multiple_of(8) * cpus)
        }
        _ => Ok(size),
    }
}

fn next_key(map: &MapData, key: Option<&[u8]>, size: usize) -> Result<Option<Vec<u8>>> {
    let mut next = vec![0_u8; size];
    let start = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
    // SAFETY: both pointers lead to keys of the map's size, or the first is null, which means the
    // start.
    match unsafe { command(BPF_MAP_GET_NEXT_KEY, map, start, next.as_mut_ptr(), 0) } {
        Ok(()) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).context("find the next element"),
    }
}

fn element(
    number: libc::c_long,
    map: &MapData,
    key: &[u8],
    value: &mut [u8],
    flags: u64,
) -> io::Result<()> {
    // SAFETY: key and value are of the map's sizes.
    unsafe { command(number, map, key.as_ptr(), value.as_mut_ptr(), flags) }
}

/// # Safety
/// The pointers must be valid for the command and the map.
unsafe fn command(
    number: libc::c_long,
    map: &MapData,
    key: *const u8,
    value: *mut u8,
    flags: u64,
) -> io::Result<()> {
    let map_fd = map.fd().as_fd().as_raw_fd() as u32;
    let mut attr = ElementAttr {
        map_fd,
        pad: 0,
        key: key as u64,
        value: value as u64,
        flags,
    };
    // SAFETY: the attribute has the kernel's layout; the caller guarantees the pointers.
    match unsafe {
        libc::syscall(
            libc::SYS_bpf,
            number,
            &raw mut attr,
            size_of::<ElementAttr>(),
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
