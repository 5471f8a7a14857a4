//! What an earlier version's agent has left, as a later one takes it over.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use portway::dataplane::{CgroupChoice, Dataplane, Options, StateDir, XdpChoice, unload};
use proxy_common::net::{Device, IfIndex};

use crate::namespace::in_namespace;

/// Bytes of a device before it knew its node's addresses.
const BEFORE: usize = 28;

/// Devices have grown since: until the new agent has heard of the cluster, new connections are masqueraded by what the old one knew.
#[test]
fn devices_of_an_earlier_version_are_known_at_once() -> Result<()> {
    in_namespace(|_| {
        let state_dir = std::env::temp_dir().join(format!("portway-adopted-{}", std::process::id()));
        let dir = StateDir::create(&state_dir)?;
        let known =
            Device { masquerade4: Ipv4Addr::new(192, 0, 2, 1).into(), mtu: 1450, flags: Device::HAS_PODS, ..Device::default() };
        leave(&dir.map("DEVICES"), 7, &known)?;
        let plane = Dataplane::open(&Options { state_dir: state_dir.clone(), xdp: XdpChoice::Off, cgroup: CgroupChoice::Off })?;
        let found = plane.read()?.contents().devices;
        drop(plane);
        tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(unload(&state_dir))?;
        _ = fs::remove_dir_all(&state_dir);
        ensure!(found == BTreeMap::from([(IfIndex(7), known)]), "{found:?}");
        Ok(())
    })
}

/// A map as that version had it, with one device.
fn leave(path: &Path, key: u32, device: &Device) -> Result<()> {
    let value =
        [&device.masquerade6.bytes()[..], &device.masquerade4.bytes(), &device.mtu.to_ne_bytes(), &device.flags.to_ne_bytes()]
            .concat();
    ensure!(value.len() == BEFORE);
    // A hash without preallocation.
    let map = bpf(0, &[1, 4, BEFORE as u32, 1024, 1])?;
    // SAFETY: a descriptor that was just made for us.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let low_high = |pointer: u64| [pointer as u32, (pointer >> 32) as u32];
    let [k, l] = low_high((&raw const key) as u64);
    let [v, w] = low_high(value.as_ptr() as u64);
    bpf(2, &[map.as_raw_fd() as u32, 0, k, l, v, w, 0, 0]).context("write the element")?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [p, q] = low_high(path.as_ptr() as u64);
    bpf(6, &[p, q, map.as_raw_fd() as u32, 0]).context("pin the map")?;
    Ok(())
}

/// The system call, with the words that its attribute begins with.
fn bpf(command: libc::c_long, words: &[u32]) -> Result<i32> {
    let mut attribute = [0_u32; 32];
    attribute[..words.len()].copy_from_slice(words);
    // SAFETY: the attribute is longer than any that these commands read, and what it points to lives.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    ensure!(done >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    Ok(done as i32)
}
