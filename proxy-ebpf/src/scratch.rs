//! The scratch: the state of one packet that its stages hand on.

use proxy_common::flow::{Flow, FlowKey};
use proxy_common::net::{Address, Family, IfIndex, Port, Protocol};
use proxy_common::reason::Reason;

use crate::Stage;
use crate::parse::Headers;

/// The state of one packet. In the kernel it is one element per CPU, because IPv6's does not fit on
/// the stack. `Scratch::begin` makes it before the first stage reads it.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<F: Family> {
    /// The parsed headers.
    pub headers: Headers<F>,
    /// The flow that the packet belongs to or opens; while it is opened, first the reply's entry.
    pub flow: Flow<F::Addr>,
    /// Key of the reply's entry of a flow that is being opened. Before that, the reply's key of the
    /// connection that ended on the same tuple; its destination port is 0 if there was none. Of an
    /// ICMP error, the error's own key.
    pub reply: FlowKey<F::Addr>,
    /// For [`Stage::Inner`]: the address that replaces the client's.
    pub masquerade: F::Addr,
    /// If [`Scratch::encapsulated`]: the backend's address.
    pub backend: F::Addr,
    /// The reason for which the packet is not sent on.
    pub reason: Reason,
    /// For [`Reason::TooBig`]: MTU of the device, in bytes.
    pub mtu: u32,
    /// Index in `ROWS` of the pod behind this device; 0 if it has none, or there is no pod.
    pub pod_id: u32,
    /// Of an ICMP error: offset of the quoted packet's ports; 0 if it quotes none.
    pub quoted: u32,
    /// A [`crate::parse::others::Other`] as number, if the packet is an [`Scratch::exception`].
    pub kind: u32,
    /// 1 if the packet is not a whole TCP segment, UDP datagram or SCTP packet: it is judged, and
    /// never answered.
    pub exception: u32,
    /// 1 if the packet gets the flow's addresses at this hook.
    pub rewrite: u32,
    /// 1 if the packet opens the flow.
    pub fresh: u32,
    /// 1 if this host has made the packet, with an address of its own (P18).
    pub own: u32,
    /// 1 if a process of this host sent the packet to a Service, and it came by the gate (V21).
    pub by_gate: u32,
    /// 1 if another node sent the packet encapsulated, for the backend in [`Scratch::backend`] and
    /// [`Scratch::port`].
    pub encapsulated: u32,
    /// If [`Scratch::encapsulated`]: the backend's port.
    pub port: Port,
    /// Always zero.
    pub zero: u16,
}

impl<F: Family> Scratch<F> {
    /// An empty flow.
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

    /// Makes the scratch of a new packet; the first stage of each hook calls it. It clears what a
    /// stage may read before another has written it. The other fields are written first by the
    /// stage that is named here, so that an established packet pays for none of them; tests show
    /// it, because each begins with [`Scratch::rubbish`].
    #[inline(always)]
    pub fn begin(&mut self) {
        let Self {
            // Parsing: `forward::find_flow`, `exception::find_flow`.
            headers: _,
            // `flow::find`, or whoever opens the flow.
            flow: _,
            // Parsing of an exception, else `find_flow` of a packet without a flow.
            reply: _,
            // `open::open`, for `Stage::Inner`.
            masquerade: _,
            // `dsr::decapsulate`, with `encapsulated`.
            backend: _,
            port: _,
            // `Scratch::refuse`.
            reason: _,
            // Whoever refuses for `Reason::TooBig`.
            mtu: _,
            // Parsing of an exception.
            quoted: _,
            zero: _,
            pod_id,
            kind,
            exception,
            rewrite,
            fresh,
            own,
            by_gate,
            encapsulated,
        } = self;
        *pod_id = 0;
        *kind = 0;
        *exception = 0;
        *rewrite = 0;
        *fresh = 0;
        *own = 0;
        *by_gate = 0;
        *encapsulated = 0;
    }

    /// Records the reason for which the packet is not sent on, and returns [`Stage::Stop`].
    #[inline(always)]
    pub(crate) fn refuse(&mut self, reason: Reason) -> Stage {
        self.reason = reason;
        Stage::Stop
    }

    /// Returns a scratch with all bits set that a value may have: on the host each packet begins
    /// with it, so that a stage that reads what `Scratch::begin` did not make fails its test.
    pub fn rubbish() -> Self {
        const WORD: u32 = u32::MAX;
        const BYTE: u8 = u8::MAX;
        let (addr, port) = (F::Addr::ALL_ONES, Port::new(u16::MAX));
        let key = FlowKey {
            src: addr,
            dst: addr,
            sport: port,
            dport: port,
            protocol: Protocol(BYTE),
            zero: [BYTE; 3],
        };
        Self {
            headers: Headers {
                key,
                ttl: BYTE,
                flags: BYTE,
                check: u16::MAX,
                transport: WORD,
                len: WORD,
            },
            flow: Flow {
                src: addr,
                dst: addr,
                sport: port,
                dport: port,
                device: IfIndex(WORD),
                seen: WORD,
                service: WORD,
                way: BYTE,
                hooks: BYTE,
                state: BYTE,
                role: BYTE,
            },
            reply: key,
            masquerade: addr,
            backend: addr,
            // An enum takes none but its own values.
            reason: Reason::LeftInGate,
            mtu: WORD,
            pod_id: WORD,
            quoted: WORD,
            kind: WORD,
            exception: WORD,
            rewrite: WORD,
            fresh: WORD,
            own: WORD,
            by_gate: WORD,
            encapsulated: WORD,
            port,
            zero: u16::MAX,
        }
    }
}
