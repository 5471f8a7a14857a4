//! What happens to a packet: the entry functions, in the order in which a packet meets the rest of this library.
//!
//! Pure and `no_std`. The kernel reaches it through two traits, [`Packet`] and [`Tables`]; tests run the same functions over the host's [`fake`] of
//! both, and `portway explain` those that need only [`Verdicts`] over the maps of an agent.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod crc32c;
pub mod flow;
pub mod odd;
pub mod parse;
pub mod policy;
pub mod rewrite;
pub mod seams;
pub mod service;
pub mod socket;
pub mod tunnel;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use proxy_common::event::{Counter, Reason};
use proxy_common::flow::{Flow, FlowKey, Hook, Role, Way};
use proxy_common::net::{Address, Device, Family, IfIndex, Port, Protocol};
use proxy_common::service::{Config, ServiceFlags};

use parse::others::Other;
use parse::{Headers, Ip};
pub use seams::{Change, Insert, NotPromoted, Packet, Refused, Route, Table, Tables, Verdicts, Wire};

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
    /// For [`Stage::Inner`]: the address that replaces the client's. Of what was [`Scratch::tunnelled`], until then, the backend's.
    pub masquerade: F::Addr,
    /// Why the packet is not sent on.
    pub reason: Reason,
    /// For [`Reason::TooBig`]: what the device takes, in bytes.
    pub mtu: u32,
    /// The policy of the pod whose device this is; 0 if it has none, or is none.
    pub slot: u32,
    /// Of an ICMP error, where the ports of the packet that it is about are; 0 if there are none.
    pub quoted: u32,
    /// A [`parse::others::Other`] as number, where the packet is [`Scratch::odd`].
    pub kind: u32,
    /// 1 if it is not a whole TCP segment, UDP datagram or SCTP packet: it is judged, and never answered.
    pub odd: u32,
    /// 1 if the packet gets the flow's addresses at this hook.
    pub rewrite: u32,
    /// 1 if the packet opens the flow.
    pub fresh: u32,
    /// 1 if this host has made the packet, with an address of its own (P18).
    pub own: u32,
    /// 1 if another node has sent it here encapsulated, for the backend of [`Scratch::masquerade`] and [`Scratch::port`].
    pub tunnelled: u32,
    /// See there.
    pub port: Port,
    /// Always zero.
    pub zero: u16,
}

impl<F: Family> Scratch<F> {
    /// A flow that is none.
    const NO_FLOW: Flow<F::Addr> = Flow {
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
        let headers = Headers { key, ttl: 0, flags: 0, check: 0, transport: 0, len: 0 };
        Self {
            headers,
            flow: Self::NO_FLOW,
            reply: key,
            masquerade: zero,
            reason: Reason::Truncated,
            mtu: 0,
            slot: 0,
            quoted: 0,
            kind: 0,
            odd: 0,
            rewrite: 0,
            fresh: 0,
            own: 0,
            tunnelled: 0,
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

/// What becomes of a packet that is not dropped; a hook's one `match` makes it a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// None of ours, or not to be finished here: as it came, and programs after ours run.
    Untouched,
    /// Rewritten; goes on where it was going.
    Stack,
    /// Rewritten; into the pod behind this device.
    Pod(IfIndex),
    /// Rewritten; to the next hop of the route through this device.
    Neighbour(IfIndex),
    /// Rewritten with its link-layer header; leaves by this device as it is.
    Transmit(IfIndex),
    /// An answer to a packet that was leaving by this device: comes in by it.
    Return(IfIndex),
}

/// Where a packet comes from, as far as Services care (V9, V11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From outside the node.
    Outside,
    /// From a pod of this node.
    Pod,
    /// From this host's stack or a bridge, for a pod of this node.
    Stack,
}

impl Origin {
    /// Where packets of this origin meet us.
    #[inline(always)]
    pub const fn hook(self) -> Hook {
        match self {
            Self::Outside => Hook::FromDevice,
            Self::Pod => Hook::FromPod,
            Self::Stack => Hook::ToPod,
        }
    }
}

/// A packet that `device`, a node device or a tunnel, received: tc ingress.
pub fn from_device<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    serve(&mut InOneGo { packet, tables, device, origin: Origin::Outside, scratch: Scratch::new() })
}

/// A packet that the pod behind `device` sent: tc ingress of the host side of its veth.
pub fn from_pod<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    serve(&mut InOneGo { packet, tables, device, origin: Origin::Pod, scratch: Scratch::new() })
}

