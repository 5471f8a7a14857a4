//! The stages of a packet in their order, and what one hands on to the next.

use proxy_common::flow::{Flow, FlowKey, Hook};
use proxy_common::net::{Address, Family, IfIndex, Port, Protocol};
use proxy_common::reason::Reason;

use crate::parse::{Headers, Ip};
use crate::{Action, Packet, Tables, dsr, exception, policy, process};

/// What the stages of one packet hand on: in the kernel one element per CPU, for IPv6's do not fit on the stack beside all else.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<F: Family> {
    /// What was parsed.
    pub headers: Headers<F>,
    /// The flow that the packet belongs to or opens; while it is opened, first the entry of its reply.
    pub flow: Flow<F::Addr>,
    /// The key of the reply's entry of a flow that is being opened; before, that of the connection that was over on the same tuple, with
    /// a port of 0 if there was none.
    pub reply: FlowKey<F::Addr>,
    /// For [`Stage::Inner`]: the address that replaces the client's.
    pub masquerade: F::Addr,
    /// Of what is [`Scratch::encapsulated`]: the backend's address.
    pub backend: F::Addr,
    /// Why the packet is not sent on.
    pub reason: Reason,
    /// For [`Reason::TooBig`]: what the device takes, in bytes.
    pub mtu: u32,
    /// The policy of the pod whose device this is; 0 if it has none, or is none.
    pub pod_id: u32,
    /// Of an ICMP error, where the ports of the packet that it is about are; 0 if there are none.
    pub quoted: u32,
    /// A [`parse::others::Other`] as number, where the packet is [`Scratch::exception`].
    pub kind: u32,
    /// 1 if it is not a whole TCP segment, UDP datagram or SCTP packet: it is judged, and never answered.
    pub exception: u32,
    /// 1 if the packet gets the flow's addresses at this hook.
    pub rewrite: u32,
    /// 1 if the packet opens the flow.
    pub fresh: u32,
    /// 1 if this host has made the packet, with an address of its own (P18).
    pub own: u32,
    /// 1 if this host's own processes have sent it, to a Service, and it came by the gate (V21).
    pub by_gate: u32,
    /// 1 if another node has sent it here encapsulated, for the backend of [`Scratch::backend`] and [`Scratch::port`].
    pub encapsulated: u32,
    /// Of what is [`Scratch::encapsulated`]: the backend's port.
    pub port: Port,
    /// Always zero.
    pub zero: u16,
}

impl<F: Family> Scratch<F> {
    /// A flow that is none.
    pub(crate) const NO_FLOW: Flow<F::Addr> = Flow {
        src: F::Addr::ZERO,
        dst: F::Addr::ZERO,
        sport: Port::NONE,
        dport: Port::NONE,
        device: IfIndex::NONE,
        seen: 0,
        service: 0,
        way: 0,
        hooks: 0,
        state: 0,
        role: 0,
    };

    /// Before the first stage.
    pub fn new() -> Self {
        let (zero, port) = (F::Addr::ZERO, Port::default());
        let key = FlowKey::new(Protocol::default(), zero, port, zero, port);
        let headers = Headers {
            key,
            ttl: 0,
            flags: 0,
            check: 0,
            transport: 0,
            len: 0,
        };
        Self {
            headers,
            flow: Self::NO_FLOW,
            reply: key,
            masquerade: zero,
            backend: zero,
            reason: Reason::Truncated,
            mtu: 0,
            pod_id: 0,
            quoted: 0,
            kind: 0,
            exception: 0,
            rewrite: 0,
            fresh: 0,
            own: 0,
            by_gate: 0,
            encapsulated: 0,
            port,
            zero: 0,
        }
    }

    /// Notes why the packet is not sent on.
    #[inline(always)]
    pub(crate) fn refuse(&mut self, reason: Reason) -> Stage {
        self.reason = reason;
        Stage::Stop
    }
}

impl<F: Family> Default for Scratch<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// What comes next for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Stage {
    /// Nothing: it is none of ours, or not here.
    Untouched = 0,
    /// It has no flow; it may open one.
    Open = 1,
    /// It is rewritten as the flow in the scratch says, and sent on.
    Send = 2,
    /// It is not sent on, for the reason in the scratch.
    Stop = 3,
    /// Its flow is open; a second one, that masquerades, begins where the first ends.
    Inner = 4,
    /// It may be here: it is to be parsed, and its flow to be found.
    FindFlow = 5,
    /// It is nothing that could be translated.
    Exception = 6,
    /// No Service serves it: it may belong to a flow that is not translated here, or begin one.
    Untranslated = 7,
    /// It belongs to the flow in the scratch, which policy has a say in.
    Judge = 8,
    /// It is allowed, goes on as it is, and its connection is followed.
    Follow = 9,
    /// It is an ICMP error about packets of the flow in the scratch, rewritten like these and sent on.
    SendError = 10,
    /// It is [`Scratch::exception`], rewritten as the flow in the scratch says, and sent on.
    SendException = 11,
    /// It carries another one, which is to be met in its place.
    Decapsulate = 12,
}

