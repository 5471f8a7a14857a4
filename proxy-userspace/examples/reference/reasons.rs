//! Owns the page of drop reasons and counters.

use anyhow::Result;
use proxy_common::reason::{Answer, Counter, Reason};

use super::table::{code, table};

pub const INTRODUCTION: &str = "\
Every packet that Portway drops is counted once, under one reason, in the metric
`portway_drops_total{reason=\"…\"}`. What else the packet path counts is in
`portway_events_total{event=\"…\"}`. The names are stable. NetworkPolicy's denials are answered only
with `--policy-deny reject`.";

/// Returns the two tables.
pub fn body() -> Result<String> {
    let reasons = Reason::ALL.iter().map(|reason| {
        [
            code(reason.name()),
            reason.describe().to_owned(),
            reason.answer().map_or("", answer).to_owned(),
        ]
    });
    let counters = Counter::ALL
        .iter()
        .map(|counter| [code(counter.name()), counter.describe().to_owned()]);
    Ok(format!(
        "## Reasons\n\n{}\n## Counters\n\n{}",
        table(["Reason", "Meaning", "Answer to the sender"], reasons),
        table(["Event", "Meaning"], counters)
    ))
}

fn answer(answer: Answer) -> &'static str {
    match answer {
        Answer::PortUnreachable => "ICMP port unreachable",
        Answer::Prohibited => "ICMP administratively prohibited",
        Answer::TimeExceeded => "ICMP time exceeded",
        Answer::TooBig => "ICMP fragmentation needed, or packet too big",
    }
}