/// A packet that the stack or a bridge sends to the pod behind `device`: tc egress of the host side of its veth.
pub fn to_pod<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    serve(&mut InOneGo { packet, tables, device, origin: Origin::Stack, scratch: Scratch::new() })
}

/// A packet that this host sends through a node device: tc egress.
pub fn to_device<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    let done = leave(packet, tables, device)?;
    if done != Action::Untouched {
        return Ok(done);
    }
    let mut scratch = Scratch::new();
    match odd::leave(packet, tables, &mut scratch) {
        Stage::SendError => odd::send_error(packet, tables, Origin::Stack, &scratch),
        Stage::SendOdd => odd::send(packet, tables, Origin::Stack, &scratch),
        _ => Ok(Action::Untouched),
    }
}

/// The same for whole segments, datagrams and SCTP packets: see [`odd::leave`].
#[inline(always)]
pub fn leave<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, _device: IfIndex) -> Result<Action, Reason> {
    restore(packet, tables, Hook::ToDevice)
}

/// A frame that `device` received, before the stack: XDP. Only flows that leave the node again; everything else is left to tc.
#[inline(always)]
pub fn early<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, device: IfIndex) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else { return Ok(Action::Untouched) };
    let mut flow = Scratch::<F>::NO_FLOW;
    match flow::find(tables, &headers, Hook::FromDevice, &mut flow) {
        flow::Found::Ours => forward_early(packet, tables, device, &headers, &flow),
        flow::Found::Elsewhere | flow::Found::Over(_) | flow::Found::None => Ok(Action::Untouched),
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
    Meet = 5,
    /// It is nothing that could be translated.
    Odd = 6,
    /// No Service serves it: it may belong to a flow that is not translated here, or begin one.
    Plain = 7,
    /// It belongs to the flow in the scratch, which policy has a say in.
    Judge = 8,
    /// It is allowed, goes on as it is, and its connection is followed.
    Follow = 9,
    /// It is an ICMP error about packets of the flow in the scratch, rewritten like these and sent on.
    SendError = 10,
    /// It is [`Scratch::odd`], rewritten as the flow in the scratch says, and sent on.
    SendOdd = 11,
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
            5 => Self::Meet,
            6 => Self::Odd,
            7 => Self::Plain,
            8 => Self::Judge,
            9 => Self::Follow,
            10 => Self::SendError,
            11 => Self::SendOdd,
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
    /// [`meet`].
    fn meet(&mut self) -> Stage;
    /// [`open`].
    fn open(&mut self) -> Stage;
    /// [`inner`].
    fn inner(&mut self) -> Stage;
    /// [`odd::meet`].
    fn odd(&mut self) -> Stage;
    /// [`tunnel::decapsulate`].
    fn decapsulate(&mut self) -> Stage;
    /// [`policy::plain`].
    fn plain(&mut self) -> Stage;
    /// [`policy::judge`].
    fn judge(&mut self) -> Stage;
    /// [`policy::follow`].
    fn follow(&mut self) -> Stage;
    /// [`send`].
    fn send(&mut self) -> Self::Verdict;
    /// [`odd::send_error`].
    fn send_error(&mut self) -> Self::Verdict;
    /// [`odd::send`].
    fn send_odd(&mut self) -> Self::Verdict;
    /// [`stop`].
    fn stop(&mut self) -> Self::Verdict;
    /// The packet goes on as it came.
    fn untouched(&mut self) -> Self::Verdict;
}

/// parse -> find flow -> select service -> choose backend -> open flow -> judge policy -> rewrite -> act.
#[inline(always)]
pub fn serve<S: Stages>(stages: &mut S) -> S::Verdict {
    let mut next = stages.admit();
    if next == Stage::Meet {
        next = stages.meet();
    }
    if next == Stage::Odd {
        next = stages.odd();
    }
    if next == Stage::Decapsulate {
        next = stages.decapsulate();
    }
    let tunnelled = next == Stage::Meet;
    if tunnelled {
        next = stages.meet();
        if next == Stage::Odd {
            next = stages.odd();
        }
    }
    if next == Stage::Open {
        next = stages.open();
    }
    if next == Stage::Inner {
        next = stages.inner();
    }
    if next == Stage::Plain {
        next = stages.plain();
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
        Stage::SendOdd => stages.send_odd(),
        Stage::Stop => stages.stop(),
        // What it was carried in is gone, and the stack here would send it back.
        _ if tunnelled => stages.stop(),
        _ => stages.untouched(),
    }
}

