//! The thin program around the library: hooks, their stages, and the one place where an action becomes a verdict number.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    missing_docs,
    reason = "a program; the attribute macros also make items of their own"
)]

mod kernel {
    pub mod log;
    pub mod maps;
    pub mod packets;
    pub mod sockets;
}

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use proxy_common::flow::Hook;
use proxy_common::net::{Family, IfIndex, Protocol, V4, V6};
use proxy_common::reason::Reason;
use proxy_common::service::Config;
use proxy_ebpf::parse::{self, Ip};
use proxy_ebpf::{Action, Scratch, Stage, Stages, Tables, dsr, exception, policy, process};

use kernel::log::{tell4, tell6};
use kernel::maps::{CONFIG, Kernel, SCRATCH4, SCRATCH6, count, jiffies};
use kernel::packets::{ANSWER_MARK, Frame, Skb, ifindex};

/// A tc program: `$v4` or `$v6` by the packet's family.
macro_rules! hook {
    ($(#[$doc:meta])* $name:ident: $v4:expr, $v6:expr $(, unless $guard:ident)?) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            if is_tagged(&context) $(|| $guard(&context))? {
                return TC_ACT_UNSPEC;
            }
            match parse::ethertype(&Skb { context: &context }) {
                Some(V4::ETHERTYPE) => $v4(context.skb.skb),
                Some(V6::ETHERTYPE) => $v6(context.skb.skb),
                _ => TC_ACT_UNSPEC,
            }
        }
    };
}

/// A last stage that rewrites, for a module that has a scratch.
macro_rules! sending {
    ($module:ident, $name:ident, $hook:expr, $send:path) => {
        #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($name)))]
        extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            let Some(scratch) = scratch() else {
                return TC_ACT_UNSPEC;
            };
            let context = TcContext::new(skb);
            let tables = Kernel {
                context: context.as_ptr(),
            };
            let result = $send(&mut Skb { context: &context }, &tables, $hook, scratch);
            verdict(&context, result)
        }
    };
}

