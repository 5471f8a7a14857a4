//! The end of a packet that is not sent on: it is answered with an ICMP error, or dropped.

use proxy_common::config::Config;
use proxy_common::flow::Hook;
use proxy_common::net::IfIndex;
use proxy_common::reason::Reason;

use crate::parse::Ip;
use crate::parse::others::Other;
use crate::{Action, Packet, Scratch, Tables, dsr, process, rewrite, verdict};

/// Answers the packet's sender if the reason has an answer, else drops the packet.
#[inline(always)]
pub fn stop<F: Ip, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    device: IfIndex,
    hook: Hook,
    scratch: &mut Scratch<F>,
) -> Result<Action, Reason> {
    let reason = scratch.reason;
    let denied = matches!(reason, Reason::DeniedIngress | Reason::DeniedEgress);
    if denied {
        tables.report_denied(&verdict::denied(scratch), reason);
    }
    // A truncated packet has no headers to log.
    if reason != Reason::Truncated {
        tables.log_stopped(&scratch.headers.key, reason);
    }
    let exception = scratch.exception != 0
        && !(scratch.kind == Other::First as u32 && reason == Reason::TooBig);
    let silent = exception
        || denied
            && !tables
                .config()
                .unwrap_or_default()
                .has(Config::REJECT_DENIED);
    match reason.answer() {
        Some(answer) if !silent => {
            let back = match hook {
                Hook::ToPod | Hook::ToDevice => Action::Return(device),
                Hook::FromDevice if scratch.encapsulated != 0 => {
                    dsr::answer_way(tables, device, scratch)
                }
                Hook::FromDevice if scratch.by_gate != 0 => {
                    process::answer_way(tables, device, scratch)
                }
                Hook::FromDevice | Hook::FromPod => Action::Transmit(device),
            };
            let done = rewrite::answer(packet, tables, scratch, answer, back)?;
            if let Action::Enter(loopback) = done {
                process::address_link(packet, loopback)?;
            }
            Ok(done)
        }
        Some(_) | None => Err(reason),
    }
}