impl Stage {
    /// The stage of a number; numbers that are none mean [`Stage::Untouched`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Open,
            2 => Self::Send,
            3 => Self::Stop,
            4 => Self::Inner,
            5 => Self::FindFlow,
            6 => Self::Exception,
            7 => Self::Untranslated,
            8 => Self::Judge,
            9 => Self::Follow,
            10 => Self::SendError,
            11 => Self::SendException,
            12 => Self::Decapsulate,
            _ => Self::Untouched,
        }
    }
}

/// The stages of a packet: functions of this library, which the kernel's binary runs as subprograms with a stack of their own each.
pub trait Stages {
    /// What becomes of a packet, in the words of who runs the stages.
    type Verdict;

    /// [`policy::admit`].
    fn admit(&mut self) -> Stage;
    /// [`crate::find_flow`].
    fn find_flow(&mut self) -> Stage;
    /// [`crate::open`].
    fn open(&mut self) -> Stage;
    /// [`crate::inner`].
    fn inner(&mut self) -> Stage;
    /// [`exception::find_flow`].
    fn exception(&mut self) -> Stage;
    /// [`dsr::decapsulate`].
    fn decapsulate(&mut self) -> Stage;
    /// [`policy::untranslated`].
    fn untranslated(&mut self) -> Stage;
    /// [`policy::judge`].
    fn judge(&mut self) -> Stage;
    /// [`policy::follow`].
    fn follow(&mut self) -> Stage;
    /// [`crate::send`].
    fn send(&mut self) -> Self::Verdict;
    /// [`exception::send_error`].
    fn send_error(&mut self) -> Self::Verdict;
    /// [`exception::send`].
    fn send_exception(&mut self) -> Self::Verdict;
    /// [`crate::stop`].
    fn stop(&mut self) -> Self::Verdict;
    /// The packet goes on as it came: [`process::left`].
    fn untouched(&mut self) -> Self::Verdict;
}

/// parse -> find flow -> select service -> choose backend -> open flow -> judge policy -> rewrite -> act.
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
        // What it was carried in is gone, and the stack here would send it back.
        _ if encapsulated => stages.stop(),
        _ => stages.untouched(),
    }
}

/// The stages one after the other on one stack: the host's way.
pub(crate) struct InOneGo<'a, F: Family, P, T> {
    packet: &'a mut P,
    tables: &'a T,
    device: IfIndex,
    hook: Hook,
    scratch: Scratch<F>,
}

impl<'a, F: Family, P, T> InOneGo<'a, F, P, T> {
    /// Before the first stage.
    pub(crate) fn new(packet: &'a mut P, tables: &'a T, device: IfIndex, hook: Hook) -> Self {
        Self {
            packet,
            tables,
            device,
            hook,
            scratch: Scratch::new(),
        }
    }
}

impl<F: Ip, P: Packet, T: Tables<F>> Stages for InOneGo<'_, F, P, T> {
    type Verdict = Result<Action, Reason>;

    fn admit(&mut self) -> Stage {
        policy::admit(
            self.packet,
            self.tables,
            self.device,
            self.hook,
            &mut self.scratch,
        )
    }
    fn exception(&mut self) -> Stage {
        exception::find_flow(self.packet, self.tables, self.hook, &mut self.scratch)
    }
    fn decapsulate(&mut self) -> Stage {
        dsr::decapsulate(self.packet, self.tables, &mut self.scratch)
    }
    fn untranslated(&mut self) -> Stage {
        policy::untranslated(self.tables, self.hook, &mut self.scratch)
    }
    fn judge(&mut self) -> Stage {
        policy::judge(self.tables, self.hook, &mut self.scratch)
    }
    fn follow(&mut self) -> Stage {
        policy::follow(self.tables, &mut self.scratch)
    }
    fn find_flow(&mut self) -> Stage {
        crate::find_flow(self.packet, self.tables, self.hook, &mut self.scratch)
    }
    fn open(&mut self) -> Stage {
        crate::open(
            self.packet,
            self.tables,
            self.device,
            self.hook,
            &mut self.scratch,
        )
    }
    fn inner(&mut self) -> Stage {
        crate::inner(self.tables, &mut self.scratch)
    }
    fn send(&mut self) -> Self::Verdict {
        crate::send(self.packet, self.tables, self.hook, &self.scratch)
    }
    fn send_error(&mut self) -> Self::Verdict {
        exception::send_error(self.packet, self.tables, self.hook, &self.scratch)
    }
    fn send_exception(&mut self) -> Self::Verdict {
        exception::send(self.packet, self.tables, self.hook, &self.scratch)
    }
    fn stop(&mut self) -> Self::Verdict {
        crate::stop(
            self.packet,
            self.tables,
            self.device,
            self.hook,
            &mut self.scratch,
        )
    }
    fn untouched(&mut self) -> Self::Verdict {
        process::left(&self.scratch)
    }
}
