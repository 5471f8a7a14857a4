//! The stages as subprograms of the kernel's programs: each has a stack of its own, and is a global
//! function, which the verifier checks by itself.

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxy_common::flow::Hook;
use proxy_common::net::{Family, IfIndex, V4, V6};
use proxy_ebpf::exception::{self, Egress};
use proxy_ebpf::{Action, Scratch, Stage, Stages, forward, process, stages};

use super::log::{log4, log6};
use super::maps::Maps;
use super::packets::{Skb, ifindex};
use super::values::Kernel;
use crate::{UNTOUCHED, verdict};

/// Returns this CPU's scratch: tc programs of one CPU do not interrupt each other, and no stage
/// keeps the reference.
#[inline(always)]
fn scratch<'a, F: Family>() -> Option<&'a mut Scratch<F>>
where
    Kernel: Maps<F, F::Addr>,
{
    let scratch = Kernel::scratch().get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own, and lives as long as the program runs.
    Some(unsafe { &mut *scratch })
}

/// Uses the context: the verifier wants it as an argument in each call of a subprogram, where the
/// compiler would leave out an argument that is not used.
#[inline(always)]
fn keep(skb: *mut __sk_buff) {
    // SAFETY: the context of this program.
    _ = unsafe { ptr::read_volatile(&raw const (*skb).len) };
}

/// Makes a module with the stages of one hook and family, from the table [`stages`].
macro_rules! subprograms {
    (
        { module: $module:ident, family: $family:ty, hook: $hook:expr, log: $log:ident }
        steps { $($(#[$step_doc:meta])* $step:ident = $step_number:literal => $step_fn:ident
            at [$($step_hook:ident)*]:
            |$sp:ident, $st:ident, $sd:ident, $sh:ident, $ss:ident| $step_run:expr;)* }
        ends { $($(#[$end_doc:meta])* $end:ident = $end_number:literal => $end_fn:ident
            at [$($end_hook:ident)*]:
            |$ep:ident, $et:ident, $ed:ident, $eh:ident, $es:ident| $end_run:expr;)* }
    ) => {
        pub mod $module {
            use super::*;

            const HOOK: Hook = $hook;

            #[inline(always)]
            pub fn serve(skb: *mut __sk_buff) -> i32 {
                let verdict = proxy_ebpf::serve(&mut Subprograms(skb));
                $log(skb);
                verdict
            }

            struct Subprograms(*mut __sk_buff);

            impl Stages for Subprograms {
                type Verdict = i32;

                $(
                    #[inline(always)]
                    fn $step_fn(&mut self) -> Stage {
                        if matches!(HOOK, $(Hook::$step_hook)|*) {
                            Stage::from_number($step_fn(self.0))
                        } else {
                            Stage::Untouched
                        }
                    }
                )*
                $(
                    #[inline(always)]
                    fn $end_fn(&mut self) -> i32 {
                        if matches!(HOOK, $(Hook::$end_hook)|*) {
                            $end_fn(self.0)
                        } else {
                            verdict(&TcContext::new(self.0), Ok(Action::Untouched))
                        }
                    }
                )*
            }

            $(
                #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($step_fn)))]
                extern "C" fn $step_fn(skb: *mut __sk_buff) -> u32 {
                    keep(skb);
                    let Some($ss) = scratch::<$family>() else { return Stage::Untouched as u32 };
                    let context = TcContext::new(skb);
                    let $st = &Kernel { context: context.as_ptr() };
                    let ($sd, $sh) = (IfIndex(ifindex(&context)), HOOK);
                    let $sp = &mut Skb { context: &context };
                    let stage: Stage = $step_run;
                    stage as u32
                }
            )*
            $(
                #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($end_fn)))]
                extern "C" fn $end_fn(skb: *mut __sk_buff) -> i32 {
                    let Some($es) = scratch::<$family>() else { return UNTOUCHED };
                    let context = TcContext::new(skb);
                    let $et = &Kernel { context: context.as_ptr() };
                    let ($ed, $eh) = (IfIndex(ifindex(&context)), HOOK);
                    let $ep = &mut Skb { context: &context };
                    verdict(&context, $end_run)
                }
            )*
        }
    };
}

stages!(subprograms {
    module: from_device4,
    family: V4,
    hook: Hook::FromDevice,
    log: log4
});
stages!(subprograms {
    module: from_device6,
    family: V6,
    hook: Hook::FromDevice,
    log: log6
});
stages!(subprograms {
    module: from_pod4,
    family: V4,
    hook: Hook::FromPod,
    log: log4
});
stages!(subprograms {
    module: from_pod6,
    family: V6,
    hook: Hook::FromPod,
    log: log6
});
stages!(subprograms {
    module: to_pod4,
    family: V4,
    hook: Hook::ToPod,
    log: log4
});
stages!(subprograms {
    module: to_pod6,
    family: V6,
    hook: Hook::ToPod,
    log: log6
});

/// Makes a module with the subprograms of [`proxy_ebpf::to_device`] for one family. A line is
/// `function(packet, tables, scratch) -> result: call => number for the caller`.
macro_rules! leaving {
    (module: $module:ident, family: $family:ty) => {
        pub mod $module {
            use super::*;

            #[inline(always)]
            pub fn serve(skb: *mut __sk_buff) -> i32 {
                let done = restore(skb);
                if done != UNTOUCHED {
                    return done;
                }
                match Egress::from_number(find(skb)) {
                    Egress::SendError => send_error(skb),
                    Egress::SendException => send_exception(skb),
                    Egress::Other => enter(skb),
                }
            }

            leaving!(@subprogram $module, restore, |packet, tables|
                forward::restore::<$family, _, _>(packet, tables));
            leaving!(@subprogram $module, send_error, $family, |packet, tables, scratch|
                exception::send_error(packet, tables, Hook::ToDevice, scratch));
            leaving!(@subprogram $module, send_exception, $family, |packet, tables, scratch|
                exception::send(packet, tables, Hook::ToDevice, scratch));
            leaving!(@subprogram $module, enter, $family, |packet, tables, scratch|
                process::enter(packet, tables, scratch));

            #[unsafe(export_name = concat!(stringify!($module), "_find"))]
            extern "C" fn find(skb: *mut __sk_buff) -> u32 {
                let Some(scratch) = scratch::<$family>() else { return Egress::Other as u32 };
                let context = TcContext::new(skb);
                let tables = Kernel { context: context.as_ptr() };
                exception::on_egress(&Skb { context: &context }, &tables, scratch) as u32
            }
        }
    };
    (@subprogram $module:ident, $name:ident, |$packet:ident, $tables:ident| $run:expr) => {
        #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($name)))]
        extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            let context = TcContext::new(skb);
            let $tables = &Kernel { context: context.as_ptr() };
            let $packet = &mut Skb { context: &context };
            verdict(&context, $run)
        }
    };
    (@subprogram $module:ident, $name:ident, $family:ty,
        |$packet:ident, $tables:ident, $scratch:ident| $run:expr) => {
        #[unsafe(export_name = concat!(stringify!($module), "_", stringify!($name)))]
        extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            let Some($scratch) = scratch::<$family>() else { return UNTOUCHED };
            let context = TcContext::new(skb);
            let $tables = &Kernel { context: context.as_ptr() };
            let $packet = &mut Skb { context: &context };
            verdict(&context, $run)
        }
    };
}

leaving!(module: leaving4, family: V4);
leaving!(module: leaving6, family: V6);
