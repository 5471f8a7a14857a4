//! The packet path's settings, and the Service ranges.

use ipnet::IpNet;
use proxy_common::net::IfIndex;
use proxy_common::service::Config;

use crate::model::{PodStart, Refusal, Snapshot, TranslatedWay};

pub(super) fn config(snapshot: &Snapshot) -> Config {
    let Snapshot {
        settings, links, ..
    } = snapshot;
    Config {
        secret: settings.secret,
        masquerade_first: settings.masquerade_ports.first,
        masquerade_len: u16::try_from(settings.masquerade_ports.count()).unwrap_or(u16::MAX),
        hz: settings.hz,
        opening_timeout: settings.timeouts.opening,
        udp_timeout: settings.timeouts.udp,
        least_mtu: links
            .devices
            .values()
            .map(|device| device.mtu)
            .min()
            .unwrap_or(0),
        flags: flags(snapshot),
        gate: links.gate.unwrap_or(IfIndex::NONE),
        zero: 0,
    }
}

fn flags(snapshot: &Snapshot) -> u32 {
    let policies = !snapshot.state.policies.is_empty();
    let flags = [
        (
            Config::THROUGH_STACK,
            snapshot.settings.translated_way() == TranslatedWay::Stack,
        ),
        (Config::POLICY, policies),
        (
            Config::DENY_UNKNOWN,
            policies && snapshot.settings.pod_start == PodStart::Deny,
        ),
        (
            Config::REJECT_DENIED,
            snapshot.settings.policy_deny == Refusal::Reject,
        ),
    ];
    flags
        .into_iter()
        .filter(|(_, set)| *set)
        .fold(0, |flags, (flag, _)| flags | flag)
}

/// Returns the ranges in which addresses without a Service are dropped: those of ServiceCIDR
/// objects and of the operator.
pub(super) fn service_ranges(snapshot: &Snapshot) -> impl Iterator<Item = IpNet> + '_ {
    let objects = snapshot
        .state
        .service_cidrs
        .values()
        .flat_map(|cidr| &cidr.prefixes);
    objects
        .chain(&snapshot.settings.service_cidrs)
        .map(IpNet::trunc)
}