/// The stages one after the other on one stack: the host's way.
struct InOneGo<'a, F: Family, P, T> {
    packet: &'a mut P,
    tables: &'a T,
    device: IfIndex,
    origin: Origin,
    scratch: Scratch<F>,
}

impl<F: Ip, P: Packet, T: Tables<F>> Stages for InOneGo<'_, F, P, T> {
    type Verdict = Result<Action, Reason>;

    fn admit(&mut self) -> Stage {
        policy::admit(self.packet, self.tables, self.device, self.origin, &mut self.scratch)
    }
    fn odd(&mut self) -> Stage {
        odd::meet(self.packet, self.tables, self.origin, &mut self.scratch)
    }
    fn decapsulate(&mut self) -> Stage {
        tunnel::decapsulate(self.packet, self.tables, &mut self.scratch)
    }
    fn plain(&mut self) -> Stage {
        policy::plain(self.tables, self.origin, &mut self.scratch)
    }
    fn judge(&mut self) -> Stage {
        policy::judge(self.tables, self.origin, &mut self.scratch)
    }
    fn follow(&mut self) -> Stage {
        policy::follow(self.tables, &mut self.scratch)
    }
    fn meet(&mut self) -> Stage {
        meet(self.packet, self.tables, self.origin, &mut self.scratch)
    }
    fn open(&mut self) -> Stage {
        open(self.packet, self.tables, self.device, self.origin, &mut self.scratch)
    }
    fn inner(&mut self) -> Stage {
        inner(self.tables, &mut self.scratch)
    }
    fn send(&mut self) -> Self::Verdict {
        send(self.packet, self.tables, self.origin, &self.scratch)
    }
    fn send_error(&mut self) -> Self::Verdict {
        odd::send_error(self.packet, self.tables, self.origin, &self.scratch)
    }
    fn send_odd(&mut self) -> Self::Verdict {
        odd::send(self.packet, self.tables, self.origin, &self.scratch)
    }
    fn stop(&mut self) -> Self::Verdict {
        stop(self.packet, self.tables, self.device, self.origin, &self.scratch)
    }
    fn untouched(&mut self) -> Self::Verdict {
        Ok(Action::Untouched)
    }
}

/// Parse, find flow.
#[inline(always)]
pub fn meet<F: Ip, P: Packet, T: Tables<F>>(packet: &P, tables: &T, origin: Origin, scratch: &mut Scratch<F>) -> Stage {
    match parse::headers::<F, P, T>(packet, tables) {
        Ok(Some(headers)) => scratch.headers = headers,
        Ok(None) => return Stage::Odd,
        Err(reason) => return scratch.refuse(reason),
    }
    // What the stack sends to a pod asks for no Service.
    let unknown = if origin == Origin::Stack { Stage::Plain } else { Stage::Open };
    match flow::find(tables, &scratch.headers, origin.hook(), &mut scratch.flow) {
        flow::Found::Ours if leads_on(scratch, origin) => {}
        flow::Found::Ours => {
            flow::end(tables, scratch);
            return unknown;
        }
        flow::Found::Elsewhere if origin == Origin::Outside => return Stage::Untouched,
        flow::Found::Elsewhere => {
            scratch.rewrite = 0;
            return Stage::Judge;
        }
        flow::Found::Over(table) => {
            scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
            flow::forget(tables, table, &scratch.headers.key, &scratch.reply);
            if table == Table::Opening {
                tables.count(Counter::Replaced);
            }
            return unknown;
        }
        flow::Found::None => {
            scratch.reply.dport = Port::default();
            return unknown;
        }
    }
    if scratch.flow.is(Role::PLAIN) {
        scratch.rewrite = 0;
        return Stage::Judge;
    }
    scratch.rewrite = 1;
    if origin == Origin::Stack {
        return Stage::Judge;
    }
    may_leave(packet, tables, scratch, way(&scratch.flow), scratch.flow.device)
}

/// Whether the flow in the scratch leads where the packet is to go: another node may have chosen anew for what it sends here.
#[inline(always)]
fn leads_on<F: Family>(scratch: &Scratch<F>, origin: Origin) -> bool {
    let chosen = origin == Origin::Outside && scratch.tunnelled != 0;
    !chosen || scratch.flow.dst == scratch.masquerade && scratch.flow.dport == scratch.port
}

