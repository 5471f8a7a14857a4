//! Packets in the kernel: socket buffers at tc, frames at XDP.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
};
use aya_ebpf::helpers::{bpf_csum_update, bpf_skb_change_tail};
use aya_ebpf::programs::{TcContext, XdpContext};
use proxy_common::checksum::{checksum_update, sum_add};
use proxy_ebpf::{Change, Packet, Wire};

/// The mark of the answers that we make, by which other hooks recognize them. Packets lose it when
/// they leave the namespace.
pub const ANSWER_MARK: u32 = 0x706f_7274;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace`, newer than the bindings.
const BPF_F_IPV6: u64 = 1 << 7;

/// A socket buffer. The kernel's helpers handle paged data and unfinished checksums.
pub struct Skb<'a> {
    /// Context of the running program.
    pub context: &'a TcContext,
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        self.context.load(offset as usize).ok()
    }
    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        self.context.store(offset as usize, value, 0).ok()
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let offset = offset as usize;
        let mangled = if change.udp {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let pseudo = mangled | u64::from(BPF_F_PSEUDO_HDR);
        let addresses = u64::from(change.addresses);
        // Kernels that have BPF_F_IPV6 need it for packets with a checksum that the device
        // verified; others refuse it.
        let done = change.v6
            && self
                .context
                .l4_csum_replace(offset, 0, addresses, pseudo | BPF_F_IPV6)
                .is_ok();
        if !done {
            self.context
                .l4_csum_replace(offset, 0, addresses, pseudo)
                .ok()?;
        }
        // If the kernel keeps a sum of the whole packet (CHECKSUM_COMPLETE), it must include the
        // change that no checksum compensates.
        let missed = if change.v6 && !done {
            sum_add(change.addresses, change.uncovered)
        } else {
            change.uncovered
        };
        if missed != 0 {
            self.account(missed);
        }
        self.context
            .l4_csum_replace(offset, 0, u64::from(change.ports), mangled)
            .ok()
    }
    #[inline(always)]
    fn account(&mut self, change: u32) {
        // SAFETY: the context of this program. The call fails if there is no such sum, which is
        // right.
        unsafe { bpf_csum_update(self.context.skb.skb, change) };
    }
    #[inline(always)]
    fn truncate(&mut self, len: u32) -> Option<()> {
        // SAFETY: the context of this program.
        let code = unsafe { bpf_skb_change_tail(self.context.skb.skb, len, 0) };
        if code == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn insert(&mut self, room: u32) -> Option<()> {
        self.context
            .skb
            .adjust_room(room as i32, BPF_ADJ_ROOM_MAC, 0)
            .ok()
    }
    #[inline(always)]
    fn encapsulate(&mut self, room: u32, v6: bool) -> Option<()> {
        let carrier = if v6 {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        };
        self.context
            .skb
            .adjust_room(
                room as i32,
                BPF_ADJ_ROOM_MAC,
                u64::from(carrier | BPF_F_ADJ_ROOM_FIXED_GSO),
            )
            .ok()
    }
    #[inline(always)]
    fn decapsulate(&mut self, room: u32) -> Option<()> {
        self.context
            .skb
            .adjust_room(
                -(room as i32),
                BPF_ADJ_ROOM_MAC,
                u64::from(BPF_F_ADJ_ROOM_FIXED_GSO),
            )
            .ok()
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).gso_size }
    }
    #[inline(always)]
    fn was_received(&self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).ingress_ifindex != 0 }
    }
    #[inline(always)]
    fn is_answer_of_ours(&self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.context.skb.skb).mark == ANSWER_MARK }
    }
}

/// Returns the index of the device at which a socket buffer meets a program.
#[inline(always)]
pub fn ifindex(context: &TcContext) -> u32 {
    // SAFETY: the context of this program.
    unsafe { (*context.skb.skb).ifindex }
}

/// A frame in XDP, by direct access: the helpers that copy are newer than the oldest kernel that
/// we run on.
pub struct Frame<'a> {
    /// Context of the running program.
    pub context: &'a XdpContext,
}

impl Frame<'_> {
    /// Returns a pointer to `len` bytes at `offset`; `None` beyond the frame's end.
    #[inline(always)]
    fn at(&self, offset: u32, len: usize) -> Option<*mut u8> {
        let (start, end) = (self.context.data(), self.context.data_end());
        let mut position = u64::from(offset);
        let mut address = start as u64;
        // SAFETY: arithmetic on registers. The verifier has to see a bounded offset added to the
        // packet pointer in just this form; plain Rust lets LLVM move the bound to a copy of the
        // register.
        unsafe {
            core::arch::asm!(
                "{0} &= 2047",
                "{1} += {0}",
                inout(reg) position,
                inout(reg) address,
                options(pure, nomem, nostack)
            );
        }
        let _bounded = position;
        if address as usize + len > end {
            None
        } else {
            Some(address as *mut u8)
        }
    }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn load<T: Wire>(&self, offset: u32) -> Option<T> {
        let from = self.at(offset, size_of::<T>())?;
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the bytes lie in the frame, and any bytes are a T.
        unsafe {
            ptr::copy_nonoverlapping(from, value.as_mut_ptr().cast::<u8>(), size_of::<T>());
            Some(value.assume_init())
        }
    }
    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: u32, value: &T) -> Option<()> {
        let to = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes lie in the frame.
        unsafe { ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), to, size_of::<T>()) };
        Some(())
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: u32, change: Change) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(offset)?);
        if change.udp && old == 0 {
            return Some(());
        }
        let mut new = checksum_update(old, change.addresses);
        if change.udp && new == 0 {
            new = 0xffff;
        }
        new = checksum_update(new, change.ports);
        if change.udp && new == 0 {
            new = 0xffff;
        }
        self.store(offset, &new.to_ne_bytes())
    }
    #[inline(always)]
    fn account(&mut self, _change: u32) {}
    #[inline(always)]
    fn truncate(&mut self, _len: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn insert(&mut self, _room: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn encapsulate(&mut self, _room: u32, _v6: bool) -> Option<()> {
        None
    }
    #[inline(always)]
    fn decapsulate(&mut self, _room: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn was_received(&self) -> bool {
        true
    }
    #[inline(always)]
    fn is_answer_of_ours(&self) -> bool {
        false
    }
}
