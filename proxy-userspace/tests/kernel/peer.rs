//! Verdicts as other implementations find them, for comparison only: an identity by a trie of
//! prefixes, then its permissions by a hash. Two hand-written programs, which do not ship.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const HASH: u32 = 1;
const LPM_TRIE: u32 = 11;
const NO_PREALLOC: u32 = 1;
const SCHED_CLS: u32 = 3;
const LOAD_BYTES: i32 = 26;
const LOOKUP: i32 = 1;
/// Offset of an IPv4 packet's source address, and, without options, of its destination port.
const SOURCE: i32 = 26;
const PORT: i32 = 36;

/// Identities, their permissions, and the programs that look them up.
pub struct Peer {
    identities: OwnedFd,
    allowed: OwnedFd,
    judge: OwnedFd,
    floor: OwnedFd,
}

/// The part of `union bpf_attr` that these commands read.
type Attr = [u32; 20];

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the attribute is as long as is said, and its pointers lead to what the callers below
    // keep alive.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn descriptor(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just given it to us.
    bpf(command, attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The halves of an address in memory.
fn halves<T: ?Sized>(at: *const T) -> [u32; 2] {
    let at = at.cast::<()>() as u64;
    [at as u32, (at >> 32) as u32]
}

fn map(kind: u32, key: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr[..5].copy_from_slice(&[kind, key, 4, entries, NO_PREALLOC]);
    descriptor(MAP_CREATE, &mut attr)
}

fn put(map: &OwnedFd, key: [u32; 2], value: u32) -> io::Result<()> {
    let mut attr = Attr::default();
    attr[0] = map.as_raw_fd() as u32;
    attr[2..4].copy_from_slice(&halves(&raw const key));
    attr[4..6].copy_from_slice(&halves(&raw const value));
    bpf(MAP_UPDATE, &mut attr).map(|_| ())
}

const fn op(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (off as u16 as u64) << 16
        | (imm as u32 as u64) << 32
}

/// Loads bytes of the packet, with its context in register 6, to the stack.
fn load_bytes(from: i32, to: i32, len: i32) -> [u64; 6] {
    [
        op(0xbf, 1, 6, 0, 0),
        op(0xb7, 2, 0, 0, from),
        op(0xbf, 3, 10, 0, 0),
        op(0x07, 3, 0, 0, to),
        op(0xb7, 4, 0, 0, len),
        op(0x85, 0, 0, 0, LOAD_BYTES),
    ]
}

/// Looks the key on the stack up.
fn look_up(map: &OwnedFd, key: i32) -> [u64; 5] {
    [
        op(0x18, 1, 1, 0, map.as_raw_fd()),
        0,
        op(0xbf, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, key),
        op(0x85, 0, 0, 0, LOOKUP),
    ]
}

fn load(code: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr[..2].copy_from_slice(&[SCHED_CLS, code.len() as u32]);
    attr[2..4].copy_from_slice(&halves(code.as_ptr()));
    attr[4..6].copy_from_slice(&halves(c"GPL".as_ptr()));
    descriptor(PROG_LOAD, &mut attr)
}

impl Peer {
    /// Makes the maps, for this number of prefixes.
    pub fn new(prefixes: u32) -> Result<Self> {
        let identities = map(LPM_TRIE, 8, prefixes).context("make a trie")?;
        let allowed = map(HASH, 8, prefixes).context("make a hash")?;
        let code = [
            &[op(0xbf, 6, 1, 0, 0), op(0x62, 10, 0, -8, 32)][..],
            &load_bytes(SOURCE, -4, 4),
            &look_up(&identities, -8),
            // Unknown addresses have identity 0.
            &[
                op(0x55, 0, 0, 2, 0),
                op(0xb7, 7, 0, 0, 0),
                op(0x05, 0, 0, 1, 0),
                op(0x61, 7, 0, 0, 0),
            ],
            &[op(0x63, 10, 7, -16, 0), op(0x62, 10, 0, -12, 0)],
            &load_bytes(PORT, -12, 2),
            &look_up(&allowed, -16),
            &[
                op(0x15, 0, 0, 2, 0),
                op(0xb7, 0, 0, 0, -1),
                op(0x95, 0, 0, 0, 0),
                op(0xb7, 0, 0, 0, 2),
                op(0x95, 0, 0, 0, 0),
            ],
        ];
        let judge = load(&code.concat()).context("load the program that judges")?;
        let floor = load(&[op(0xb7, 0, 0, 0, -1), op(0x95, 0, 0, 0, 0)])
            .context("load the program that does nothing")?;
        Ok(Self {
            identities,
            allowed,
            judge,
            floor,
        })
    }

    /// Gives an identity to the addresses of a prefix.
    pub fn identify(&self, addr: Ipv4Addr, bits: u8, identity: u32) -> Result<()> {
        let key = [u32::from(bits), u32::from_ne_bytes(addr.octets())];
        put(&self.identities, key, identity).context("write an identity")
    }

    /// Allows an identity to reach a port.
    pub fn allow(&self, identity: u32, port: u16) -> Result<()> {
        put(&self.allowed, [identity, u32::from(port.to_be())], 1).context("write what is allowed")
    }

    /// Returns true if a packet passes, and nanoseconds of each run.
    pub fn judge(&self, packet: &[u8], repeat: u32) -> Result<(bool, u32)> {
        run(&self.judge, packet, repeat).context("run the program that judges")
    }

    /// Runs a program that does nothing, for comparison.
    pub fn floor(&self, packet: &[u8], repeat: u32) -> Result<(bool, u32)> {
        run(&self.floor, packet, repeat).context("run the program that does nothing")
    }
}

fn run(program: &OwnedFd, packet: &[u8], repeat: u32) -> io::Result<(bool, u32)> {
    let mut attr = Attr::default();
    (attr[0], attr[2], attr[8]) = (program.as_raw_fd() as u32, packet.len() as u32, repeat);
    attr[4..6].copy_from_slice(&halves(packet.as_ptr()));
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok((attr[1] as i32 == -1, attr[9]))
}