/// For a packet without a flow: select service, choose backend, open flow.
#[inline(always)]
pub fn open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    origin: Origin,
    scratch: &mut Scratch<F>,
) -> Stage {
    match try_open(packet, tables, device, origin, scratch) {
        Ok(stage) => stage,
        Err(reason) => scratch.refuse(reason),
    }
}

#[inline(always)]
fn try_open<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    device: IfIndex,
    origin: Origin,
    scratch: &mut Scratch<F>,
) -> Result<Stage, Reason> {
    let tunnelled = origin == Origin::Outside && scratch.tunnelled != 0;
    let selected = match tunnelled {
        true => service::select_elsewhere(tables, &scratch.headers.key),
        false => service::select(tables, &scratch.headers.key)?,
    };
    let Some(service) = selected else { return Ok(Stage::Plain) };
    // Where this node has lost a connection that another one knows, it goes on: its backend is known.
    if !scratch.headers.opens() && (!tunnelled || scratch.headers.reset()) {
        return service::not_opening(&service);
    }
    let config = tables.config().unwrap_or_default();
    // V21: a process of this host reaches what its pods reach. P18: pods let it in.
    let process = origin == Origin::Outside && tables.device(device).is_some_and(|device| device.flags & Device::GATE != 0);
    scratch.own = u32::from(process);
    let key = &scratch.headers.key;
    let backend = match tunnelled {
        true => service::named(tables, &service, &scratch.masquerade, scratch.port)?,
        false => service::choose(tables, key, &service, if process { Origin::Pod } else { origin }, &config)?,
    };
    let plan = if process {
        flow::plan_for_process(tables, device, key, &backend)
    } else if tunnelled {
        flow::plan_for_tunnelled(tables, device, key, &backend, &config)
    } else {
        flow::plan(tables, device, key, &backend, origin, service.has(ServiceFlags::DSR), &config)
    }?;
    let stage = may_leave(packet, tables, scratch, plan.way(), plan.device());
    if stage == Stage::Judge {
        flow::open(tables, scratch, &service, &backend, &plan, &config)?;
        scratch.rewrite = 1;
        scratch.fresh = 1;
        tables.opened(&scratch.headers.key, &scratch.flow);
        if plan.has_inner() {
            scratch.masquerade = plan.masquerade();
            return Ok(Stage::Inner);
        }
    }
    Ok(stage)
}

/// For a packet whose flow was just opened and leads through the stack to another node: the flow that masquerades it on its way out.
#[inline(always)]
pub fn inner<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Stage {
    let config = tables.config().unwrap_or_default();
    match flow::open_inner(tables, scratch, &config) {
        Ok(()) => Stage::Judge,
        Err(reason) => scratch.refuse(reason),
    }
}

/// What the stack would check of a packet that we send on in its place: time to live, and the size that `device` takes.
#[inline(always)]
fn may_leave<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
    way: Way,
    device: IfIndex,
) -> Stage {
    if !way.is_to_stack() && scratch.headers.ttl <= 1 {
        return scratch.refuse(Reason::TtlExceeded);
    }
    let more = match way {
        Way::Neighbour => 0,
        Way::Tunnel => F::OVERHEAD,
        Way::Stack | Way::Pod | Way::Gate => return Stage::Judge,
    };
    if scratch.headers.len + more <= tables.config().map_or(u32::MAX, |config| config.least_mtu) {
        return Stage::Judge;
    }
    scratch.mtu = tables.device(device).map_or(u32::MAX, |device| device.mtu.saturating_sub(more));
    if scratch.headers.largest(packet) <= scratch.mtu { Stage::Judge } else { scratch.refuse(Reason::TooBig) }
}

/// The last stage: rewrites a packet of the flow in the scratch and sends it the flow's way; what is on its way through the stack stays there.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    origin: Origin,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let flow = &scratch.flow;
    let way = onward(tables, origin, flow);
    if may_encapsulate(origin, way) {
        tunnel::encapsulate(packet, tables, &scratch.headers, flow)?;
    } else {
        rewrite::apply(packet, &scratch.headers, flow, way)?;
    }
    tables.count(Counter::Forwarded);
    go(packet, way, flow.device)
}

