//! The programs of the kernel: the hooks, and the one place where an action becomes a verdict
//! number. All else is the library's.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    missing_docs,
    reason = "a program; the attribute macros also make items of their own"
)]

mod kernel {
    pub mod helpers;
    pub mod log;
    pub mod maps;
    pub mod packets;
    pub mod sockets;
    pub mod subprograms;
    pub mod tables;
    pub mod values;
}

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use proxy_common::config::Config;
use proxy_common::net::{Family, IfIndex, V4, V6};
use proxy_common::reason::Reason;
use proxy_ebpf::parse::{self, Ip};
use proxy_ebpf::{Action, Tables};

use kernel::helpers::{count, jiffies};
use kernel::maps::CONFIG;
use kernel::packets::{ANSWER_MARK, Frame, Skb};
use kernel::subprograms::{
    from_device4, from_device6, from_pod4, from_pod6, leaving4, leaving6, to_pod4, to_pod6,
};
use kernel::values::Kernel;

/// The verdict on a packet that passes as it came: programs after ours run.
const UNTOUCHED: i32 = TC_ACT_UNSPEC;

/// Makes a tc program that serves packets by their family. VLAN-tagged packets, and those that the
/// guard after `unless` picks out, pass.
macro_rules! hook {
    (
        $(#[$doc:meta])*
        $name:ident: v4: $v4:ident, v6: $v6:ident $(, unless: $guard:ident)?
    ) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            if is_tagged(&context) $(|| $guard(&context))? {
                return UNTOUCHED;
            }
            match parse::ethertype(&Skb { context: &context }) {
                Some(V4::ETHERTYPE) => $v4::serve(context.skb.skb),
                Some(V6::ETHERTYPE) => $v6::serve(context.skb.skb),
                Some(_) | None => UNTOUCHED,
            }
        }
    };
}

hook!(
    /// tc ingress of node devices and tunnels.
    from_device: v4: from_device4, v6: from_device6
);
hook!(
    /// tc ingress of the host side of a pod's veth.
    from_pod: v4: from_pod4, v6: from_pod6
);
hook!(
    /// tc egress of the host side of a pod's veth.
    to_pod: v4: to_pod4, v6: to_pod6
);
hook!(
    /// tc egress of node devices and tunnels; and of loopback, if sockets of processes have no
    /// hooks.
    to_device: v4: leaving4, v6: leaving6, unless: was_forwarded
);

/// Returns true if the packet has a VLAN tag beside it: the VLAN's own device meets it without the
/// tag. A tag of VLAN 0 has only a priority, and its frames belong to the device itself.
#[inline(always)]
fn is_tagged(context: &TcContext) -> bool {
    const VLAN: u32 = 0xfff;
    let skb = context.skb.skb;
    // SAFETY: the context of this program.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN != 0 }
}

/// Returns true if a packet that leaves by a node device was received, and the host's firewall is
/// not in its way: a reply to restore is then made by this host itself, so this is none. A socket
/// does not show this: ICMPv6 refusals have none before Linux 6.13.
#[inline(always)]
fn was_forwarded(context: &TcContext) -> bool {
    // SAFETY: the context of this program.
    let received = unsafe { (*context.skb.skb).ingress_ifindex != 0 };
    received
        && !CONFIG
            .get(0)
            .is_some_and(|config| config.has(Config::THROUGH_STACK))
}

