//! The exception path: packets that are not a whole TCP segment, UDP datagram or SCTP packet right
//! behind the IP header. These are fragments, ICMP, other protocols, and packets with extension
//! headers.
//!
//! A datagram's first fragment has the ports by which the later ones find their connection. An ICMP
//! error is translated and sent like the packets of the flow that go in its direction.

use proxy_common::checksum::hash3;
use proxy_common::flow::{Hook, Role, Way, fragment_ports};
use proxy_common::net::{Address as _, Port, Protocol};
use proxy_common::node::AddressFlags;
use proxy_common::policy::PodRows;
use proxy_common::reason::{Counter, Reason};

use crate::forward::{go, leads_to_backend, may_encapsulate, may_forward, way, way_from};
use crate::parse::Ip;
use crate::parse::others::{Other, others};
use crate::{Action, Packet, Scratch, Stage, Tables, dsr, flow, policy, process, rewrite};

/// Parses an exception, and finds its flow.
#[inline(always)]
pub fn find_flow<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Stage {
    let kind = match others(packet, tables, scratch) {
        Ok(kind) => kind,
        Err(_) if hook == Hook::FromDevice => return Stage::Untouched,
        Err(reason) => return scratch.refuse(reason),
    };
    scratch.kind = kind as u32;
    scratch.exception = 1;
    if hook == Hook::FromDevice
        && scratch.encapsulated == 0
        && dsr::is_for_us(tables, scratch, kind)
    {
        return Stage::Decapsulate;
    }
    if hook == Hook::FromDevice && process::is_martian(scratch) {
        return Stage::Untouched;
    }
    match kind {
        Other::Error => error(tables, hook, scratch),
        Other::Exempt => Stage::Untouched,
        Other::LostFragment => lost(tables, hook, scratch),
        Other::Packet | Other::First | Other::Later => part(packet, tables, hook, scratch, kind),
    }
}

/// Returns true if such packets are translated. SCTP fragments are not: the checksum, in the first
/// fragment, covers the others.
#[inline(always)]
fn is_translated(protocol: Protocol, kind: Other) -> bool {
    match protocol {
        Protocol::TCP | Protocol::UDP => true,
        Protocol::SCTP => kind == Other::Packet,
        _ => false,
    }
}

/// Finds the flow of a whole packet or a fragment.
#[inline(always)]
fn part<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    scratch: &mut Scratch<F>,
    kind: Other,
) -> Stage {
    let outside = hook == Hook::FromDevice;
    let translated = is_translated(scratch.headers.key.protocol, kind);
    let opens = translated && kind != Other::Later && !hook.is_egress();
    let unknown = match (opens, outside) {
        (true, _) => Stage::Open,
        (false, true) => Stage::Untouched,
        (false, false) => Stage::Untranslated,
    };
    match flow::find(tables, &scratch.headers, hook, &mut scratch.flow) {
        flow::Found::Ours
            if translated && kind != Other::Later && !leads_to_backend(scratch, hook) =>
        {
            flow::end(tables, scratch);
            return unknown;
        }
        flow::Found::Ours if translated && !scratch.flow.is(Role::UNTRANSLATED) => {}
        flow::Found::Ours | flow::Found::Elsewhere if outside => return Stage::Untouched,
        flow::Found::Ours | flow::Found::Elsewhere => return Stage::Judge,
        flow::Found::Over(table) => {
            scratch.reply = scratch.flow.mate(scratch.headers.key.protocol);
            flow::forget(tables, table, &scratch.headers.key, &scratch.reply);
            return unknown;
        }
        flow::Found::None => {
            scratch.reply.dport = Port::default();
            return unknown;
        }
    }
    scratch.rewrite = 1;
    if hook.is_egress() {
        return Stage::Judge;
    }
    may_forward(
        packet,
        tables,
        scratch,
        way(&scratch.flow),
        scratch.flow.device,
    )
}

/// Finds the flow of an ICMP error, by the key of the packets that go in the error's direction.
#[inline(always)]
fn error<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, scratch: &mut Scratch<F>) -> Stage {
    let outside = hook == Hook::FromDevice;
    if tables
        .copy_flow(&scratch.headers.key, &mut scratch.flow)
        .is_none()
    {
        return if outside {
            Stage::Untouched
        } else {
            Stage::Untranslated
        };
    }
    let translated = scratch.flow.hooks & hook as u8 != 0
        && !scratch.flow.is(Role::UNTRANSLATED)
        && scratch.quoted != 0;
    if !translated {
        return if outside {
            Stage::Untouched
        } else {
            Stage::Judge
        };
    }
    if scratch.headers.ttl <= 1
        && !Way::from_number(scratch.flow.way).is_to_stack()
        && !hook.is_egress()
    {
        return scratch.refuse(Reason::TtlExceeded);
    }
    scratch.rewrite = 1;
    Stage::Judge
}