/// How packets of a flow go on from here: what is on its way through the stack stays there.
#[inline(always)]
fn onward<F: Ip, T: Tables<F>>(tables: &T, origin: Origin, flow: &Flow<F::Addr>) -> Way {
    let way = way(flow);
    if origin != Origin::Stack {
        return way;
    }
    if way != Way::Stack {
        tables.count(Counter::Fallback);
    }
    Way::Stack
}

/// Whether packets go on encapsulated: those of clients outside only.
#[inline(always)]
fn may_encapsulate(origin: Origin, way: Way) -> bool {
    origin == Origin::Outside && way == Way::Tunnel
}

/// What is to become of a packet that was rewritten.
#[inline(always)]
fn go<P: Packet>(packet: &mut P, way: Way, device: IfIndex) -> Result<Action, Reason> {
    Ok(match way {
        Way::Stack => Action::Stack,
        Way::Pod => Action::Pod(device),
        Way::Neighbour | Way::Tunnel => Action::Neighbour(device),
        Way::Gate => {
            let [a, b, c, d, e, f] = Device::GATE_MAC;
            rewrite::link(packet, &[a, b, c, d, e, f, a, b, c, d, e, f])?;
            Action::Transmit(device)
        }
    })
}

/// The last stage of a packet that is not sent on: its sender is told, or it is dropped.
#[inline(always)]
pub fn stop<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
    origin: Origin,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let reason = scratch.reason;
    let denied = matches!(reason, Reason::DeniedIngress | Reason::DeniedEgress);
    if denied {
        tables.denied(&policy::denied(scratch), reason);
    }
    // What is truncated has no headers that could be named.
    if reason != Reason::Truncated {
        tables.stopped(&scratch.headers.key, reason);
    }
    let odd = scratch.odd != 0 && !(scratch.kind == Other::First as u32 && reason == Reason::TooBig);
    let silent = odd || denied && !tables.config().unwrap_or_default().has(Config::REJECT_DENIED);
    match reason.answer() {
        Some(answer) if !silent => {
            let back = if origin == Origin::Stack { Action::Return(device) } else { Action::Transmit(device) };
            rewrite::answer(packet, tables, scratch, answer, back)
        }
        _ => Err(reason),
    }
}

/// A packet on its way out of the stack: only the flows that went through the stack have an entry for these hooks.
#[inline(always)]
fn restore<F: Ip, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, hook: Hook) -> Result<Action, Reason> {
    let Some(headers) = parse::headers::<F, P, T>(packet, tables)? else { return Ok(Action::Untouched) };
    let mut flow = Scratch::<F>::NO_FLOW;
    let flow::Found::Ours = flow::find(tables, &headers, hook, &mut flow) else { return Ok(Action::Untouched) };
    if way(&flow) != Way::Stack {
        tables.count(Counter::Fallback);
    }
    rewrite::apply(packet, &headers, &flow, Way::Stack)?;
    tables.count(Counter::Forwarded);
    Ok(Action::Stack)
}

/// XDP decides before it writes: without a resolved next hop the frame goes on untouched, and tc finishes it.
#[inline(always)]
fn forward_early<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Result<Action, Reason> {
    let Some((out, link)) = next_hop(tables, device, headers, flow) else {
        tables.count(Counter::LeftToTc);
        return Ok(Action::Untouched);
    };
    rewrite::apply(packet, headers, flow, Way::Neighbour)?;
    rewrite::link(packet, &link)?;
    tables.count(Counter::Forwarded);
    tables.count(Counter::ForwardedEarly);
    Ok(Action::Transmit(out))
}

/// The device and the MAC addresses by which XDP can send packets of `flow` on; `None` where only tc can.
#[inline(always)]
fn next_hop<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    headers: &Headers<F>,
    flow: &Flow<F::Addr>,
) -> Option<(IfIndex, [u8; 12])> {
    if way(flow) != Way::Neighbour || headers.ttl <= 1 {
        return None;
    }
    let route = tables.route(device, &flow.src, &flow.dst)?;
    let out = tables.device(route.device)?;
    let fits = headers.len <= out.mtu;
    let reachable = route.device == device || out.flags & Device::XDP_TARGET != 0;
    if fits && reachable { route.neighbour.map(|link| (route.device, link)) } else { None }
}

#[inline(always)]
fn way<A: Address>(flow: &Flow<A>) -> Way {
    Way::from_number(flow.way)
}
