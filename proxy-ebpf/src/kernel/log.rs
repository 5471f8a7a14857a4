//! The log of packets: the flows that they opened, and the reasons for which they were stopped.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use proxy_common::net::{Addr4, Addr6, V4, V6};

use super::maps::Maps;
use super::packets::ifindex;
use super::values::{Kernel, OPENED, STOPPED};

/// Makes the logger of one family. User space replaces the numbers of the message by words.
macro_rules! logger {
    (
        $log:ident,
        family: $family:ty, addr: $addr:ty, bytes: $bytes:ty, subprogram: $write:ident
    ) => {
        /// Logs the record of a packet, if the log's level is debug.
        #[inline(always)]
        pub fn $log(skb: *mut __sk_buff) {
            if level_enabled(Level::Debug) {
                $write(skb);
            }
        }

        #[inline(never)]
        fn $write(skb: *mut __sk_buff) -> i32 {
            let records = <Kernel as Maps<$family, $addr>>::log_records();
            let Some(record) = records.get_ptr_mut(0) else { return 0 };
            let context = TcContext::new(skb);
            // SAFETY: this CPU's own element; nobody else writes it before this program has ended.
            let record = unsafe { &mut *record };
            let (what, key, device) = (record.what, &record.key, ifindex(&context));
            record.what = 0;
            let (src, dst): ($bytes, $bytes) = (key.src.bytes(), key.dst.bytes());
            let (sport, dport, protocol) = (key.sport.number(), key.dport.number(), key.protocol.0);
            if what == OPENED {
                let backend: $bytes = record.dst.bytes();
                debug!(
                    &context,
                    target: "portway::packets",
                    "device#{}: protocol#{} {:i} port {} to {:i} port {}: opened to {:i} port {}",
                    device, protocol, src, sport, dst, dport, backend, record.dport
                );
            } else if what >= STOPPED {
                debug!(
                    &context,
                    target: "portway::packets",
                    "device#{}: protocol#{} {:i} port {} to {:i} port {}: stopped, reason#{}",
                    device, protocol, src, sport, dst, dport, what - STOPPED
                );
            }
            0
        }
    };
}

logger!(log4, family: V4, addr: Addr4, bytes: [u8; 4], subprogram: write4);
logger!(log6, family: V6, addr: Addr6, bytes: [u8; 16], subprogram: write6);