/// Turns a result into a tc verdict: the one place for it. The decision is also left in `cb`, for
/// tests that run the program by `BPF_PROG_TEST_RUN`.
#[inline(always)]
fn verdict(context: &TcContext, result: Result<Action, Reason>) -> i32 {
    let skb = context.skb.skb;
    match result {
        Ok(Action::Untouched) => {
            trace(skb, 1, 0);
            TC_ACT_UNSPEC
        }
        Ok(Action::Stack) => {
            trace(skb, 2, 0);
            TC_ACT_OK
        }
        Ok(Action::Pod(device)) => {
            trace(skb, 3, device.0);
            // A packet from a bridge port is OTHERHOST, which old kernels drop in the pod silently.
            // SAFETY: the context of this program.
            unsafe { bpf_skb_change_type(skb, 0) };
            // SAFETY: no pointer.
            unsafe { bpf_redirect_peer(device.0, 0) as i32 }
        }
        Ok(Action::Neighbour(device)) => {
            trace(skb, 4, device.0);
            // SAFETY: no pointer is passed.
            unsafe { bpf_redirect_neigh(device.0, ptr::null_mut(), 0, 0) as i32 }
        }
        Ok(Action::Transmit(device)) => {
            trace(skb, 5, device.0);
            // SAFETY: the context of this program, and no pointer. A packet that leaves the
            // namespace loses its mark.
            unsafe {
                (*skb).mark = ANSWER_MARK;
                bpf_redirect(device.0, 0) as i32
            }
        }
        Ok(Action::Return(device)) => {
            trace(skb, 7, device.0);
            // SAFETY: as above.
            unsafe {
                (*skb).mark = ANSWER_MARK;
                bpf_redirect(device.0, BPF_F_INGRESS.into()) as i32
            }
        }
        Ok(Action::Enter(device)) => {
            trace(skb, 8, device.0);
            // SAFETY: no pointer.
            unsafe { bpf_redirect(device.0, BPF_F_INGRESS.into()) as i32 }
        }
        Err(reason) => {
            trace(skb, 6, reason as u32);
            count(reason.index());
            TC_ACT_SHOT
        }
    }
}

/// Leaves the number of an action, and a detail of it, in the packet's control block.
#[inline(always)]
fn trace(skb: *mut __sk_buff, action: u32, detail: u32) {
    // SAFETY: scratch space that belongs to tc programs.
    unsafe {
        (*skb).cb[0] = action;
        (*skb).cb[1] = detail;
    }
}

/// XDP of a node device.
#[xdp]
pub fn portway_xdp(context: XdpContext) -> u32 {
    by_family(&context)
}

/// XDP of a node device that may split frames over several buffers.
#[xdp(frags)]
pub fn portway_xdp_frags(context: XdpContext) -> u32 {
    by_family(&context)
}

#[inline(always)]
fn by_family(context: &XdpContext) -> u32 {
    match parse::ethertype(&Frame { context }) {
        Some(V4::ETHERTYPE) => xdp4(context.ctx),
        Some(V6::ETHERTYPE) => xdp6(context.ctx),
        Some(_) | None => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn xdp4(md: *mut xdp_md) -> u32 {
    xdp_verdict::<V4>(&XdpContext::new(md))
}

#[inline(never)]
fn xdp6(md: *mut xdp_md) -> u32 {
    xdp_verdict::<V6>(&XdpContext::new(md))
}

/// Runs XDP's function and turns its result into an XDP verdict: the one place for it.
#[inline(always)]
fn xdp_verdict<F: Ip>(context: &XdpContext) -> u32
where
    Kernel: Tables<F>,
{
    let device = IfIndex(context.ingress_ifindex() as u32);
    let tables = Kernel {
        context: context.as_ptr(),
    };
    match proxy_ebpf::xdp::<F, _, _>(&mut Frame { context }, &tables, device) {
        Ok(Action::Transmit(out)) if out == device => xdp_action::XDP_TX,
        // SAFETY: no pointer.
        Ok(Action::Transmit(out)) => unsafe { bpf_redirect(out.0, 0) as u32 },
        Ok(
            Action::Untouched
            | Action::Stack
            | Action::Pod(_)
            | Action::Neighbour(_)
            | Action::Return(_)
            | Action::Enter(_),
        ) => xdp_action::XDP_PASS,
        Err(reason) => {
            count(reason.index());
            xdp_action::XDP_DROP
        }
    }
}

/// Gives user space the clock of the flow tables: low 32 bits of jiffies in `cb[0]`. Never
/// attached, only run by `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn now(context: TcContext) -> i32 {
    trace(context.skb.skb, jiffies(), 0);
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