/// P27: drops a fragment whose first one was not seen if it is for a cluster IP, or if the pod is
/// isolated. A fragment for this host's own address is left to its stack, which waits for the
/// first.
#[inline(always)]
fn lost<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, scratch: &mut Scratch<F>) -> Stage {
    let for_service = !hook.is_egress()
        && tables
            .address(&scratch.headers.key.dst)
            .has(AddressFlags::CLUSTER_IP);
    let isolated = hook != Hook::FromDevice
        && scratch.own == 0
        && policy::rows(tables, scratch.pod_id) != PodRows::default();
    if for_service || isolated {
        return scratch.refuse(Reason::FragmentUnknown);
    }
    tables.count(Counter::FragmentLeft);
    Stage::Untouched
}

/// Rewrites an ICMP error and sends it the flow's way.
#[inline(always)]
pub fn send_error<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let way = way_from(tables, hook, &scratch.flow);
    // A router keeps its own address, which the host does not expect from the gate. A packet to a
    // loopback address it expects from no other device.
    let router = scratch.reply.src != scratch.headers.key.src && !scratch.flow.dst.is_loopback();
    let way = if way == Way::Gate && router {
        Way::Stack
    } else {
        way
    };
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, &scratch.headers, &scratch.flow)?;
    } else {
        rewrite::error(packet, scratch, way)?;
        tables.count(Counter::ErrorTranslated);
    }
    go(packet, way, scratch.flow.device)
}

/// Rewrites any other exception and sends it the flow's way. A later fragment has no ports to
/// rewrite.
#[inline(always)]
pub fn send<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    scratch: &Scratch<F>,
) -> Result<Action, Reason> {
    let Scratch { headers, flow, .. } = scratch;
    let key = &headers.key;
    let way = way_from(tables, hook, flow);
    if may_encapsulate(hook, way) {
        dsr::encapsulate(packet, tables, headers, flow)?;
    } else if scratch.kind == Other::Later as u32 {
        rewrite::addresses(packet, headers, flow, way)?;
    } else {
        rewrite::apply(packet, headers, flow, way)?;
    }
    // Another sender to the same receiver may use the same identification. All of this sender's
    // move by the same amount.
    if scratch.kind != Other::Packet as u32 && flow.src != key.src {
        let secret = tables.config().unwrap_or_default().secret;
        let move_by = hash3(
            key.src.fold(),
            fragment_ports(key.sport, key.dport),
            key.protocol.0.into(),
            secret,
        );
        rewrite::renumber::<F, P>(packet, move_by as u16)?;
    }
    tables.count(Counter::Forwarded);
    go(packet, way, flow.device)
}

proxy_common::numbered! {
    /// The next step of a packet that leaves the stack and is not restored by
    /// [`crate::forward::restore`].
    pub enum Egress: u32, else Other {
        /// It belongs to no flow that went through the stack: [`crate::process::enter`].
        Other = 0,
        /// It is an ICMP error about packets of the flow in the scratch: [`send_error`].
        SendError = 1,
        /// It is a packet or fragment of the flow in the scratch: [`send`].
        SendException = 2,
    }
}

/// Parses an exception that leaves the stack, and finds the flow that went through the stack.
#[inline(always)]
pub fn on_egress<F: Ip, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F>,
) -> Egress {
    let Ok(Some(network)) = F::read(packet) else {
        return Egress::Other;
    };
    if !network.fragment
        && matches!(
            network.protocol,
            Protocol::TCP | Protocol::UDP | Protocol::SCTP
        )
    {
        return Egress::Other;
    }
    scratch.begin();
    let Ok(kind) = others(packet, tables, scratch) else {
        return Egress::Other;
    };
    scratch.kind = kind as u32;
    match kind {
        Other::Error => {
            let translated = scratch.quoted != 0
                && tables
                    .copy_flow(&scratch.headers.key, &mut scratch.flow)
                    .is_some()
                && scratch.flow.hooks & Hook::ToDevice as u8 != 0;
            if translated {
                Egress::SendError
            } else {
                Egress::Other
            }
        }
        Other::Packet | Other::First | Other::Later => {
            if !is_translated(scratch.headers.key.protocol, kind) {
                return Egress::Other;
            }
            match flow::find(tables, &scratch.headers, Hook::ToDevice, &mut scratch.flow) {
                flow::Found::Ours => Egress::SendException,
                flow::Found::Elsewhere | flow::Found::Over(_) | flow::Found::None => Egress::Other,
            }
        }
        Other::Exempt | Other::LostFragment => Egress::Other,
    }
}
