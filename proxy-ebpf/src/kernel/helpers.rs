//! Counters, rate limits, log records and the helpers under the tables.

use core::ptr;

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::{bpf_fib_lookup as fib_lookup, bpf_jiffies64};
use proxy_common::net::IfIndex;
use proxy_ebpf::Route;

use super::maps::{ANSWERS, CONFIG, COUNTERS, TURNS};
use super::values::Kernel;

/// Limit of ICMP errors, per second and CPU.
const ANSWERS_PER_SECOND: u32 = 1000;

impl Kernel {
    /// Looks up a route by the arguments in `fib`.
    #[inline(always)]
    pub fn look_up(&self, fib: &mut bpf_fib_lookup) -> Option<Route> {
        /// The route is good, but the neighbour is not resolved yet.
        const NO_NEIGHBOUR: i64 = 7;
        // If this is 0, the kernel compares the packet's length with the MTU, GSO or not; the size
        // is checked by `may_forward`.
        fib.__bindgen_anon_1.tot_len = 1;
        // SAFETY: the context of this program, and a structure of the size that is passed.
        let code = unsafe {
            fib_lookup(
                self.context,
                ptr::from_mut(fib),
                size_of::<bpf_fib_lookup>() as i32,
                0,
            )
        } as i64;
        if code != 0 && code != NO_NEIGHBOUR {
            return None;
        }
        let (d, s) = (fib.dmac, fib.smac);
        let link = [
            d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5],
        ];
        Some(Route {
            device: IfIndex(fib.ifindex),
            neighbour: if code == 0 { Some(link) } else { None },
        })
    }
}

/// Returns the low 32 bits of jiffies.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() as u32 }
}

/// Increments an element of `COUNTERS`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Increments a shared counter without a lock, and returns the old value. Two CPUs may get the same
/// value; the later one then finds its port taken.
#[inline(always)]
pub fn take_turn(counter: u32) -> u32 {
    let Some(turn) = TURNS.get_ptr_mut(counter & 0xff) else {
        return 0;
    };
    // SAFETY: the element lives as long as the program, is aligned, and is read and written whole.
    unsafe {
        let taken = turn.read_volatile();
        turn.write_volatile(taken.wrapping_add(1));
        taken
    }
}

/// Takes a token for one ICMP error; returns false if none is left.
#[inline(always)]
pub fn take_answer() -> bool {
    let Some(bucket) = ANSWERS.get_ptr_mut(0) else {
        return false;
    };
    let hz = CONFIG.get(0).map_or(100, |config| config.hz);
    let now = jiffies();
    // SAFETY: this CPU's own element.
    let bucket = unsafe { &mut *bucket };
    if now.wrapping_sub(bucket.since) >= hz {
        bucket.since = now;
        bucket.sent = 0;
    }
    bucket.sent += 1;
    bucket.sent <= ANSWERS_PER_SECOND
}
