//! The table of stages, and the order in which a packet passes them.

use proxy_common::flow::Hook;
use proxy_common::net::{Family, IfIndex};
use proxy_common::reason::Reason;

use crate::parse::Ip;
use crate::{Action, Packet, Scratch, Tables};

/// The table of stages: `stages!(make { context })` calls the macro `make` with the context in
/// braces and the table. [`Stage`], [`Stages`], the host's runner and the kernel's subprograms are
/// all made from it. Only [`serve`], the order, is written by hand.
///
/// A line is `Name = number => function at [hooks]: |packet, tables, device, hook, scratch| call;`.
/// `steps` return the next stage, `ends` return what becomes of the packet.
#[macro_export]
macro_rules! stages {
    ($make:ident { $($context:tt)* }) => {
        $make! {
            { $($context)* }
            steps {
                /// The packet has just arrived: find its pod, and check its source.
                Admit = 13 => admit at [FromDevice FromPod ToPod]:
                    |packet, tables, device, hook, scratch|
                    $crate::admission::admit(packet, tables, device, hook, scratch);
                /// It may be here: parse it, and find its flow.
                FindFlow = 5 => find_flow at [FromDevice FromPod ToPod]:
                    |packet, tables, _device, hook, scratch|
                    $crate::forward::find_flow(packet, tables, hook, scratch);
                /// It is no whole TCP segment, UDP datagram or SCTP packet: parse it as an
                /// exception, and find its flow.
                Exception = 6 => exception at [FromDevice FromPod ToPod]:
                    |packet, tables, _device, hook, scratch|
                    $crate::exception::find_flow(packet, tables, hook, scratch);
                /// It contains another packet, which takes its place.
                Decapsulate = 12 => decapsulate at [FromDevice]:
                    |packet, tables, _device, _hook, scratch|
                    $crate::dsr::decapsulate(packet, tables, scratch);
                /// It has no flow, and may open one.
                Open = 1 => open at [FromDevice FromPod]:
                    |packet, tables, device, hook, scratch|
                    $crate::open::open(packet, tables, device, hook, scratch);
                /// Its flow is open; a second flow, which masquerades, begins where that one ends.
                Inner = 4 => inner at [FromDevice FromPod]:
                    |_packet, tables, _device, _hook, scratch|
                    $crate::open::inner(tables, scratch);
                /// No Service serves it: it belongs to a flow that is not translated here, or
                /// begins one.
                Untranslated = 7 => untranslated at [FromPod ToPod]:
                    |_packet, tables, _device, hook, scratch|
                    $crate::verdict::untranslated(tables, hook, scratch);
                /// It belongs to the flow in the scratch: ask NetworkPolicy.
                Judge = 8 => judge at [FromDevice FromPod ToPod]:
                    |_packet, tables, _device, hook, scratch|
                    $crate::verdict::judge(tables, hook, scratch);
                /// It is allowed and goes on as it is; follow its connection from here on.
                Follow = 9 => follow at [FromPod ToPod]:
                    |_packet, tables, _device, _hook, scratch|
                    $crate::verdict::follow(tables, scratch);
            }
            ends {
                /// Rewrite it as the flow in the scratch prescribes, and send it on.
                Send = 2 => send at [FromDevice FromPod ToPod]:
                    |packet, tables, _device, hook, scratch|
                    $crate::forward::send(packet, tables, hook, scratch);
                /// It is an ICMP error about packets of the flow in the scratch: rewrite it like
                /// these, and send it on.
                SendError = 10 => send_error at [FromDevice FromPod ToPod]:
                    |packet, tables, _device, hook, scratch|
                    $crate::exception::send_error(packet, tables, hook, scratch);
                /// It is a [`Scratch::exception`]: rewrite it as the flow in the scratch
                /// prescribes, and send it on.
                SendException = 11 => send_exception at [FromDevice FromPod ToPod]:
                    |packet, tables, _device, hook, scratch|
                    $crate::exception::send(packet, tables, hook, scratch);
                /// Drop it or answer it, for the reason in the scratch.
                Stop = 3 => stop at [FromDevice FromPod ToPod]:
                    |packet, tables, device, hook, scratch|
                    $crate::stop::stop(packet, tables, device, hook, scratch);
                /// Let it pass as it came.
                Untouched = 0 => untouched at [FromDevice]:
                    |_packet, _tables, _device, _hook, scratch|
                    $crate::process::pass(scratch);
            }
        }
    };
}