/// The hooks that open and judge flows, for one family and hook: each stage is a subprogram, so that their stacks do not add
/// up, and a global one, which the verifier judges by itself.
macro_rules! serving {
    ($module:ident, $family:ty, $hook:expr, $scratch:ident, $tell:ident) => {
        mod $module {
            use super::*;

            const HOOK: Hook = $hook;
            const AT_POD: bool = !matches!(HOOK, Hook::FromDevice);
            const OPENS: bool = !HOOK.is_egress();

            #[inline(always)]
            pub fn serve(skb: *mut __sk_buff) -> i32 {
                let verdict = proxy_ebpf::serve(&mut Subprograms(skb));
                $tell(skb);
                verdict
            }

            struct Subprograms(*mut __sk_buff);

            impl Stages for Subprograms {
                type Verdict = i32;

                #[inline(always)]
                fn admit(&mut self) -> Stage {
                    Stage::from_number(admit(self.0))
                }
                #[inline(always)]
                fn find_flow(&mut self) -> Stage {
                    Stage::from_number(find_flow(self.0))
                }
                #[inline(always)]
                fn exception(&mut self) -> Stage {
                    Stage::from_number(exception(self.0))
                }
                #[inline(always)]
                fn decapsulate(&mut self) -> Stage {
                    if AT_POD { Stage::Untouched } else { Stage::from_number(decapsulate(self.0)) }
                }
                #[inline(always)]
                fn open(&mut self) -> Stage {
                    if OPENS { Stage::from_number(open(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn inner(&mut self) -> Stage {
                    if OPENS { Stage::from_number(inner(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn untranslated(&mut self) -> Stage {
                    if AT_POD { Stage::from_number(untranslated(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn judge(&mut self) -> Stage {
                    Stage::from_number(judge(self.0))
                }
                #[inline(always)]
                fn follow(&mut self) -> Stage {
                    if AT_POD { Stage::from_number(follow(self.0)) } else { Stage::Untouched }
                }
                #[inline(always)]
                fn send(&mut self) -> i32 {
                    send(self.0)
                }
                #[inline(always)]
                fn send_error(&mut self) -> i32 {
                    send_error(self.0)
                }
                #[inline(always)]
                fn send_exception(&mut self) -> i32 {
                    send_exception(self.0)
                }
                #[inline(always)]
                fn stop(&mut self) -> i32 {
                    stop(self.0)
                }
                #[inline(always)]
                fn untouched(&mut self) -> i32 {
                    if AT_POD {
                        trace(self.0, 1, 0);
                        return TC_ACT_UNSPEC;
                    }
                    left(self.0)
                }
            }

            /// This CPU's own element: tc programs of one CPU do not interrupt each other, and no stage keeps it.
            #[inline(always)]
            fn scratch<'a>() -> Option<&'a mut Scratch<$family>> {
                let scratch = $scratch.get_ptr_mut(0)?;
                // SAFETY: as said.
                Some(unsafe { &mut *scratch })
            }

            /// A stage by what it needs.
            macro_rules! stage {
                ($name:ident, |$packet:ident, $tables:ident, $device:ident, $its:ident| $run:expr) => {
                    #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($name)))]
                    extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
                        keep(skb);
                        let Some($its) = scratch() else { return Stage::Untouched as u32 };
                        let context = TcContext::new(skb);
                        let ($tables, $device) = (&Kernel { context: context.as_ptr() }, IfIndex(ifindex(&context)));
                        let $packet = &mut Skb { context: &context };
                        let stage: Stage = $run;
                        stage as u32
                    }
                };
            }

            stage!(admit, |packet, tables, device, scratch| policy::admit(packet, tables, device, HOOK, scratch));
            stage!(find_flow, |packet, tables, _device, scratch| proxy_ebpf::find_flow(packet, tables, HOOK, scratch));
            stage!(exception, |packet, tables, _device, scratch| proxy_ebpf::exception::find_flow(packet, tables, HOOK, scratch));
            stage!(decapsulate, |packet, tables, _device, scratch| dsr::decapsulate(packet, tables, scratch));
            stage!(open, |packet, tables, device, scratch| proxy_ebpf::open(packet, tables, device, HOOK, scratch));
            stage!(inner, |_packet, tables, _device, scratch| proxy_ebpf::inner(tables, scratch));
            stage!(untranslated, |_packet, tables, _device, scratch| policy::untranslated(tables, HOOK, scratch));
            stage!(judge, |_packet, tables, _device, scratch| policy::judge(tables, HOOK, scratch));
            stage!(follow, |_packet, tables, _device, scratch| policy::follow(tables, scratch));

            sending!($module, send, HOOK, proxy_ebpf::send);
            sending!($module, send_error, HOOK, exception::send_error);
            sending!($module, send_exception, HOOK, exception::send);

            #[unsafe(export_name = concat!(stringify!($module), "_left"))]
            extern "C" fn left(skb: *mut __sk_buff) -> i32 {
                let Some(scratch) = scratch() else { return TC_ACT_UNSPEC };
                verdict(&TcContext::new(skb), process::left(scratch))
            }

            #[unsafe(export_name = concat!(stringify!($module), "_stop"))]
            extern "C" fn stop(skb: *mut __sk_buff) -> i32 {
                let Some(scratch) = scratch() else { return TC_ACT_UNSPEC };
                let context = TcContext::new(skb);
                let (tables, device) = (Kernel { context: context.as_ptr() }, IfIndex(ifindex(&context)));
                let result = proxy_ebpf::stop(&mut Skb { context: &context }, &tables, device, HOOK, scratch);
                verdict(&context, result)
            }
        }
    };
}

serving!(from_device4, V4, Hook::FromDevice, SCRATCH4, tell4);
serving!(from_device6, V6, Hook::FromDevice, SCRATCH6, tell6);
serving!(from_pod4, V4, Hook::FromPod, SCRATCH4, tell4);
serving!(from_pod6, V6, Hook::FromPod, SCRATCH6, tell6);
serving!(to_pod4, V4, Hook::ToPod, SCRATCH4, tell4);
serving!(to_pod6, V6, Hook::ToPod, SCRATCH6, tell6);

/// [`policy::has`], verified once for both ends and all stages.
#[unsafe(no_mangle)]
extern "C" fn ports_have(set: u32, protocol: u32, port: u32) -> u32 {
    let tables = Kernel {
        context: ptr::null_mut(),
    };
    u32::from(policy::has::<V4, _>(
        &tables,
        set,
        Protocol(protocol as u8),
        port as u16,
    ))
}

/// Uses the context, whatever else is done: the verifier judges each stage by itself and wants it in every call, where the compiler would leave an
/// argument away that is not used.
#[inline(always)]
fn keep(skb: *mut __sk_buff) {
    // SAFETY: the context of this program.
    _ = unsafe { ptr::read_volatile(&raw const (*skb).len) };
}

/// The hooks that only restore what went through the stack, for one family.
macro_rules! restoring {
    ($function:ident, $entry:path) => {
        #[unsafe(export_name = stringify!($function))]
        extern "C" fn $function(skb: *mut __sk_buff) -> i32 {
            let context = TcContext::new(skb);
            let device = IfIndex(ifindex(&context));
            let tables = Kernel {
                context: context.as_ptr(),
            };
            let result = $entry(&mut Skb { context: &context }, &tables, device);
            verdict(&context, result)
        }
    };
}

/// The same for what is odd, in frames of their own.
macro_rules! restoring_exceptions {
    ($name:ident, $family:ty, $scratch:ident, after $restore:ident) => {
        mod $name {
            use super::*;

            #[inline(always)]
            pub fn run(skb: *mut __sk_buff) -> i32 {
                let done = $restore(skb);
                if done != TC_ACT_UNSPEC {
                    return done;
                }
                match Stage::from_number(find(skb)) {
                    Stage::SendError => send_error(skb),
                    Stage::SendException => send_exception(skb),
                    _ => enter(skb),
                }
            }

            #[unsafe(export_name = concat!(stringify!($name), "_enter"))]
            extern "C" fn enter(skb: *mut __sk_buff) -> i32 {
                let Some(scratch) = scratch() else {
                    return TC_ACT_UNSPEC;
                };
                let context = TcContext::new(skb);
                let tables = Kernel {
                    context: context.as_ptr(),
                };
                verdict(
                    &context,
                    process::enter(&mut Skb { context: &context }, &tables, scratch),
                )
            }

            #[unsafe(export_name = concat!(stringify!($name), "_find"))]
            extern "C" fn find(skb: *mut __sk_buff) -> u32 {
                let Some(scratch) = scratch() else {
                    return Stage::Untouched as u32;
                };
                let context = TcContext::new(skb);
                let tables = Kernel {
                    context: context.as_ptr(),
                };
                exception::leave(&Skb { context: &context }, &tables, scratch) as u32
            }

            sending!($name, send_error, Hook::ToDevice, exception::send_error);
            sending!($name, send_exception, Hook::ToDevice, exception::send);

            #[inline(always)]
            fn scratch<'a>() -> Option<&'a mut Scratch<$family>> {
                let scratch = $scratch.get_ptr_mut(0)?;
                // SAFETY: this CPU's own element: tc programs of one CPU do not interrupt each other.
                Some(unsafe { &mut *scratch })
            }
        }
    };
}

restoring_exceptions!(leaving4, V4, SCRATCH4, after leave4);
restoring_exceptions!(leaving6, V6, SCRATCH6, after leave6);
restoring!(leave4, proxy_ebpf::leave::<V4, _, _>);
restoring!(leave6, proxy_ebpf::leave::<V6, _, _>);

hook!(
    /// tc ingress of node devices and tunnels.
    from_device: from_device4::serve, from_device6::serve
);
hook!(
    /// tc ingress of the host side of a pod's veth.
    from_pod: from_pod4::serve, from_pod6::serve
);
hook!(
    /// tc egress of the host side of a pod's veth.
    to_pod: to_pod4::serve, to_pod6::serve
);
hook!(
    /// tc egress of node devices and tunnels, and of loopback where processes are not served by their sockets.
    to_device: leaving4::run, leaving6::run, unless forwarded
);

/// Whether a VLAN tag lies beside the packet: then it is the business of the VLAN's own device, which meets it without. The tag of VLAN 0
/// says a priority only, and its frames are the device's own.
#[inline(always)]
fn is_tagged(context: &TcContext) -> bool {
    const VLAN: u32 = 0xfff;
    let skb = context.skb.skb;
    // SAFETY: the context of this program.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN != 0 }
}

/// Whether a packet leaving by a node device was forwarded past the stack's hooks for such: then only what this host itself has made can be
/// replies of a backend here, and it is none. A socket need not be known of those: refusals by IPv6 have none before Linux 6.13.
#[inline(always)]
fn forwarded(context: &TcContext) -> bool {
    // SAFETY: the context of this program.
    let forwarded = unsafe { (*context.skb.skb).ingress_ifindex != 0 };
    forwarded
        && !CONFIG
            .get(0)
            .is_some_and(|config| config.has(Config::THROUGH_STACK))
}

/// The one place where tc verdicts are chosen. What was decided is left in `cb` for whoever runs the program by test run.
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
            // From a bridge port the packet is OTHERHOST, and old kernels drop that in the pod without a word.
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
            // SAFETY: the context of this program, and no pointer. A packet that leaves the namespace loses its mark.
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

#[inline(always)]
fn trace(skb: *mut __sk_buff, action: u32, detail: u32) {
    // SAFETY: scratch space that belongs to tc programs.
    unsafe {
        (*skb).cb[0] = action;
        (*skb).cb[1] = detail;
    }
}

/// XDP on a node device.
#[xdp]
pub fn portway_xdp(context: XdpContext) -> u32 {
    xdp_program(&context)
}

/// The same for devices whose frames may lie in several buffers.
#[xdp(frags)]
pub fn portway_xdp_frags(context: XdpContext) -> u32 {
    xdp_program(&context)
}

#[inline(always)]
fn xdp_program(context: &XdpContext) -> u32 {
    match parse::ethertype(&Frame { context }) {
        Some(V4::ETHERTYPE) => xdp4(context.ctx),
        Some(V6::ETHERTYPE) => xdp6(context.ctx),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn xdp4(md: *mut xdp_md) -> u32 {
    xdp_family::<V4>(&XdpContext::new(md))
}

#[inline(never)]
fn xdp6(md: *mut xdp_md) -> u32 {
    xdp_family::<V6>(&XdpContext::new(md))
}

/// The one place where XDP verdicts are chosen.
#[inline(always)]
fn xdp_family<F: Ip>(context: &XdpContext) -> u32
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

/// Tells user space the time of the flow tables: low 32 bits of jiffies in `cb[0]`. Never attached, only test-run.
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
