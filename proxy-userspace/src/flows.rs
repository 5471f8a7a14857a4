//! The sweep of flows: ends those that have timed out and those with a UDP backend that is gone.
//! Beside the packet path it is the only writer of flows.
//!
//! It walks the tables in slices, so that neither the kernel nor the agent stalls; an entry that
//! looks dead is read again, with its other direction, before both are removed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_common::flow::{Flow, FlowKey, Role, State, TABLE_ENTRIES, Way};
use proxy_common::net::{Address, Protocol};
use proxy_common::reason::Counter;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::dataplane::{Clock, FlowTable, Maps, Walk};
use crate::ended::Ended;
use crate::metrics::Metrics;
use crate::model::Timeouts;
use crate::serving::Serving;
use crate::sockets::Sockets;

/// Pause between two sweeps, without changes.
const PAUSE: Duration = Duration::from_secs(3);
/// Number of looks at sockets after backends have changed: a socket may just have been sent to a
/// backend that went.
const LOOKS: u32 = 2;

/// The rules that decide about a flow.
#[derive(Clone, Debug)]
pub struct SweepRules {
    /// Seconds by kind (V18).
    pub timeouts: Timeouts,
    /// Jiffies in a second.
    pub hz: u32,
    /// Backends that UDP flows may lead to; `None` before the first sync.
    pub serving: Option<Arc<Serving>>,
    /// Lifetime in seconds of connections with direct server return. Their replies bypass this
    /// node, so that a reset by the backend is not seen.
    pub dsr: u32,
}

impl SweepRules {
    /// [`SweepRules::dsr`] where there is room: longer than two hours, after which TCP asks whether
    /// the other end is there.
    pub const DSR: u32 = 10_800;
    /// The lifetime in a full table.
    const LEAST_DSR: u32 = 600;
    /// Least lifetime of such a connection after its client has closed it: the backend may still
    /// send, and only the client's acknowledgements show it.
    const LEAST_HALF_CLOSED: u32 = 10;
}

/// Number of entries that the last sweep left in the established tables, and the fate of half-open
/// flows so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// `FLOWS4`.
    pub v4: u64,
    /// `FLOWS6`.
    pub v6: u64,
    /// Number of flows that had been established by then.
    pub established: u64,
    /// Half-open entries that sweeps of this agent have ended.
    pub ended: u64,
    /// Half-open flows that were neither answered nor replaced, nor ended by a sweep of this agent,
    /// nor are there: the LRU has evicted them, or a sweep of an earlier agent has ended them.
    pub lost: u64,
}

/// Result of a walk through one table, in entries.
#[derive(Clone, Copy, Default)]
struct Walked {
    remaining: u64,
    ended: u64,
}

impl SweepRules {
    /// The rules for a table that has so many entries: closed connections make room for others, the
    /// sooner the fuller it is beyond half, at three quarters at once. The rest is for what begins
    /// until the next sweep.
    pub fn for_table(&self, in_use: u64) -> Self {
        let quarter = u64::from(TABLE_ENTRIES / 4);
        let shorter = |seconds: u32| {
            let scaled = u64::from(seconds) * (3 * quarter).saturating_sub(in_use) / quarter;
            u32::try_from(scaled).unwrap_or(u32::MAX).min(seconds)
        };
        let timeouts = Timeouts {
            tcp_closed: shorter(self.timeouts.tcp_closed),
            ..self.timeouts
        };
        Self {
            timeouts,
            dsr: shorter(self.dsr).max(Self::LEAST_DSR),
            ..self.clone()
        }
    }

    /// Returns the reason if the flow has ended. `age` is the time since its last packet in either
    /// direction, in jiffies.
    pub fn judge<A: Address>(&self, protocol: Protocol, flow: &Flow<A>, age: u32) -> Option<Ended> {
        if protocol == Protocol::UDP && self.backend_is_gone(flow) {
            return Some(Ended::BackendGone);
        }
        let seconds = match Way::from_number(flow.way) {
            Way::Dsr => self.dsr_seconds(protocol, flow.state),
            Way::Stack | Way::Pod | Way::Neighbour | Way::Gate => {
                self.seconds(protocol, flow.state)
            }
        };
        let idle = u64::from(age) >= u64::from(seconds) * u64::from(self.hz);
        idle.then_some(match flow.state {
            state if protocol.has_handshake() && State::closed(state) => Ended::Closed,
            state if state & State::REPLIED == 0 => Ended::Unanswered,
            _ => Ended::Idle,
        })
    }