/// Makes [`Stage`] and [`Stages`].
macro_rules! declare {
    (
        {}
        steps { $($(#[doc = $step_doc:literal])* $step:ident = $step_number:literal =>
            $step_fn:ident at [$($step_hook:ident)*]: |$($step_arg:ident),*| $step_run:expr;)* }
        ends { $($(#[doc = $end_doc:literal])* $end:ident = $end_number:literal =>
            $end_fn:ident at [$($end_hook:ident)*]: |$($end_arg:ident),*| $end_run:expr;)* }
    ) => {
        proxy_common::numbered! {
            /// The next stage of a packet.
            pub enum Stage: u32, else Untouched {
                $($(#[doc = $step_doc])* $step = $step_number,)*
                $($(#[doc = $end_doc])* $end = $end_number,)*
            }
        }

        /// Runs the stages: functions of this library, each of which the kernel's binary runs as a
        /// subprogram with a stack of its own.
        pub trait Stages {
            /// The result of the last stage.
            type Verdict;

            $(
                $(#[doc = $step_doc])*
                fn $step_fn(&mut self) -> Stage;
            )*
            $(
                $(#[doc = $end_doc])*
                fn $end_fn(&mut self) -> Self::Verdict;
            )*
        }
    };
}

stages!(declare {});

/// Runs the stages of a packet in their order: admit, parse and find the flow, open a flow, judge,
/// rewrite and send.
#[inline(always)]
pub fn serve<S: Stages>(stages: &mut S) -> S::Verdict {
    let mut next = stages.admit();
    if next == Stage::FindFlow {
        next = stages.find_flow();
    }
    if next == Stage::Exception {
        next = stages.exception();
    }
    if next == Stage::Decapsulate {
        next = stages.decapsulate();
    }
    let encapsulated = next == Stage::FindFlow;
    if encapsulated {
        next = stages.find_flow();
        if next == Stage::Exception {
            next = stages.exception();
        }
    }
    if next == Stage::Open {
        next = stages.open();
    }
    if next == Stage::Inner {
        next = stages.inner();
    }
    if next == Stage::Untranslated {
        next = stages.untranslated();
    }
    if next == Stage::Judge {
        next = stages.judge();
    }
    if next == Stage::Follow {
        next = stages.follow();
    }
    match next {
        Stage::Send => stages.send(),
        Stage::SendError => stages.send_error(),
        Stage::SendException => stages.send_exception(),
        Stage::Stop => stages.stop(),
        // A step is last only at a hook that does not have it.
        Stage::Untouched
        | Stage::Admit
        | Stage::FindFlow
        | Stage::Exception
        | Stage::Decapsulate
        | Stage::Open
        | Stage::Inner
        | Stage::Untranslated
        | Stage::Judge
        | Stage::Follow => {
            if encapsulated {
                // The outer header is gone, and the stack here would send the packet back.
                stages.stop()
            } else {
                stages.untouched()
            }
        }
    }
}

/// Runs the stages one after the other on one stack, as the host does.
pub(crate) struct InOneGo<'a, F: Family, P, T> {
    packet: &'a mut P,
    tables: &'a T,
    device: IfIndex,
    hook: Hook,
    scratch: Scratch<F>,
}

impl<'a, F: Family, P, T> InOneGo<'a, F, P, T> {
    /// Makes a runner for a packet that `hook` of `device` meets.
    pub(crate) fn new(packet: &'a mut P, tables: &'a T, device: IfIndex, hook: Hook) -> Self {
        Self {
            packet,
            tables,
            device,
            hook,
            scratch: Scratch::rubbish(),
        }
    }
}

/// Makes the host's runner.
macro_rules! run_in_one_go {
    (
        {}
        steps { $($(#[$step_doc:meta])* $step:ident = $step_number:literal => $step_fn:ident
            at [$($step_hook:ident)*]:
            |$sp:ident, $st:ident, $sd:ident, $sh:ident, $ss:ident| $step_run:expr;)* }
        ends { $($(#[$end_doc:meta])* $end:ident = $end_number:literal => $end_fn:ident
            at [$($end_hook:ident)*]:
            |$ep:ident, $et:ident, $ed:ident, $eh:ident, $es:ident| $end_run:expr;)* }
    ) => {
        impl<F: Ip, P: Packet, T: Tables<F>> Stages for InOneGo<'_, F, P, T> {
            type Verdict = Result<Action, Reason>;

            $(fn $step_fn(&mut self) -> Stage {
                let ($sp, $st, $sd) = (&mut *self.packet, self.tables, self.device);
                let ($sh, $ss) = (self.hook, &mut self.scratch);
                $step_run
            })*
            $(fn $end_fn(&mut self) -> Self::Verdict {
                let ($ep, $et, $ed) = (&mut *self.packet, self.tables, self.device);
                let ($eh, $es) = (self.hook, &mut self.scratch);
                $end_run
            })*
        }
    };
}

stages!(run_in_one_go {});
