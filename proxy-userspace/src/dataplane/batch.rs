//! Reads a hash map many elements at a time (BPF_MAP_LOOKUP_BATCH), which aya does not do.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, MapData, MapError};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Elements of one request. The kernel returns ENOSPC if a bucket has more.
const ELEMENTS: usize = 1024;

/// The part of `union bpf_attr` that batch commands use.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A walk through a hash map, which may pause between batches.
pub struct Walk {
    position: Position,
    size: usize,
}

enum Position {
    Start,
    Bucket(u32),
    End,
}

impl Default for Walk {
    /// Returns a walk that has not begun.
    fn default() -> Self {
        Self {
            position: Position::Start,
            size: ELEMENTS,
        }
    }
}

impl Walk {
    /// The next elements, none at the end. Elements that come and go meanwhile may be missed; none
    /// is seen twice in one bucket.
    pub fn next<K: Pod, V: Pod>(
        &mut self,
        map: &HashMap<MapData, K, V>,
    ) -> Result<Option<Vec<(K, V)>>> {
        let mut next = 0_u32;
        let from = match &self.position {
            Position::End => return Ok(None),
            Position::Start => None,
            Position::Bucket(bucket) => Some(*bucket),
        };
        let elements = loop {
            match look_up(map.map(), from, &mut next, self.size) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => self.size *= 2,
                Err(error) if unsupported(&error) && from.is_none() => {
                    self.position = Position::End;
                    return one_by_one(map).map(Some);
                }
                other => break other.context("read a batch of elements")?,
            }
        };
        self.position = if elements.1 {
            Position::End
        } else {
            Position::Bucket(next)
        };
        Ok(Some(elements.0))
    }
}

/// Returns all elements of a map.
pub fn all<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>> {
    let (mut walk, mut found) = (Walk::default(), Vec::new());
    while let Some(elements) = walk.next(map)? {
        found.extend(elements);
    }
    Ok(found)
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn one_by_one<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>> {
    map.iter()
        .collect::<Result<_, MapError>>()
        .context("read the elements one by one")
}

/// Returns elements from bucket `from` on, and true if they are the last.
fn look_up<K: Pod, V: Pod>(
    map: &MapData,
    from: Option<u32>,
    next: &mut u32,
    size: usize,
) -> io::Result<(Vec<(K, V)>, bool)> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); size];
    let mut values = vec![MaybeUninit::<V>::uninit(); size];
    let mut attr = BatchAttr {
        in_batch: from
            .as_ref()
            .map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
        out_batch: std::ptr::from_mut(next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: size as u32,
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: the attribute has the layout of the kernel's, and its pointers lead to `size` keys
    // and values of the map's own sizes (aya has compared them), and to positions of four bytes,
    // which is what hash maps use.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attr,
            size_of::<BatchAttr>(),
        )
    };
    let last = match result {
        0 => false,
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => true,
            error => return Err(error),
        },
    };
    let written = (attr.count as usize).min(size);
    let pair = |(key, value): (&MaybeUninit<K>, &MaybeUninit<V>)| {
        // SAFETY: the kernel has written the first `count` keys and values; `Pod` means that any
        // bytes are a value.
        unsafe { (key.assume_init(), value.assume_init()) }
    };
    Ok((
        keys.iter().zip(&values).take(written).map(pair).collect(),
        last,
    ))
}
