//! Matches the ports of a rule with the port that was asked for (P13-P16).

use super::party::{Party, Port};
use super::words;
use crate::model::policy::{PolicyPort, PortMatch};

/// Returns the matching entry, or the mismatch, in words. Names are the destination pod's (P15).
pub(super) fn matches(
    allowed: &PolicyPort,
    to: &Party<'_>,
    asked: &Port,
) -> Result<String, String> {
    let said = words::port(allowed);
    let other = || Err(format!("allows {said}, asked is {asked}"));
    if allowed.protocol != asked.protocol {
        return other();
    }
    match &allowed.port {
        PortMatch::All => Ok(said),
        PortMatch::Range(range) if range.contains(asked.number) => Ok(said),
        PortMatch::Range(_) => other(),
        PortMatch::Named(name) => {
            let Some((pod, found)) = to.pod() else {
                return Err(format!("allows {said}, but {}", to.kind()));
            };
            let named = found
                .ports
                .iter()
                .filter(|p| p.name.as_deref() == Some(name) && p.protocol == allowed.protocol);
            let numbers: Vec<_> = named.map(|p| p.port).collect();
            match (numbers.contains(&asked.number), numbers.is_empty()) {
                (true, _) => Ok(format!("{said}, which is {}", asked.number)),
                (false, true) => Err(format!(
                    "allows {said}, but no container of {pod} has a port of that name and protocol"
                )),
                (false, false) => Err(format!(
                    "allows {said}, which is {} at {pod}, asked is {asked}",
                    words::list(&numbers)
                )),
            }
        }
    }
}