    /// Returns the lifetime of a flow after its last packet (V18), in seconds.
    fn seconds(&self, protocol: Protocol, state: u8) -> u32 {
        match protocol {
            protocol if protocol.has_handshake() && State::closed(state) => {
                self.timeouts.tcp_closed
            }
            _ if state & State::REPLIED == 0 => self.timeouts.opening,
            // Without a handshake only the time of the last packet is known.
            protocol if !protocol.has_handshake() => self.timeouts.udp,
            _ if state & State::FIN_BOTH != 0 => self.timeouts.tcp_close_wait,
            _ => self.timeouts.tcp,
        }
    }

    /// Returns the lifetime of a connection of which only the client's packets are seen.
    fn dsr_seconds(&self, protocol: Protocol, state: u8) -> u32 {
        let usual = self.seconds(protocol, state);
        match state {
            _ if !protocol.has_handshake()
                || State::closed(state)
                || state & State::REPLIED == 0 =>
            {
                usual
            }
            _ if state & State::FIN_BOTH != 0 => usual.min(
                self.timeouts
                    .tcp_closed
                    .saturating_mul(2)
                    .max(Self::LEAST_HALF_CLOSED),
            ),
            _ => usual.min(self.dsr),
        }
    }

    fn backend_is_gone<A: Address>(&self, flow: &Flow<A>) -> bool {
        let Some(serving) = &self.serving else {
            return false;
        };
        flow.is(Role::FORWARD)
            && !serving.allows(
                flow.service,
                SocketAddr::new(flow.dst.ip(), flow.dport.number()),
            )
    }
}

