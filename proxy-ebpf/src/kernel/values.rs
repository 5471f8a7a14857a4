//! The values of the maps that only programs use, and the handle by which stages reach the maps.

use core::ffi::c_void;

use proxy_common::flow::FlowKey;

/// The kernel as the library's tables; `context` is an argument of `bpf_fib_lookup`.
pub struct Kernel {
    /// Context of the running program.
    pub context: *mut c_void,
}

/// The last report of a denial.
#[repr(C)]
pub struct Reported {
    /// Low 32 bits of jiffies at the last report.
    pub at: u32,
    /// Number of equal denials since.
    pub silent: u32,
}

/// A token bucket: ICMP errors sent in the second that began at `since` (jiffies).
#[repr(C)]
pub struct Bucket {
    pub since: u32,
    pub sent: u32,
}

/// The log record of a packet, kept until the stack has room for the logger.
#[repr(C)]
pub struct LogRecord<A> {
    /// 0 if nothing is logged; [`OPENED`]; or [`STOPPED`] plus the reason's number.
    pub what: u32,
    /// The packet's connection.
    pub key: FlowKey<A>,
    /// The backend's address.
    pub dst: A,
    /// The backend's port, host order.
    pub dport: u16,
}

/// In [`LogRecord::what`]: a flow was opened.
pub const OPENED: u32 = 1;
/// In [`LogRecord::what`]: the packet is not sent on.
pub const STOPPED: u32 = 2;
