//! What the log is told of packets: which flows they opened, and why they were stopped. Like `main.rs`, of the binary and not of the library.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};

use super::maps::{NOTED4, NOTED6, OPENED, STOPPED};
use super::packets::ifindex;

/// Tells the log what was noted of a packet, if anybody listens. Numbers become words in user space, which has the words.
macro_rules! tell {
    ($tell:ident, $told:ident, $noted:ident, $bytes:ty) => {
        #[inline(always)]
        pub fn $tell(skb: *mut __sk_buff) {
            if level_enabled(Level::Debug) {
                $told(skb);
            }
        }

        #[inline(never)]
        fn $told(skb: *mut __sk_buff) -> i32 {
            let Some(noted) = $noted.get_ptr_mut(0) else { return 0 };
            let context = TcContext::new(skb);
            // SAFETY: this CPU's own element; nobody else writes it before this program has ended.
            let noted = unsafe { &mut *noted };
            let (what, key, device) = (noted.what, &noted.key, ifindex(&context));
            noted.what = 0;
            let (src, dst): ($bytes, $bytes) = (key.src.bytes(), key.dst.bytes());
            let (sport, dport, protocol) = (key.sport.number(), key.dport.number(), key.protocol.0);
            if what == OPENED {
                let backend: $bytes = noted.dst.bytes();
                debug!(
                    &context,
                    target: "portway::packets",
                    "device#{}: protocol#{} {:i} port {} to {:i} port {}: opened to {:i} port {}",
                    device, protocol, src, sport, dst, dport, backend, noted.dport
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

tell!(tell4, told4, NOTED4, [u8; 4]);
tell!(tell6, told6, NOTED6, [u8; 16]);