/// Returns the jiffies since a flow was seen; 0 if that was after `now` was read.
pub fn age(now: u32, seen: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Sweeps until the agent ends: every few seconds, and at once when UDP backends have gone.
pub async fn run(
    mut maps: Maps,
    clock: Clock,
    mut rules: SweepRules,
    mut serving: watch::Receiver<Option<Arc<Serving>>>,
    mut departed: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    metrics: Arc<Metrics>,
) {
    let (mut swept, mut first) = (Swept::default(), None);
    let (mut sockets, mut looks) = (Sockets::default(), LOOKS);
    loop {
        rules.serving = serving.borrow_and_update().clone();
        match sweep(&mut maps, &clock, &rules, swept, &metrics).await {
            Ok(now) => {
                swept = now;
                metrics.flows_evicted(swept.lost.saturating_sub(*first.get_or_insert(swept.lost)));
            }
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot sweep the flow tables; trying again"
            ),
        }
        if let (Some(serving), 1..) = (&rules.serving, looks) {
            match sockets.end(&mut maps, serving, &metrics) {
                Ok(_) => looks -= 1,
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "cannot read the recorded peers of sockets; trying again"
                ),
            }
        }
        tokio::select! {
            changed = serving.changed() => match changed {
                Ok(()) => looks = LOOKS,
                Err(_) => return,
            },
            Some(addresses) = departed.recv() => match end_those_of(&mut maps, &addresses) {
                Ok(ended) => debug!(?addresses, ended, "ended the flows of departed addresses"),
                Err(error) => warn!(error = format!("{error:#}"), "cannot end the flows of departed addresses"),
            },
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// P22: ends every flow with one of these addresses at an end, so that who gets the address next
/// begins without any. Gives the number of entries.
pub fn end_those_of(maps: &mut Maps, addresses: &BTreeSet<IpAddr>) -> Result<usize> {
    let Maps { v4, v6, .. } = maps;
    let mut ended = 0;
    if addresses.iter().any(IpAddr::is_ipv4) {
        ended += end_in(&mut v4.flows, addresses)? + end_in(&mut v4.opening, addresses)?;
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        ended += end_in(&mut v6.flows, addresses)? + end_in(&mut v6.opening, addresses)?;
    }
    Ok(ended)
}

fn end_in<A: Address>(
    table: &mut impl FlowTable<A>,
    addresses: &BTreeSet<IpAddr>,
) -> Result<usize> {
    let (mut walk, mut ended) = (Walk::default(), 0);
    while let Some(flows) = table.next(&mut walk)? {
        for (key, flow) in flows {
            let ends = [key.src, key.dst, flow.src, flow.dst];
            if ends.iter().any(|end| addresses.contains(&end.ip())) {
                table.delete(&key)?;
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// Walks all flow tables once; `before` is the result of the last sweep.
pub async fn sweep(
    maps: &mut Maps,
    clock: &Clock,
    rules: &SweepRules,
    before: Swept,
    metrics: &Metrics,
) -> Result<Swept> {
    // What begins from here on is not missed, and what is answered until the end of the walk is not
    // lost.
    let counters = maps.counters().context("read COUNTERS")?;
    let opened = counted_in(&counters, Counter::Opened);
    let Maps { v4, v6, .. } = maps;
    // Two entries for each flow; its family is not known.
    let come = 2 * counted_in(&counters, Counter::Established).saturating_sub(before.established);
    let (law4, law6) = (
        rules.for_table(before.v4 + come),
        rules.for_table(before.v6 + come),
    );
    let established4 = walk(&mut v4.flows, clock, &law4, metrics)
        .await
        .context("FLOWS4")?;
    let established6 = walk(&mut v6.flows, clock, &law6, metrics)
        .await
        .context("FLOWS6")?;
    let opening4 = walk(&mut v4.opening, clock, rules, metrics)
        .await
        .context("OPENING4")?;
    let opening6 = walk(&mut v6.opening, clock, rules, metrics)
        .await
        .context("OPENING6")?;
    metrics.flows_in_use("ipv4", "established", established4.remaining);
    metrics.flows_in_use("ipv6", "established", established6.remaining);
    metrics.flows_in_use("ipv4", "opening", opening4.remaining);
    metrics.flows_in_use("ipv6", "opening", opening6.remaining);
    let ended = before.ended + opening4.ended + opening6.ended;
    let counters = maps.counters().context("read COUNTERS")?;
    let established = counted_in(&counters, Counter::Established);
    let known = established + counted_in(&counters, Counter::Replaced);
    let lost = lost(
        opened,
        known,
        ended + opening4.remaining + opening6.remaining,
    );
    Ok(Swept {
        v4: established4.remaining,
        v6: established6.remaining,
        established,
        ended,
        lost,
    })
}

/// Returns the number of opened flows with an unknown fate. Entries come in pairs, and the LRU may
/// have evicted half of one.
fn lost(opened: u64, known: u64, entries: u64) -> u64 {
    opened.saturating_sub(known + entries.div_ceil(2))
}

fn counted_in(counters: &[u64], counter: Counter) -> u64 {
    counters
        .get(counter.index() as usize)
        .copied()
        .unwrap_or_default()
}

async fn walk<A: Address>(
    table: &mut impl FlowTable<A>,
    clock: &Clock,
    rules: &SweepRules,
    metrics: &Metrics,
) -> Result<Walked> {
    let (mut walk, mut walked) = (Walk::default(), Walked::default());
    while let Some(flows) = table.next(&mut walk)? {
        walked.remaining += flows.len() as u64;
        let now = clock.now()?;
        for (key, flow) in flows {
            if rules
                .judge(key.protocol, &flow, age(now, flow.seen))
                .is_none()
            {
                continue;
            }
            if let Some((ended, entries)) = end(table, &key, now, rules)? {
                walked.ended += entries;
                metrics.flow_ended(ended);
                debug!(?key, ended = ended.name(), "flow ended");
            }
        }
        tokio::task::yield_now().await;
    }
    // Some flows ended after the walk had met one of their entries only.
    walked.remaining = walked.remaining.saturating_sub(walked.ended);
    Ok(walked)
}

/// Judges an entry again by what both directions say now, and deletes both if it is over; gives the
/// number of entries too.
fn end<A: Address>(
    table: &mut impl FlowTable<A>,
    key: &FlowKey<A>,
    now: u32,
    rules: &SweepRules,
) -> Result<Option<(Ended, u64)>> {
    let Some(mut flow) = table.get(key)? else {
        return Ok(None);
    };
    let mate_key = flow.mate(key.protocol);
    let mut youngest = age(now, flow.seen);
    // The entry at the other direction's key belongs to this flow only if its mate is this entry.
    let mate = table
        .get(&mate_key)?
        .filter(|mate| mate.mate(key.protocol) == *key);
    if let Some(mate) = &mate {
        flow.state |= mate.state;
        youngest = youngest.min(age(now, mate.seen));
    }
    let Some(ended) = rules.judge(key.protocol, &flow, youngest) else {
        return Ok(None);
    };
    table.delete(key)?;
    if mate.is_some() {
        table.delete(&mate_key)?;
    }
    Ok(Some((ended, 1 + u64::from(mate.is_some()))))
}

#[cfg(test)]
mod tests;
